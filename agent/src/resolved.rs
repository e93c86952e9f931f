//! The values behind a pod's references, as vkubelet resolved them.

use std::collections::BTreeMap;
use std::fmt;

use agent_api::proto;
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of a ConfigMap or Secret key; base64 in JSON, as in Kubernetes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&base64::display::Base64Display::new(&self.0, &base64::engine::general_purpose::STANDARD))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        base64::engine::general_purpose::STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Keys and values of one object.
pub type Data = BTreeMap<String, Bytes>;

/// One credential for a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryCredential {
    /// `host[:port][/path]`.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// OAuth2 refresh token.
    pub identity_token: String,
}

impl fmt::Debug for RegistryCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryCredential").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl From<proto::RegistryCredential> for RegistryCredential {
    fn from(wire: proto::RegistryCredential) -> Self {
        let proto::RegistryCredential { registry, username, password, identity_token } = wire;
        Self { registry, username, password, identity_token }
    }
}

/// A bound service-account token for one projected file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Volume name.
    pub volume: String,
    /// File path within the volume.
    pub path: String,
    /// The token.
    pub token: String,
    /// When it expires, seconds since 1970.
    pub expires_unix: i64,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("volume", &self.volume).field("path", &self.path).finish_non_exhaustive()
    }
}

/// The cluster's DNS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterDns {
    /// Server addresses; none when the cluster has no DNS that we know of.
    pub servers: Vec<String>,
    /// `cluster.local`.
    pub domain: String,
}

/// Everything that a pod refers to. Secrets, tokens and credentials are **secret material**: tmpfs only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resolved {
    /// ConfigMaps by name; optional absent ones are not here.
    pub config_maps: BTreeMap<String, Data>,
    /// Secrets by name; optional absent ones are not here.
    pub secrets: BTreeMap<String, Data>,
    /// Registry credentials.
    pub credentials: Vec<RegistryCredential>,
    /// Service-account tokens.
    pub tokens: Vec<Token>,
    /// `KUBERNETES_SERVICE_HOST` and its like.
    pub service_env: BTreeMap<String, String>,
    /// The cluster's DNS.
    pub dns: ClusterDns,
}

impl From<proto::Resolved> for Resolved {
    fn from(wire: proto::Resolved) -> Self {
        let objects = |list: Vec<proto::Object>| {
            list.into_iter()
                .map(|object| {
                    let data = object.data.into_iter().map(|(key, value)| (key, Bytes(value.to_vec()))).collect();
                    (object.name, data)
                })
                .collect()
        };
        let dns = wire.dns.unwrap_or_default();
        Self {
            config_maps: objects(wire.config_maps),
            secrets: objects(wire.secrets),
            credentials: wire.registry_credentials.into_iter().map(RegistryCredential::from).collect(),
            tokens: wire
                .tokens
                .into_iter()
                .map(|t| Token { volume: t.volume, path: t.path, token: t.token, expires_unix: t.expires_unix })
                .collect(),
            service_env: wire.service_env.into_iter().collect(),
            dns: ClusterDns { servers: dns.servers, domain: dns.domain },
        }
    }
}

/// What stands in the ledger instead of secret material: digests, so that a change is seen and nothing is told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SecretDigests {
    /// SHA-256 of each Secret's content, by name.
    pub secrets: BTreeMap<String, String>,
    /// SHA-256 of each token, by `volume/path`.
    pub tokens: BTreeMap<String, String>,
    /// How many registry credentials there were.
    pub credentials: usize,
}

impl SecretDigests {
    /// The pod can start without any secret material.
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty() && self.tokens.is_empty() && self.credentials == 0
    }
}

impl Resolved {
    /// Splits into what may be on disk and the digests of what may not.
    pub fn without_secrets(&self) -> (Resolved, SecretDigests) {
        let hash = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
        let digests = SecretDigests {
            secrets: self
                .secrets
                .iter()
                .map(|(name, data)| {
                    let mut hasher = Sha256::new();
                    for (key, value) in data {
                        hasher.update((key.len() as u64).to_le_bytes());
                        hasher.update(key);
                        hasher.update((value.0.len() as u64).to_le_bytes());
                        hasher.update(&value.0);
                    }
                    (name.clone(), hex::encode(hasher.finalize()))
                })
                .collect(),
            tokens: self
                .tokens
                .iter()
                .map(|t| (format!("{}/{}", t.volume, t.path), hash(t.token.as_bytes())))
                .collect(),
            credentials: self.credentials.len(),
        };
        let open = Resolved {
            config_maps: self.config_maps.clone(),
            service_env: self.service_env.clone(),
            dns: self.dns.clone(),
            ..Resolved::default()
        };
        (open, digests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_value_is_left_in_the_part_for_the_disk_or_in_debug_output() {
        let data: Data = [("key".to_owned(), Bytes(b"hunter2".to_vec()))].into();
        let resolved = Resolved {
            secrets: [("s".to_owned(), data)].into(),
            tokens: vec![Token { volume: "v".into(), path: "token".into(), token: "hunter2".into(), expires_unix: 1 }],
            credentials: vec![RegistryCredential {
                registry: "r".into(),
                username: "u".into(),
                password: "hunter2".into(),
                identity_token: "hunter2".into(),
            }],
            ..Resolved::default()
        };
        let (open, digests) = resolved.without_secrets();
        let encoded = base64::engine::general_purpose::STANDARD.encode("hunter2");
        for text in
            [serde_json::to_string(&open).unwrap(), serde_json::to_string(&digests).unwrap(), format!("{resolved:?}")]
        {
            assert!(!text.contains("hunter2") && !text.contains(&encoded), "{text}");
        }
        assert_eq!(digests.secrets.len() + digests.tokens.len(), 2);
        assert!(!digests.is_empty());
    }
}
