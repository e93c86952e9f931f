//! Configuration: file (TOML, `--config`), environment (`NODELESS_*`) and flags, read once into a typed [`Config`].
//!
//! A flag decides over the environment, the environment over the file, the file over the default. Unknown keys are refused.
//! No secret is in here, so that a [`Config`] may be logged.

mod flags;
mod registries;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use agent_api::identity::HostId;
use ipnet::Ipv4Net;

pub use flags::{Cli, Command, JoinFlags, RunFlags};

use crate::cpus::{self, CpuSet};
use crate::host::thresholds::{ThresholdError, Thresholds};
use crate::image_gc::Watermarks;
use crate::network::DataPlane;
use crate::pod::spec::resources::Policy;
use crate::pod::spec::sysctls;
use crate::quantity::{QuantityError, milli, whole};
use crate::trust::Allow;
use image_snapshot::{Concurrency, Copies};

/// Default of `--state-dir`.
pub const STATE_DIR: &str = "/var/lib/nodeless";
const RUN_DIR: &str = "/run/nodeless";
const POOL_SIZE: usize = 4;
const MAX_PODS: u32 = 110;
const PIDS_LIMIT: u64 = 32_768;
const SHIM: &str = "nodeless-shim";

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

/// Who runs on which CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuManagerPolicy {
    /// All on all.
    #[default]
    None,
    /// Guaranteed containers with whole CPUs on their own, the others on the rest.
    Static,
}

