//! Registry credentials out of pull secrets: `kubernetes.io/dockerconfigjson` and the older `kubernetes.io/dockercfg`.

use std::collections::BTreeMap;

use agent_api::proto::RegistryCredential;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::ports::ReferencedObject;

/// A pull secret that cannot be used. Its contents are never printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error("secret has neither key .dockerconfigjson nor .dockercfg")]
    NoKey,
    // The parser's own message could quote a password: only its place is told.
    #[error("key {key} is not a docker configuration (line {line}, column {column})")]
    Parse { key: &'static str, line: usize, column: usize },
    #[error("auth of registry {registry} is not base64 of user:password")]
    Auth { registry: String },
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

pub(crate) fn credentials(secret: &ReferencedObject) -> Result<Vec<RegistryCredential>, CredentialError> {
    let entries = if let Some(bytes) = secret.data.get(".dockerconfigjson") {
        parse::<DockerConfig>(".dockerconfigjson", bytes)?.auths
    } else if let Some(bytes) = secret.data.get(".dockercfg") {
        parse::<BTreeMap<String, Entry>>(".dockercfg", bytes)?
    } else {
        return Err(CredentialError::NoKey);
    };
    entries.into_iter().map(|(registry, entry)| credential(registry, entry)).collect()
}

fn parse<'de, T: Deserialize<'de>>(key: &'static str, bytes: &'de [u8]) -> Result<T, CredentialError> {
    serde_json::from_slice(bytes).map_err(|e| CredentialError::Parse { key, line: e.line(), column: e.column() })
}

fn credential(registry: String, entry: Entry) -> Result<RegistryCredential, CredentialError> {
    let (mut username, mut password) = (entry.username, entry.password);
    if username.is_empty() && !entry.auth.is_empty() {
        let decoded = STANDARD.decode(entry.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, pass)) = decoded.as_deref().and_then(|text| text.split_once(':')) else {
            return Err(CredentialError::Auth { registry });
        };
        username = user.to_owned();
        password = pass.trim_end_matches('\0').to_owned();
    }
    Ok(RegistryCredential { registry, username, password, identity_token: entry.identitytoken })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(key: &str, text: &str) -> ReferencedObject {
        ReferencedObject { type_: String::new(), data: [(key.to_owned(), text.as_bytes().to_vec())].into() }
    }

    #[test]
    fn auth_and_separate_fields_are_the_same() {
        let auth = secret(".dockerconfigjson", r#"{"auths":{"r.io":{"auth":"dTpwOnc="}}}"#);
        let plain = secret(".dockercfg", r#"{"r.io":{"username":"u","password":"p:w"}}"#);
        let a = credentials(&auth).unwrap();
        assert_eq!(a, credentials(&plain).unwrap());
        assert_eq!((a[0].registry.as_str(), a[0].username.as_str(), a[0].password.as_str()), ("r.io", "u", "p:w"));
    }

    #[test]
    fn errors_never_quote_the_secret() {
        let broken = secret(".dockerconfigjson", r#"{"auths": "hunter2""#);
        let text = format!("{:?} {}", credentials(&broken).unwrap_err(), credentials(&broken).unwrap_err());
        assert!(!text.contains("hunter2"), "{text}");
        assert!(matches!(credentials(&secret("x", "")), Err(CredentialError::NoKey)));
        let bad = secret(".dockercfg", r#"{"r.io":{"auth":"%%"}}"#);
        assert!(matches!(credentials(&bad), Err(CredentialError::Auth { .. })));
    }
}
