//! The command line, the environment and the file: one shape.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

use super::LogFormat;

/// The virtual node of Nodeless.
#[derive(Debug, Parser)]
#[command(name = "vkubelet", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; without it, run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `run`.
    #[command(flatten)]
    pub run: RunFlags,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon (the default).
    Run(Box<RunFlags>),
    /// Join tokens for agents.
    Token {
        /// What to do with them.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Enrolled hosts.
    Host {
        /// What to do with them.
        #[command(subcommand)]
        command: HostCommand,
    },
    /// Print what the cluster needs before this node can serve it, for `kubectl apply -f -`: the ImageSnapshot resource and rights.
    Manifests {
        /// The node's name.
        #[arg(long, env = "NODELESS_NODE_NAME")]
        node_name: String,
    },
    /// Print the hash by which agents pin this node's CA: sha256:HEX.
    CaHash(StateFlags),
}

/// Join tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it. It is shown this once.
    Create {
        /// How long it is valid: 90s, 30m, 1h, 2d.
        #[arg(long, default_value = "1h", value_parser = parse_ttl)]
        ttl: std::time::Duration,
        /// How many hosts may join with it; without it as many as come.
        #[arg(long)]
        uses: Option<u32>,
        /// Only for this host id.
        #[arg(long)]
        host_id: Option<String>,
        /// It may also replace the key of a host that is enrolled already.
        #[arg(long)]
        rejoin: bool,
        /// Where the state is.
        #[command(flatten)]
        state: StateFlags,
    },
}

/// Enrolled hosts.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List them: host id, enrolled or revoked, key.
    List(StateFlags),
    /// Refuse a host's certificate from now on; a running daemon ends its connection within seconds. Its pods go on there.
    Revoke {
        /// The host's id.
        host_id: String,
        /// Where the state is.
        #[command(flatten)]
        state: StateFlags,
    },
}

/// Where the state is.
#[derive(Debug, Args)]
pub struct StateFlags {
    /// State directory of the daemon.
    #[arg(long, env = "NODELESS_STATE_DIR", default_value = super::check::STATE_DIR)]
    pub state_dir: PathBuf,
}