/// What the agent runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// What must survive. 0711.
    pub state_dir: PathBuf,
    /// What a reboot may empty.
    pub run_dir: PathBuf,
    /// Decides over the address remembered by the join.
    pub vkubelet: Option<String>,
    /// Where bridge, links and rules live.
    pub data_plane: DataPlane,
    /// The pods' subnet.
    pub pod_cidr: Ipv4Net,
    /// The bridge's name.
    pub bridge: String,
    /// Cgroup under which all pods live.
    pub cgroup_parent: String,
    /// What containers write to their roots is kept within their limits by the kernel.
    pub limit_roots: bool,
    /// The `nodeless-shim` program.
    pub shim: PathBuf,
    /// Warm sandboxes.
    pub pool_size: usize,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub http_listen: SocketAddr,
    /// The host's resolver file.
    pub resolv_conf: PathBuf,
    /// Registries spoken to in plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Mirrors of registries, their certificates, and those that are not verified.
    pub registries: Vec<image_snapshot::RegistryHost>,
    /// Silence after which a registry's request is given up; without it the store's own default.
    pub registry_timeout: Option<std::time::Duration>,
    /// Layers that are downloaded at once, of all images and of one.
    pub concurrency: Concurrency,
    /// Directories that pods may name in `oci-layout:` references.
    pub oci_layouts: Vec<PathBuf>,
    /// Labels of this host besides those that it has by nature.
    pub host_labels: BTreeMap<String, String>,
    /// A docker config file with credentials that every pod may pull with.
    pub docker_config: Option<PathBuf>,
    /// Who shares the files of layers.
    pub image_copies: Copies,
    /// When images make way.
    pub image_gc: Watermarks,
    /// What must stay free of memory and disk.
    pub thresholds: Thresholds,
    /// CPU to give, in thousandths; the host's own when absent.
    pub capacity_milli_cpu: Option<u64>,
    /// Memory to give, in bytes; the host's own when absent.
    pub capacity_memory: Option<u64>,
    /// Pods at once.
    pub max_pods: u32,
    /// What pods get beyond what they ask for.
    pub policy: Policy,
    /// What pods may have beyond what holds them apart.
    pub allow: BTreeSet<Allow>,
    /// Sysctls beyond the safe ones.
    pub unsafe_sysctls: Vec<String>,
    /// Below it lie the seccomp profiles that pods name.
    pub seccomp_profiles: PathBuf,
    /// The AppArmor profile that `RuntimeDefault` means.
    pub apparmor_default: Option<String>,
    /// With the static CPU policy: the CPUs that are nobody's own.
    pub reserved_cpus: Option<CpuSet>,
    /// The devices that pods may ask for; read when the agent begins to run.
    pub device_policy: Option<PathBuf>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Where spans are sent.
    pub otlp_endpoint: Option<String>,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("could not read the configuration file {path:?}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be; the message names key and line.
    #[error("configuration file {path:?} is not valid")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A quantity is none.
    #[error("--{flag} is not a quantity")]
    Quantity {
        /// Which flag.
        flag: &'static str,
        /// Why.
        #[source]
        source: QuantityError,
    },
    /// A value that cannot be.
    #[error("--{flag}: {problem}")]
    Value {
        /// Which flag.
        flag: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl Config {
    /// Reads the file, if one is named, and checks everything.
    pub fn load(flags: RunFlags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            None => RunFlags::default(),
            Some(path) => {
                let read = std::fs::read_to_string(path);
                let text = read.map_err(|source| ConfigError::Read { path: path.clone(), source })?;
                toml::from_str(&text)
                    .map_err(|source| ConfigError::Parse { path: path.clone(), source: Box::new(source) })?
            }
        };
        Self::check(flags.over(file))
    }

    fn check(flags: RunFlags) -> Result<Self, ConfigError> {
        let quantity = |flag, text: Option<String>, parse: fn(&str) -> Result<u64, QuantityError>| {
            text.map(|t| parse(&t)).transpose().map_err(|source| ConfigError::Quantity { flag, source })
        };
        let wrong = |flag, problem: String| ConfigError::Value { flag, problem };
        let absolute = |flag, path: Option<PathBuf>, default: &str| {
            let path = path.unwrap_or_else(|| PathBuf::from(default));
            if path.is_absolute() {
                Ok(path)
            } else {
                std::env::current_dir().map(|dir| dir.join(path)).map_err(|error| wrong(flag, error.to_string()))
            }
        };
        let bridge = flags.bridge.unwrap_or_else(|| "nodeless0".to_owned());
        if bridge.is_empty() || bridge.len() > 15 || bridge.contains(['/', ' ']) {
            return Err(wrong("bridge", format!("{bridge:?} is not 1 to 15 bytes without '/' and spaces")));
        }
        let cgroup_parent = flags.cgroup_parent.unwrap_or_else(|| "nodeless".to_owned());
        if cgroup_parent.is_empty()
            || cgroup_parent.starts_with('/')
            || cgroup_parent.split('/').any(|p| p == ".." || p.is_empty())
        {
            return Err(wrong("cgroup-parent", format!("{cgroup_parent:?} is not a relative path")));
        }
        let cidr = flags.pod_cidr.unwrap_or_else(|| "10.88.0.0/16".to_owned());
        let pod_cidr: Ipv4Net =
            cidr.parse().map_err(|_| wrong("pod-cidr", format!("{cidr:?} is not ADDRESS/PREFIX")))?;
        if pod_cidr.prefix_len() > 30 {
            return Err(wrong("pod-cidr", format!("{cidr} is smaller than a /30")));
        }
        let data_plane = match flags.data_plane_netns.as_deref() {
            None | Some("host") => DataPlane::Host,
            Some(path) if path.starts_with('/') => DataPlane::Netns(PathBuf::from(path)),
            Some(other) => {
                return Err(wrong("data-plane-netns", format!("{other:?} is neither host nor an absolute path")));
            }
        };
        if let Some(text) = &flags.host_id {
            HostId::new(text.clone()).map_err(|error| wrong("host-id", error.to_string()))?;
        }
        let unsafe_sysctls = flags.allowed_unsafe_sysctls.unwrap_or_default();
        if let Some(pattern) = unsafe_sysctls.iter().find(|pattern| !sysctls::is_pattern(pattern)) {
            let problem = format!("{pattern:?} names no sysctls that a pod has of its own");
            return Err(wrong("allowed-unsafe-sysctls", problem));
        }
        let state_dir = absolute("state-dir", flags.state_dir, STATE_DIR)?;
        Ok(Self {
            allow: flags.allow.unwrap_or_default().into_iter().collect(),
            unsafe_sysctls,
            apparmor_default: flags.apparmor_default_profile,
            device_policy: flags.device_policy,
            reserved_cpus: reserved_cpus(flags.cpu_manager_policy, flags.reserved_cpus.as_deref())?,
            seccomp_profiles: match flags.seccomp_profile_root {
                None => state_dir.join("seccomp"),
                named => absolute("seccomp-profile-root", named, "")?,
            },
            state_dir,
            run_dir: absolute("run-dir", flags.run_dir, RUN_DIR)?,
            vkubelet: flags.vkubelet,
            data_plane,
            pod_cidr,
            bridge,
            cgroup_parent,
            shim: shim(flags.shim).ok_or_else(|| {
                wrong("shim", format!("{SHIM} is neither beside this program nor in PATH; name it with --shim"))
            })?,
            pool_size: flags.pool_size.unwrap_or(POOL_SIZE),
            http_listen: flags.http_listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 10_272))),
            resolv_conf: flags.resolv_conf.unwrap_or_else(|| PathBuf::from("/etc/resolv.conf")),
            insecure_registries: flags.insecure_registry.unwrap_or_default(),
            registries: registries::load(flags.registries)?,
            registry_timeout: match flags.registry_timeout_seconds {
                Some(0) => return Err(wrong("registry-timeout-seconds", "0 would give every request up".to_owned())),
                seconds => seconds.map(std::time::Duration::from_secs),
            },
            concurrency: concurrency(flags.max_concurrent_layers, flags.max_concurrent_layers_per_image)?,
            oci_layouts: flags.allow_oci_layout.unwrap_or_default(),
            host_labels: host_labels(flags.host_labels.unwrap_or_default())?,
            docker_config: flags.docker_config,
            image_copies: match flags.image_copies.as_deref() {
                None | Some("shared") => Copies::Shared,
                Some("namespace") => Copies::PerDomain,
                Some(other) => return Err(wrong("image-copies", format!("{other:?} is neither shared nor namespace"))),
            },
            image_gc: watermarks(
                (flags.image_gc_high_threshold, flags.image_gc_low_threshold),
                (flags.image_gc_min_age_seconds, flags.image_gc_max_age_seconds),
            )?,
            thresholds: match flags.eviction_hard.as_deref().unwrap_or_default().parse() {
                Ok(thresholds) => thresholds,
                Err(error) => return Err(wrong("eviction-hard", ThresholdError::to_string(&error))),
            },
            capacity_milli_cpu: quantity("capacity-cpu", flags.capacity_cpu, milli)?,
            capacity_memory: quantity("capacity-memory", flags.capacity_memory, whole)?,
            max_pods: flags.max_pods.unwrap_or(MAX_PODS),
            limit_roots: flags.limit_roots.unwrap_or(true),
            policy: policy(flags.pids_limit, flags.protect_memory, flags.memory_throttling_factor)?,
            log_format: flags.log_format.unwrap_or_default(),
            otlp_endpoint: flags.otlp_endpoint,
        })
    }
}

