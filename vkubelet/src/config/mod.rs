//! Configuration: file (TOML, `--config`), environment (`NODELESS_*`) and flags, read once into a typed [`Config`].
//!
//! A flag decides over the environment, the environment over the file, the file over the default. Unknown keys are refused.
//! Everything that can be checked without a port is checked here, before any port is bound. No secret is in here: secrets
//! live in files, and only their paths are configuration, so that a [`Config`] may be logged.

mod check;
mod flags;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Taint;

use crate::resolve::ClusterSettings;

pub use check::ConfigError;
pub use flags::{Cli, Command, HostCommand, RunFlags, StateFlags, TokenCommand};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What the daemon runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the virtual node.
    pub node_name: String,
    /// What must survive: CA, enrolled hosts, ledger, manifest records. 0700.
    pub state_dir: PathBuf,
    /// Socket and addresses.
    pub run_dir: PathBuf,
    /// The manifest source.
    pub manifest_path: Option<PathBuf>,
    /// The Kubernetes source, node object and kubelet API.
    pub kubernetes: Option<KubernetesConfig>,
    /// Where agents dial in.
    pub agent_listen: SocketAddr,
    /// Where bills are served.
    pub billing_listen: SocketAddr,
    /// The bearer token of the billing API; made when absent.
    pub billing_token_file: PathBuf,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub http_listen: SocketAddr,
    /// What pods are told of the cluster.
    pub cluster: ClusterSettings,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Where spans are sent.
    pub otlp_endpoint: Option<String>,
}

/// What is needed with an API server.
#[derive(Debug, Clone)]
pub struct KubernetesConfig {
    /// Credentials of `system:node:NAME`.
    pub kubeconfig: PathBuf,
    /// Where the kubelet API listens.
    pub kubelet_listen: SocketAddr,
    /// Serving certificate.
    pub tls_cert_file: PathBuf,
    /// Its key.
    pub tls_private_key_file: PathBuf,
    /// CA of client certificates.
    pub client_ca_file: PathBuf,
    /// What the Node object gives as its address; `None`: the address by which the API server is reached.
    pub node_ip: Option<IpAddr>,
    /// What the Node object gives as the kubelet's port; `None`: the one that was bound.
    pub kubelet_port_public: Option<u16>,
    /// Labels of the node.
    pub node_labels: BTreeMap<String, String>,
    /// Taints of the node.
    pub taints: Vec<Taint>,
}