/// Every setting of the daemon. All are optional here; see `check` for defaults.
#[derive(Debug, Default, Clone, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RunFlags {
    /// TOML file with these same keys; flags and environment decide over it.
    #[arg(long, env = "NODELESS_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Name of the virtual node [default: the host name].
    #[arg(long, env = "NODELESS_NODE_NAME")]
    pub node_name: Option<String>,
    /// What must survive a restart [default: /var/lib/nodeless/vkubelet].
    #[arg(long, env = "NODELESS_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Socket and addresses [default: /run/nodeless/vkubelet].
    #[arg(long, env = "NODELESS_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// Directory of manifests, as a kubelet's static pods.
    #[arg(long, env = "NODELESS_POD_MANIFEST_PATH")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Credentials for an API server, as system:node:NAME.
    #[arg(long, env = "NODELESS_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Where agents dial in [default: 127.0.0.1:10260].
    #[arg(long, env = "NODELESS_AGENT_LISTEN")]
    pub agent_listen: Option<SocketAddr>,
    /// Where the kubelet API listens, with --kubeconfig [default: 0.0.0.0:10250].
    #[arg(long, env = "NODELESS_KUBELET_LISTEN")]
    pub kubelet_listen: Option<SocketAddr>,
    /// Serving certificate of the kubelet API (PEM).
    #[arg(long, env = "NODELESS_TLS_CERT_FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "NODELESS_TLS_PRIVATE_KEY_FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// CA of the kubelet API's client certificates (PEM).
    #[arg(long, env = "NODELESS_CLIENT_CA_FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// The kubelet port that the Node object gives [default: the one bound].
    #[arg(long, env = "NODELESS_KUBELET_PORT_PUBLIC")]
    pub kubelet_port_public: Option<u16>,
    /// The address that the Node object gives [default: the one by which the API server is reached].
    #[arg(long, env = "NODELESS_NODE_IP")]
    pub node_ip: Option<IpAddr>,
    /// Where bills are served [default: 127.0.0.1:10270].
    #[arg(long, env = "NODELESS_BILLING_LISTEN")]
    pub billing_listen: Option<SocketAddr>,
    /// Bearer token of the billing API [default: billing.token in the state directory, made when absent].
    #[arg(long, env = "NODELESS_BILLING_TOKEN_FILE")]
    pub billing_token_file: Option<PathBuf>,
    /// Metrics and health [default: 127.0.0.1:10271].
    #[arg(long, env = "NODELESS_HTTP_LISTEN")]
    pub http_listen: Option<SocketAddr>,
    /// Name servers of the cluster, for pods with dnsPolicy ClusterFirst.
    #[arg(long, env = "NODELESS_CLUSTER_DNS", value_delimiter = ',')]
    pub cluster_dns: Option<Vec<IpAddr>>,
    /// DNS domain of the cluster [default: cluster.local].
    #[arg(long, env = "NODELESS_CLUSTER_DOMAIN")]
    pub cluster_domain: Option<String>,
    /// KUBERNETES_SERVICE_HOST of pods [default: the kubeconfig's server].
    #[arg(long, env = "NODELESS_SERVICE_HOST")]
    pub service_host: Option<String>,
    /// KUBERNETES_SERVICE_PORT of pods [default: the kubeconfig's server].
    #[arg(long, env = "NODELESS_SERVICE_PORT")]
    pub service_port: Option<u16>,
    /// Taint of the node, KEY[=VALUE]:EFFECT; may be repeated [default: virtual-kubelet.io/provider=nodeless:NoSchedule].
    #[arg(long, env = "NODELESS_TAINT", value_delimiter = ',')]
    pub taint: Option<Vec<String>>,
    /// No taint at all.
    #[arg(long, env = "NODELESS_NO_TAINT", num_args = 0..=1, default_missing_value = "true", conflicts_with = "taint")]
    pub no_taint: Option<bool>,
    /// Labels of the node, KEY=VALUE[,KEY=VALUE].
    #[arg(long, env = "NODELESS_NODE_LABELS", value_delimiter = ',')]
    pub node_labels: Option<Vec<String>>,
    /// How log lines look [default: text].
    #[arg(long, env = "NODELESS_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
    /// Where spans of pods' starts are sent: OTLP over gRPC, http://HOST:PORT [default: nowhere].
    #[arg(long, env = "NODELESS_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

impl RunFlags {
    /// What is not set here is taken from `file`.
    #[must_use]
    pub fn over(self, file: Self) -> Self {
        macro_rules! first {
            ($($field:ident),* $(,)?) => { Self { config: self.config, $($field: self.$field.or(file.$field)),* } };
        }
        first!(
            node_name,
            state_dir,
            run_dir,
            pod_manifest_path,
            kubeconfig,
            agent_listen,
            kubelet_listen,
            tls_cert_file,
            tls_private_key_file,
            client_ca_file,
            kubelet_port_public,
            node_ip,
            billing_listen,
            billing_token_file,
            http_listen,
            cluster_dns,
            cluster_domain,
            service_host,
            service_port,
            taint,
            no_taint,
            node_labels,
            log_format,
            otlp_endpoint,
        )
    }
}

/// `90s`, `30m`, `1h`, `2d`.
fn parse_ttl(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("{text:?} is not a time such as 90s, 30m, 1h or 2d");
    let unit = text.chars().last().ok_or_else(bad)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| bad())?;
    let total = number.checked_mul(seconds).filter(|t| *t > 0).ok_or_else(bad)?;
    Ok(std::time::Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_the_default_command() {
        let cli = Cli::try_parse_from(["vkubelet", "--node-name", "n"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.run.node_name.as_deref(), Some("n"));
        assert!(Cli::try_parse_from(["vkubelet", "--no-such-flag"]).is_err());
    }

    #[test]
    fn a_flag_decides_over_the_file() {
        let flags = RunFlags { node_name: Some("flag".into()), ..RunFlags::default() };
        let file: RunFlags = toml::from_str("node-name = 'file'\nservice-port = 6443").unwrap();
        let merged = flags.over(file);
        assert_eq!((merged.node_name.as_deref(), merged.service_port), (Some("flag"), Some(6443)));
    }

    #[test]
    fn times_are_read() {
        assert_eq!(parse_ttl("2h").unwrap().as_secs(), 7200);
        for bad in ["", "h", "5", "-1h", "0s", "1é"] {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
    }
}