fn reserved_cpus(policy: Option<CpuManagerPolicy>, list: Option<&str>) -> Result<Option<CpuSet>, ConfigError> {
    let wrong = |problem: String| ConfigError::Value { flag: "reserved-cpus", problem };
    match (policy.unwrap_or_default(), list) {
        (CpuManagerPolicy::None, None) => Ok(None),
        (CpuManagerPolicy::None, Some(_)) => Err(wrong("only with --cpu-manager-policy=static".to_owned())),
        (CpuManagerPolicy::Static, None) => Err(wrong(
            "needed with --cpu-manager-policy=static: the host's own work and pods without CPUs of their own \
                need at least one"
                .to_owned(),
        )),
        (CpuManagerPolicy::Static, Some(list)) => {
            let cpus = cpus::parse(list);
            cpus.map(Some).ok_or_else(|| wrong(format!("{list:?} is no list of CPUs as 0-1,4")))
        }
    }
}

/// As Kubernetes wants labels: a prefix is a name of the DNS, key and value are 63 characters at most.
fn host_labels(list: Vec<String>) -> Result<BTreeMap<String, String>, ConfigError> {
    let word = |text: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        text.len() <= 63 && text.bytes().all(inner) && edge(text.as_bytes().first()) && edge(text.as_bytes().last())
    };
    let prefix = |text: &str| {
        let part =
            |part: &str| word(part) && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        text.len() <= 253 && text.split('.').all(part)
    };
    let one = |text: String| {
        let wrong = |problem: &str| ConfigError::Value { flag: "host-labels", problem: format!("{text:?} {problem}") };
        let (key, value) = text.split_once('=').ok_or_else(|| wrong("is not KEY=VALUE"))?;
        let fits = match key.split_once('/') {
            Some(("kubernetes.io" | "nodeless.dev", _)) => return Err(wrong("is not for hosts to say")),
            Some((before, name)) => prefix(before) && word(name),
            None => word(key),
        };
        if fits && (value.is_empty() || word(value)) {
            Ok((key.to_owned(), value.to_owned()))
        } else {
            Err(wrong("is no label"))
        }
    };
    list.into_iter().map(one).collect()
}

