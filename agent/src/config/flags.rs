//! The command line, the environment and the file: one shape.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

use super::{CpuManagerPolicy, LogFormat};
use crate::trust::Allow;

/// The agent of Nodeless: runs pods on this host.
#[derive(Debug, Parser)]
#[command(name = "nodeless-agent", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon.
    Run(Box<RunFlags>),
    /// Enrol this host with a vkubelet, once.
    Join(JoinFlags),
    /// Take this host out of service: kill every pod, leave nothing in the kernel. Give it the flags of `run`.
    Reset(Box<RunFlags>),
    /// Convert one image layer, unprivileged; started by the daemon.
    #[command(hide = true)]
    ConvertLayer,
}

/// Flags of `join`.
#[derive(Debug, Args)]
pub struct JoinFlags {
    /// HOST:PORT of vkubelet's agent listener.
    pub vkubelet: String,
    /// The join token that `vkubelet token create` printed.
    #[arg(long, env = "NODELESS_JOIN_TOKEN", hide_env_values = true)]
    pub token: String,
    /// Hash of vkubelet's CA, as `vkubelet ca-hash` prints it (sha256:HEX).
    #[arg(long, env = "NODELESS_CA_HASH")]
    pub ca_hash: String,
    /// What must survive a restart.
    #[arg(long, env = "NODELESS_STATE_DIR", default_value = super::STATE_DIR)]
    pub state_dir: PathBuf,
    /// This host's id [default: made from the machine id].
    #[arg(long, env = "NODELESS_HOST_ID")]
    pub host_id: Option<String>,
}

