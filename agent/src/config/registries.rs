//! The operator's file about registries.
//!
//! ```toml
//! ["registry.lan:5000"]                            # as it stands in images' names
//! mirrors = ["https://mirror.lan/hub"]             # asked first, in this order
//! ca = ["/etc/nodeless/lan.pem"]                   # trusted for it besides the system's
//!
//! ["old.lan"]
//! unverified = true                                # whoever answers is taken for it: for networks that nobody else is on
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use image_snapshot::RegistryHost;
use serde::Deserialize;

use super::ConfigError;

const FLAG: &str = "registries";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    mirrors: Vec<String>,
    #[serde(default)]
    ca: Vec<PathBuf>,
    #[serde(default)]
    unverified: bool,
}

/// Reads it, and the certificates that it names.
pub(super) fn load(path: Option<PathBuf>) -> Result<Vec<RegistryHost>, ConfigError> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let read = |path: &PathBuf| std::fs::read(path).map_err(|source| ConfigError::Read { path: path.clone(), source });
    let text = String::from_utf8_lossy(&read(&path)?).into_owned();
    let all: BTreeMap<String, Settings> =
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path, source: Box::new(source) })?;
    let host = |(host, settings): (String, Settings)| {
        check(&host, &settings).map_err(|problem| ConfigError::Value { flag: FLAG, problem })?;
        let ca_certificates = settings.ca.iter().map(read).collect::<Result<_, _>>()?;
        Ok(RegistryHost { host, mirrors: settings.mirrors, ca_certificates, unverified: settings.unverified })
    };
    all.into_iter().map(host).collect()
}

fn check(host: &str, settings: &Settings) -> Result<(), String> {
    if host.is_empty() || host.contains('/') {
        return Err(format!("{host:?} is not HOST[:PORT]"));
    }
    let is_url = |url: &&String| !url.starts_with("http://") && !url.starts_with("https://");
    if let Some(other) = settings.mirrors.iter().find(is_url) {
        return Err(format!("{host}: the mirror {other:?} is no URL of http or https"));
    }
    if settings.unverified && !settings.ca.is_empty() {
        return Err(format!("{host}: it has certificates to be verified by, and is not to be verified"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<RegistryHost>, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), "pem").unwrap();
        let path = dir.path().join("registries.toml");
        std::fs::write(&path, text.replace("DIR", dir.path().to_str().unwrap())).unwrap();
        load(Some(path))
    }

    #[test]
    fn registries_have_mirrors_certificates_or_are_not_verified() {
        assert!(load(None).unwrap().is_empty());
        let hosts = of(
            "[\"a:5000\"]\nmirrors = [\"https://m/x\", \"http://n\"]\nca = [\"DIR/ca.pem\"]\n[b]\nunverified = true",
        );
        let hosts = hosts.unwrap();
        assert_eq!(hosts.len(), 2);
        assert_eq!((&*hosts[0].host, hosts[0].mirrors.len(), hosts[0].unverified), ("a:5000", 2, false));
        assert_eq!(hosts[0].ca_certificates, [b"pem".to_vec()]);
        assert!(hosts[1].host == "b" && hosts[1].unverified);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, word) in [
            ("[\"a/b\"]", "HOST"),
            ("[a]\nmirrors = [\"ftp://m\"]", "ftp://m"),
            ("[a]\nunverified = true\nca = [\"DIR/ca.pem\"]", "not to be verified"),
            ("[a]\nca = [\"DIR/absent.pem\"]", "absent.pem"),
            ("[a]\ninsecure = true", "registries.toml"),
        ] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let absent = load(Some("/nowhere/registries.toml".into())).unwrap_err();
        assert!(matches!(absent, ConfigError::Read { .. }));
    }
}