fn concurrency(in_all: Option<usize>, per_image: Option<usize>) -> Result<Concurrency, ConfigError> {
    let usual = Concurrency::default();
    let check = |flag, number| match number {
        0 => Err(ConfigError::Value { flag, problem: "with 0 no image would ever come".to_owned() }),
        number => Ok(number),
    };
    let layers_in_all = check("max-concurrent-layers", in_all.unwrap_or(usual.layers_in_all))?;
    let per_image = per_image.unwrap_or(usual.layers_per_image.min(layers_in_all));
    Ok(Concurrency { layers_in_all, layers_per_image: check("max-concurrent-layers-per-image", per_image)? })
}

fn watermarks(
    (high, low): (Option<u64>, Option<u64>),
    (min_age, max_age): (Option<u64>, Option<u64>),
) -> Result<Watermarks, ConfigError> {
    let usual = Watermarks::default();
    let (high, low) = (high.unwrap_or(usual.high), low.unwrap_or(usual.low));
    let wrong = |flag, problem: String| Err(ConfigError::Value { flag, problem });
    if high == 0 || high > 100 {
        return wrong("image-gc-high-threshold", format!("{high} is not 1 to 100 percent"));
    }
    if low >= high {
        return wrong("image-gc-low-threshold", format!("{low} is not below the high threshold, {high}"));
    }
    let min_age = min_age.map_or(usual.min_age, std::time::Duration::from_secs);
    let max_age = max_age.map(std::time::Duration::from_secs);
    if max_age.is_some_and(|max_age| max_age < min_age) {
        return wrong("image-gc-max-age-seconds", format!("is less than the minimum age, {} s", min_age.as_secs()));
    }
    Ok(Watermarks { high, low, min_age, max_age })
}

fn policy(pids: Option<u64>, protect_memory: Option<bool>, factor: Option<f64>) -> Result<Policy, ConfigError> {
    if let Some(factor) = factor.filter(|factor| !(*factor > 0.0 && *factor <= 1.0)) {
        let problem = format!("{factor} is not above 0 and at most 1");
        return Err(ConfigError::Value { flag: "memory-throttling-factor", problem });
    }
    Ok(Policy {
        pids_limit: pids.unwrap_or(PIDS_LIMIT),
        protect_memory: protect_memory.unwrap_or(true),
        throttling_factor: factor,
    })
}

/// The one named, else beside this program, else in `PATH`.
fn shim(named: Option<PathBuf>) -> Option<PathBuf> {
    if named.is_some() {
        return named;
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|dir| dir.join(SHIM)));
    let in_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).map(|dir| dir.join(SHIM)).collect::<Vec<_>>());
    beside.into_iter().chain(in_path).find(|path| path.is_file())
}