/// Every setting of the daemon. All are optional here; see [`super::Config`] for defaults.
#[derive(Debug, Default, Clone, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RunFlags {
    /// TOML file with these same keys; flags and environment decide over it.
    #[arg(long, env = "NODELESS_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// What must survive a restart [default: /var/lib/nodeless].
    #[arg(long, env = "NODELESS_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Sockets, sandboxes, secrets; on a tmpfs [default: /run/nodeless].
    #[arg(long, env = "NODELESS_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// HOST:PORT of vkubelet's agent listener [default: as joined].
    #[arg(long, env = "NODELESS_VKUBELET")]
    pub vkubelet: Option<String>,
    /// This host's id; must be the one that it joined with [default: as joined].
    #[arg(long, env = "NODELESS_HOST_ID")]
    pub host_id: Option<String>,
    /// Network namespace (path) in which bridge, links and rules live, or `host` [default: host].
    #[arg(long, env = "NODELESS_DATA_PLANE_NETNS")]
    pub data_plane_netns: Option<String>,
    /// The pods' subnet [default: 10.88.0.0/16].
    #[arg(long, env = "NODELESS_POD_CIDR")]
    pub pod_cidr: Option<String>,
    /// Name of the bridge [default: nodeless0].
    #[arg(long, env = "NODELESS_BRIDGE")]
    pub bridge: Option<String>,
    /// Cgroup under which all pods live [default: nodeless].
    #[arg(long, env = "NODELESS_CGROUP_PARENT")]
    pub cgroup_parent: Option<String>,
    /// The nodeless-shim program [default: beside this program, then in PATH].
    #[arg(long, env = "NODELESS_SHIM")]
    pub shim: Option<PathBuf>,
    /// Warm sandboxes kept ready [default: 4].
    #[arg(long, env = "NODELESS_POOL_SIZE")]
    pub pool_size: Option<usize>,
    /// Metrics and health [default: 127.0.0.1:10272].
    #[arg(long, env = "NODELESS_HTTP_LISTEN")]
    pub http_listen: Option<SocketAddr>,
    /// The host's resolver file [default: /etc/resolv.conf].
    #[arg(long, env = "NODELESS_RESOLV_CONF")]
    pub resolv_conf: Option<PathBuf>,
    /// Registry HOST[:PORT] spoken to in plain HTTP; may be repeated (loopback always is).
    #[arg(long, env = "NODELESS_INSECURE_REGISTRY", value_delimiter = ',')]
    pub insecure_registry: Option<Vec<String>>,
    /// TOML file with mirrors, certificates and exceptions for registries by name [default: none].
    #[arg(long, env = "NODELESS_REGISTRIES")]
    pub registries: Option<PathBuf>,
    /// Seconds of silence after which a registry's request is given up [default: 60].
    #[arg(long, env = "NODELESS_REGISTRY_TIMEOUT_SECONDS")]
    pub registry_timeout_seconds: Option<u64>,
    /// Layers of all images that are downloaded at once [default: 6].
    #[arg(long, env = "NODELESS_MAX_CONCURRENT_LAYERS")]
    pub max_concurrent_layers: Option<usize>,
    /// Layers of one image that are downloaded at once [default: 3].
    #[arg(long, env = "NODELESS_MAX_CONCURRENT_LAYERS_PER_IMAGE")]
    pub max_concurrent_layers_per_image: Option<usize>,
    /// Directory below which pods of the cluster may name `oci-layout:` images; may be repeated.
    #[arg(long, env = "NODELESS_ALLOW_OCI_LAYOUT", value_delimiter = ',')]
    pub allow_oci_layout: Option<Vec<PathBuf>>,
    /// Labels of this host, by which ImageSnapshots select it: KEY=VALUE; may be repeated.
    #[arg(long, env = "NODELESS_HOST_LABELS", value_delimiter = ',')]
    pub host_labels: Option<Vec<String>>,
    /// Docker config file (auths, credHelpers, credsStore) with credentials that every pod of this host may pull with [default: none].
    #[arg(long, env = "NODELESS_DOCKER_CONFIG")]
    pub docker_config: Option<PathBuf>,
    /// Who shares layers' files, and so their pages in memory: `shared`, every pod of the host; `namespace`, the pods of one namespace [default: shared].
    #[arg(long, env = "NODELESS_IMAGE_COPIES")]
    pub image_copies: Option<String>,
    /// Percent of the disk in use from which on unused images make way [default: 85].
    #[arg(long, env = "NODELESS_IMAGE_GC_HIGH_THRESHOLD")]
    pub image_gc_high_threshold: Option<u64>,
    /// Percent of the disk in use down to which they do [default: 80].
    #[arg(long, env = "NODELESS_IMAGE_GC_LOW_THRESHOLD")]
    pub image_gc_low_threshold: Option<u64>,
    /// Seconds for which an image stays after its last use however full the disk is [default: 120].
    #[arg(long, env = "NODELESS_IMAGE_GC_MIN_AGE_SECONDS")]
    pub image_gc_min_age_seconds: Option<u64>,
    /// Seconds after its last use when an image goes in any case [default: never].
    #[arg(long, env = "NODELESS_IMAGE_GC_MAX_AGE_SECONDS")]
    pub image_gc_max_age_seconds: Option<u64>,
    /// What must stay free of the host, as a kubelet's flag of this name says it: `memory.available` and `nodefs.available`, a
    /// quantity or a percentage [default: memory.available<100Mi,nodefs.available<10%, of the disk 10 GiB at most].
    #[arg(long, env = "NODELESS_EVICTION_HARD")]
    pub eviction_hard: Option<String>,
    /// CPU that pods may request together, as a quantity [default: the host's].
    #[arg(long, env = "NODELESS_CAPACITY_CPU")]
    pub capacity_cpu: Option<String>,
    /// Memory that pods may request together, as a quantity [default: the host's].
    #[arg(long, env = "NODELESS_CAPACITY_MEMORY")]
    pub capacity_memory: Option<String>,
    /// Pods at once [default: 110].
    #[arg(long, env = "NODELESS_MAX_PODS")]
    pub max_pods: Option<u32>,
    /// Processes and threads of one pod [default: 32768].
    #[arg(long, env = "NODELESS_PIDS_LIMIT")]
    pub pids_limit: Option<u64>,
    /// Protect the memory that pods request from reclaim, on cgroup v2 [default: true].
    #[arg(long, env = "NODELESS_PROTECT_MEMORY")]
    pub protect_memory: Option<bool>,
    /// Slow containers of Burstable pods down from this part of the way between their memory request and limit on, on cgroup
    /// v2; the kubelet's is 0.9 [default: not].
    #[arg(long, env = "NODELESS_MEMORY_THROTTLING_FACTOR")]
    pub memory_throttling_factor: Option<f64>,
    /// Keep what a container writes to its root within its ephemeral-storage limit, by a project quota or a file system of its
    /// own, beside evicting its pod [default: true].
    #[arg(long, env = "NODELESS_LIMIT_ROOTS")]
    pub limit_roots: Option<bool>,
    /// What pods may have beyond what holds them apart [default: nothing]; may be repeated.
    #[arg(long, env = "NODELESS_ALLOW", value_enum, value_delimiter = ',')]
    pub allow: Option<Vec<Allow>>,
    /// Sysctls that pods may set beyond the safe ones, a name or a prefix with `*`; may be repeated.
    #[arg(long, env = "NODELESS_ALLOWED_UNSAFE_SYSCTLS", value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Option<Vec<String>>,
    /// Directory of the seccomp profiles that pods name by `localhostProfile` [default: STATE_DIR/seccomp].
    #[arg(long, env = "NODELESS_SECCOMP_PROFILE_ROOT")]
    pub seccomp_profile_root: Option<PathBuf>,
    /// The loaded AppArmor profile that `RuntimeDefault`, and no profile at all, mean [default: none].
    #[arg(long, env = "NODELESS_APPARMOR_DEFAULT_PROFILE")]
    pub apparmor_default_profile: Option<String>,
    /// Whether containers of Guaranteed pods that request whole CPUs get them for themselves [default: none].
    #[arg(long, env = "NODELESS_CPU_MANAGER_POLICY", value_enum)]
    pub cpu_manager_policy: Option<CpuManagerPolicy>,
    /// CPUs that are nobody's own, as the kernel lists them (0-1,4); with --cpu-manager-policy=static.
    #[arg(long, env = "NODELESS_RESERVED_CPUS")]
    pub reserved_cpus: Option<String>,
    /// TOML file that says which devices pods may ask for, as extended resources [default: none].
    #[arg(long, env = "NODELESS_DEVICE_POLICY")]
    pub device_policy: Option<PathBuf>,
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
            state_dir,
            run_dir,
            vkubelet,
            host_id,
            data_plane_netns,
            pod_cidr,
            bridge,
            cgroup_parent,
            shim,
            pool_size,
            http_listen,
            resolv_conf,
            insecure_registry,
            registries,
            registry_timeout_seconds,
            max_concurrent_layers,
            max_concurrent_layers_per_image,
            allow_oci_layout,
            host_labels,
            docker_config,
            image_copies,
            image_gc_high_threshold,
            image_gc_low_threshold,
            image_gc_min_age_seconds,
            image_gc_max_age_seconds,
            eviction_hard,
            capacity_cpu,
            capacity_memory,
            max_pods,
            pids_limit,
            allow,
            allowed_unsafe_sysctls,
            seccomp_profile_root,
            apparmor_default_profile,
            device_policy,
            cpu_manager_policy,
            reserved_cpus,
            protect_memory,
            limit_roots,
            memory_throttling_factor,
            log_format,
            otlp_endpoint,
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
