//! From what was given to what the daemon runs with.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Taint;

use super::{Config, KubernetesConfig, RunFlags};
use crate::resolve::ClusterSettings;

pub(super) const STATE_DIR: &str = "/var/lib/nodeless/vkubelet";
const RUN_DIR: &str = "/run/nodeless/vkubelet";
const TAINT: &str = "virtual-kubelet.io/provider=nodeless:NoSchedule";

/// A setting that cannot be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration file {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be; the inner error names the key and the line.
    #[error("configuration file {path}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// No source of pods.
    #[error("no source of pods: give --pod-manifest-path DIR, --kubeconfig FILE or both")]
    NoSource,
    /// A value that cannot be used.
    #[error("{flag}: {problem}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A file that is needed cannot be read.
    #[error("{flag}: cannot read {path}")]
    File {
        /// The flag.
        flag: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn value(flag: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value { flag, problem: problem.into() }
}

impl Config {
    /// Reads the file, if one is named, and checks everything.
    pub fn load(flags: RunFlags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            None => RunFlags::default(),
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
                toml::from_str(&text)
                    .map_err(|source| ConfigError::Parse { path: path.clone(), source: Box::new(source) })?
            }
        };
        Self::check(flags.over(file))
    }

    fn check(flags: RunFlags) -> Result<Self, ConfigError> {
        if flags.pod_manifest_path.is_none() && flags.kubeconfig.is_none() {
            return Err(ConfigError::NoSource);
        }
        let node_name = match &flags.node_name {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        check_node_name(&node_name)?;
        if let Some(path) = &flags.pod_manifest_path
            && path.exists()
            && !path.is_dir()
        {
            return Err(value("--pod-manifest-path", format!("{} is not a directory", path.display())));
        }
        let state_dir = flags.state_dir.clone().unwrap_or_else(|| STATE_DIR.into());
        if flags.pod_manifest_path.as_deref().is_some_and(|path| path.starts_with(&state_dir)) {
            return Err(value("--pod-manifest-path", "must not lie in the state directory"));
        }
        let kubernetes = kubernetes(&flags)?;
        Ok(Self {
            node_name,
            run_dir: flags.run_dir.clone().unwrap_or_else(|| RUN_DIR.into()),
            manifest_path: flags.pod_manifest_path.clone(),
            kubernetes,
            agent_listen: flags.agent_listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 10260))),
            billing_listen: flags.billing_listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 10270))),
            billing_token_file: flags.billing_token_file.clone().unwrap_or_else(|| state_dir.join("billing.token")),
            http_listen: flags.http_listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 10271))),
            cluster: cluster(&flags),
            log_format: flags.log_format.unwrap_or_default(),
            otlp_endpoint: flags.otlp_endpoint.clone(),
            state_dir,
        })
    }
}

fn host_name() -> Result<String, ConfigError> {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    if name.is_empty() { Err(value("--node-name", "the host has no name: give one")) } else { Ok(name) }
}

fn check_node_name(name: &str) -> Result<(), ConfigError> {
    let label = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        return Ok(());
    }
    Err(value("--node-name", format!("{name:?} is not a name: use a-z, 0-9, - and .")))
}

fn cluster(flags: &RunFlags) -> ClusterSettings {
    ClusterSettings {
        dns_servers: flags.cluster_dns.clone().unwrap_or_default(),
        dns_domain: flags.cluster_domain.clone().unwrap_or_else(|| "cluster.local".to_owned()),
        service_host: flags.service_host.clone().unwrap_or_default(),
        service_port: flags.service_port.unwrap_or(443),
    }
}