/// This host's id unless one is given: from the machine id, so that it stays the same.
pub fn default_host_id(machine_id: &Path, hostname: &str) -> Option<HostId> {
    use sha2::Digest as _;
    let text = std::fs::read_to_string(machine_id).unwrap_or_default();
    let seed = if text.trim().is_empty() { hostname } else { text.trim() };
    let hash = hex::encode(&sha2::Sha256::digest(format!("nodeless host {seed}"))[..8]);
    HostId::new(format!("host-{hash}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> RunFlags {
        RunFlags { shim: Some("/shim".into()), ..RunFlags::default() }
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = Config::check(flags()).unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/nodeless"));
        assert_eq!(config.run_dir, Path::new("/run/nodeless"));
        assert_eq!((config.pool_size, config.max_pods, config.bridge.as_str()), (4, 110, "nodeless0"));
        assert_eq!(config.pod_cidr.to_string(), "10.88.0.0/16");
        assert_eq!(config.http_listen.to_string(), "127.0.0.1:10272");
        assert_eq!(config.data_plane, DataPlane::Host);
        assert!(config.allow.is_empty() && config.unsafe_sysctls.is_empty());
        assert_eq!(config.seccomp_profiles, Path::new("/var/lib/nodeless/seccomp"));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name_and_a_flag_decides_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "pool-sise = 3\n").unwrap();
        let error = Config::load(RunFlags { config: Some(path.clone()), ..flags() }).unwrap_err();
        assert!(crate::errors::chain(&error).contains("pool-sise"), "{}", crate::errors::chain(&error));
        std::fs::write(&path, "pool-size = 3\nbridge = \"b\"\n").unwrap();
        let config = Config::load(RunFlags { config: Some(path), pool_size: Some(7), ..flags() }).unwrap();
        assert_eq!((config.pool_size, config.bridge.as_str()), (7, "b"));
    }

    #[test]
    fn values_that_cannot_be_are_refused_by_flag() {
        for (wrong, flag) in [
            (RunFlags { pod_cidr: Some("10.0.0.0".into()), ..flags() }, "pod-cidr"),
            (RunFlags { pod_cidr: Some("10.0.0.0/31".into()), ..flags() }, "pod-cidr"),
            (RunFlags { bridge: Some("a-name-that-is-too-long".into()), ..flags() }, "bridge"),
            (RunFlags { cgroup_parent: Some("../x".into()), ..flags() }, "cgroup-parent"),
            (RunFlags { data_plane_netns: Some("x".into()), ..flags() }, "data-plane-netns"),
            (RunFlags { capacity_cpu: Some("lots".into()), ..flags() }, "capacity-cpu"),
            (RunFlags { host_id: Some("Not OK".into()), ..flags() }, "host-id"),
            (RunFlags { registry_timeout_seconds: Some(0), ..flags() }, "registry-timeout-seconds"),
            (RunFlags { max_concurrent_layers: Some(0), ..flags() }, "max-concurrent-layers"),
            (RunFlags { max_concurrent_layers_per_image: Some(0), ..flags() }, "max-concurrent-layers-per-image"),
            (RunFlags { allowed_unsafe_sysctls: Some(vec!["vm.*".into()]), ..flags() }, "allowed-unsafe-sysctls"),
            (RunFlags { cpu_manager_policy: Some(CpuManagerPolicy::Static), ..flags() }, "reserved-cpus"),
            (RunFlags { reserved_cpus: Some("0".into()), ..flags() }, "reserved-cpus"),
            (
                RunFlags {
                    cpu_manager_policy: Some(CpuManagerPolicy::Static),
                    reserved_cpus: Some("all".into()),
                    ..flags()
                },
                "reserved-cpus",
            ),
            (RunFlags { host_labels: Some(vec!["zone".into()]), ..flags() }, "host-labels"),
            (RunFlags { host_labels: Some(vec!["a/b/c=d".into()]), ..flags() }, "host-labels"),
            (RunFlags { host_labels: Some(vec!["zone=a b".into()]), ..flags() }, "host-labels"),
            (RunFlags { host_labels: Some(vec!["nodeless.dev/host=other".into()]), ..flags() }, "host-labels"),
            (RunFlags { image_gc_high_threshold: Some(101), ..flags() }, "image-gc-high-threshold"),
            (RunFlags { eviction_hard: Some("nodefs.available".into()), ..flags() }, "eviction-hard"),
            (RunFlags { image_copies: Some("pod".to_owned()), ..flags() }, "image-copies"),
            (RunFlags { image_gc_low_threshold: Some(85), ..flags() }, "image-gc-low-threshold"),
            (RunFlags { image_gc_max_age_seconds: Some(60), ..flags() }, "image-gc-max-age-seconds"),
            (RunFlags { memory_throttling_factor: Some(1.1), ..flags() }, "memory-throttling-factor"),
            (RunFlags { memory_throttling_factor: Some(f64::NAN), ..flags() }, "memory-throttling-factor"),
        ] {
            let error = Config::check(wrong).unwrap_err();
            assert!(error.to_string().contains(flag), "{error}");
        }
    }
}
