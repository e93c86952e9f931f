//! Rights to pull, as pods and service accounts bring them. Secrets never show in `Debug`.

use std::fmt;

use base64::Engine as _;
use serde::Deserialize;

use crate::reference::{DEFAULT_REGISTRY, RegistryReference};

/// A string that must not be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// How to prove the right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryAuth {
    /// User name and password, sent to the registry or, when it says so, to its token service.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: Secret,
    },
    /// An OAuth2 refresh token for the token service (`identitytoken` of docker's files).
    Identity(Secret),
    /// A bearer token, sent as it is (`registrytoken` of docker's files).
    Bearer(Secret),
}

/// One entry of a pull secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// For which images: `host[:port][/path prefix]`, `*` standing for one label of the host, as the kubelet matches them.
    pub scope: String,
    /// The proof.
    pub auth: RegistryAuth,
}

/// Why a pull secret could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Not JSON of the right shape.
    #[error("pull secret is not a docker config")]
    Json(#[source] serde_json::Error),
    /// An `auth` field is not base64 of `user:password`.
    #[error("pull secret for {scope:?}: auth is not base64 of user:password")]
    Auth {
        /// Which entry.
        scope: String,
    },
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize, Default)]
struct DockerAuth {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<String>,
}

impl Credential {
    /// Reads a `.dockerconfigjson` (`{"auths": {…}}`).
    pub fn from_docker_config_json(json: &[u8]) -> Result<Vec<Self>, CredentialError> {
        let config: DockerConfig = serde_json::from_slice(json).map_err(CredentialError::Json)?;
        config.auths.into_iter().filter_map(entry).collect()
    }

    /// Reads a `.dockercfg` (the same without the outer `auths`).
    pub fn from_dockercfg(json: &[u8]) -> Result<Vec<Self>, CredentialError> {
        let auths: std::collections::BTreeMap<String, DockerAuth> =
            serde_json::from_slice(json).map_err(CredentialError::Json)?;
        auths.into_iter().filter_map(entry).collect()
    }

    /// Whether the entry speaks of this image.
    pub fn matches(&self, image: &RegistryReference) -> bool {
        let (host, path) = split_scope(&self.scope);
        host_matches(&host, image.registry()) && path_matches(path.as_deref(), image.repository())
    }
}

fn entry((scope, auth): (String, DockerAuth)) -> Option<Result<Credential, CredentialError>> {
    let auth = if let Some(token) = auth.registry_token.filter(|t| !t.is_empty()) {
        RegistryAuth::Bearer(Secret(token))
    } else if let Some(token) = auth.identity_token.filter(|t| !t.is_empty()) {
        RegistryAuth::Identity(Secret(token))
    } else if let Some(encoded) = auth.auth.filter(|a| !a.is_empty()) {
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(encoded.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        let Some((username, password)) = pair else {
            return Some(Err(CredentialError::Auth { scope }));
        };
        RegistryAuth::Basic {
            username: username.to_owned(),
            password: Secret(password.trim_end_matches('\0').to_owned()),
        }
    } else {
        RegistryAuth::Basic {
            username: auth.username.filter(|u| !u.is_empty())?,
            password: Secret(auth.password.unwrap_or_default()),
        }
    };
    Some(Ok(Credential { scope, auth }))
}

/// `https://index.docker.io/v1/` and friends to host and path.
fn split_scope(scope: &str) -> (String, Option<String>) {
    let bare = scope.strip_prefix("https://").or_else(|| scope.strip_prefix("http://")).unwrap_or(scope);
    let (host, path) = match bare.split_once('/') {
        None => (bare, None),
        Some((host, path)) => (host, Some(path.trim_end_matches('/'))),
    };
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    let path = path.filter(|p| !matches!(*p, "" | "v1" | "v2"));
    (host.to_owned(), path.map(str::to_owned))
}

fn host_matches(pattern: &str, host: &str) -> bool {
    let split = |s: &str| -> (String, Option<String>) {
        match s.rsplit_once(':') {
            Some((h, p)) if p.bytes().all(|b| b.is_ascii_digit()) => (h.to_owned(), Some(p.to_owned())),
            _ => (s.to_owned(), None),
        }
    };
    let ((pattern, pattern_port), (host, port)) = (split(pattern), split(host));
    if pattern_port != port {
        return false;
    }
    let (want, have): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    want.len() == have.len() && want.iter().zip(&have).all(|(w, h)| label_matches(w, h))
}

/// One host label against a pattern in which `*` stands for any run of characters.
fn label_matches(pattern: &str, label: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == label;
    };
    let Some(rest) = label.strip_prefix(head) else {
        return false;
    };
    (0..=rest.len()).any(|i| rest.is_char_boundary(i) && label_matches(tail, &rest[i..]))
}

fn path_matches(prefix: Option<&str>, repository: &str) -> bool {
    prefix.is_none_or(|prefix| repository.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reference;

    fn image(s: &str) -> RegistryReference {
        match s.parse().unwrap() {
            Reference::Registry(r) => r,
            Reference::Local(_) => panic!("{s} is local"),
        }
    }

    #[test]
    fn scopes_match_as_a_kubelet_matches_them() {
        let table = [
            ("https://index.docker.io/v1/", "busybox", true),
            ("docker.io", "a/b", true),
            ("*.docker.io", "a/b", false),
            ("*.example.com", "x.example.com/a", true),
            ("*.example.com", "x.y.example.com/a", false),
            ("reg*.example.com", "reg7.example.com/a", true),
            ("example.com", "example.com:5000/a", false),
            ("example.com:5000", "example.com:5000/a", true),
            ("example.com/team", "example.com/team/a", true),
            ("example.com/team", "example.com/other/a", false),
        ];
        for (scope, name, want) in table {
            let c = Credential { scope: scope.into(), auth: RegistryAuth::Bearer(Secret::new("t")) };
            assert_eq!(c.matches(&image(name)), want, "{scope} {name}");
        }
    }

    #[test]
    fn a_docker_config_is_read_and_never_printed() {
        let json = br#"{"auths":{"r.io":{"auth":"dTpwOnc="},"s.io":{"username":"x","password":"hunter2"},"t.io":{"identitytoken":"idt"},"u.io":{}}}"#;
        let all = Credential::from_docker_config_json(json).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].auth, RegistryAuth::Basic { username: "u".into(), password: Secret::new("p:w") });
        assert!(!format!("{all:?}").contains("hunter2"));
        assert!(Credential::from_docker_config_json(br#"{"auths":{"r":{"auth":"?"}}}"#).is_err());
    }
}