fn kubernetes(flags: &RunFlags) -> Result<Option<KubernetesConfig>, ConfigError> {
    let Some(kubeconfig) = &flags.kubeconfig else {
        if flags.kubelet_listen.is_some() {
            return Err(value("--kubelet-listen", "needs --kubeconfig: without an API server nobody asks there"));
        }
        return Ok(None);
    };
    let needed = |flag: &'static str, path: &Option<PathBuf>| {
        let path = path.clone().ok_or_else(|| value(flag, "is needed with --kubeconfig"))?;
        readable(flag, &path)?;
        Ok::<PathBuf, ConfigError>(path)
    };
    readable("--kubeconfig", kubeconfig)?;
    let taints = match (&flags.taint, flags.no_taint.unwrap_or(false)) {
        (_, true) => Vec::new(),
        (None, false) => vec![taint(TAINT)?],
        (Some(list), false) => list.iter().map(|text| taint(text)).collect::<Result<_, _>>()?,
    };
    Ok(Some(KubernetesConfig {
        kubeconfig: kubeconfig.clone(),
        kubelet_listen: flags.kubelet_listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 10250))),
        tls_cert_file: needed("--tls-cert-file", &flags.tls_cert_file)?,
        tls_private_key_file: needed("--tls-private-key-file", &flags.tls_private_key_file)?,
        client_ca_file: needed("--client-ca-file", &flags.client_ca_file)?,
        node_ip: flags.node_ip,
        kubelet_port_public: flags.kubelet_port_public,
        node_labels: labels(flags.node_labels.as_deref().unwrap_or_default())?,
        taints,
    }))
}

fn readable(flag: &'static str, path: &Path) -> Result<(), ConfigError> {
    File::open(path).map(drop).map_err(|source| ConfigError::File { flag, path: path.to_owned(), source })
}

fn taint(text: &str) -> Result<Taint, ConfigError> {
    let bad = || {
        value("--taint", format!("{text:?} is not KEY[=VALUE]:EFFECT with NoSchedule, PreferNoSchedule or NoExecute"))
    };
    let (pair, effect) = text.rsplit_once(':').ok_or_else(bad)?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(bad());
    }
    let (key, taint_value) = match pair.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (pair, None),
    };
    if key.is_empty() {
        return Err(bad());
    }
    Ok(Taint { key: key.to_owned(), value: taint_value, effect: effect.to_owned(), time_added: None })
}

fn labels(pairs: &[String]) -> Result<BTreeMap<String, String>, ConfigError> {
    pairs
        .iter()
        .map(|pair| {
            let split = pair.split_once('=').filter(|(key, _)| !key.is_empty());
            let (key, text) = split.ok_or_else(|| value("--node-labels", format!("{pair:?} is not KEY=VALUE")))?;
            Ok((key.to_owned(), text.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> RunFlags {
        RunFlags {
            pod_manifest_path: Some("/etc/nodeless/pods".into()),
            node_name: Some("n".into()),
            ..RunFlags::default()
        }
    }

    #[test]
    fn without_a_source_the_message_names_both_flags() {
        let error = Config::check(RunFlags::default()).unwrap_err().to_string();
        assert!(error.contains("--pod-manifest-path") && error.contains("--kubeconfig"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "node-name = 'n'\nno-such-key = 1\n").unwrap();
        let error = Config::load(RunFlags { config: Some(path), ..flags() }).unwrap_err();
        let inner = std::error::Error::source(&error).unwrap().to_string();
        assert!(inner.contains("no-such-key"), "{inner}");
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = Config::check(flags()).unwrap();
        assert_eq!(config.agent_listen.to_string(), "127.0.0.1:10260");
        assert_eq!(config.billing_token_file, Path::new("/var/lib/nodeless/vkubelet/billing.token"));
        assert!(config.kubernetes.is_none());
    }

    #[test]
    fn a_kubeconfig_needs_the_serving_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, "").unwrap();
        let error = Config::check(RunFlags { kubeconfig: Some(path), ..flags() }).unwrap_err().to_string();
        assert_eq!(error, "--tls-cert-file: is needed with --kubeconfig");
        let missing = RunFlags { kubeconfig: Some("/no/such".into()), ..flags() };
        assert!(matches!(Config::check(missing), Err(ConfigError::File { flag: "--kubeconfig", .. })));
    }

    #[test]
    fn taints_and_labels_are_checked() {
        assert_eq!(taint("a/b=c:NoExecute").unwrap().value.as_deref(), Some("c"));
        assert!(taint("a:Never").is_err() && taint("=x:NoSchedule").is_err());
        assert!(labels(&["a".to_owned()]).is_err());
    }

    #[test]
    fn a_bad_node_name_is_refused() {
        let error = Config::check(RunFlags { node_name: Some("A b".into()), ..flags() }).unwrap_err().to_string();
        assert!(error.starts_with("--node-name"), "{error}");
    }
}
