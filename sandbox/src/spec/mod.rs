//! What a sandbox and a container are, as data. Names follow the OCI runtime specification.
//!
//! All of it is serialised to the shim as JSON; every field added later must have a serde default, because an
//! agent must be able to re-adopt shims that an older or newer agent started.

mod mount;
mod security;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use mount::Mount;
pub use security::{
    ALL_CAPABILITIES, DEFAULT_CAPABILITIES, DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS, Device, Seccomp, Security,
};

/// Names one sandbox on one host: 1 to 63 characters of `[a-z0-9-]`, unique for ever on that host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(pub String);

impl std::fmt::Display for SandboxId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one container of a sandbox; the Kubernetes container name, unique in the pod at any one time.
pub type ContainerName = String;

/// One layer snapshot: an EROFS image file that this host's own converter has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The layer's identity (an OCI chain id, `sha256:…`); equal ids mean equal files.
    pub id: String,
    /// The EROFS image file on the host.
    pub path: PathBuf,
}

/// What a container's root is made of: the one value that image-snapshot produces and this crate consumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Layers, the lowest first; 1 to 128 of them.
    pub layers: Vec<Layer>,
    /// Directory on the host that holds the writable part (`upper` and `work` are made in it); it must be on a
    /// filesystem that can be an overlay's upper. `None` with a read-only root that needs no writable part.
    pub writable: Option<PathBuf>,
    /// Bytes that can be written there; what exceeds them fails with `ENOSPC` or `EDQUOT`, up to a sixteenth and 2 MiB later.
    /// With a limit the directory may be found empty by each start. `None`: as many as its file system has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writable_limit: Option<u64>,
}

/// A whole pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Host name inside the sandbox.
    pub hostname: String,
    /// Sysctls of the pod's own namespaces, dotted names, already checked against policy.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Containers see one another's processes; the shim's pod init is PID 1.
    #[serde(default)]
    pub share_process_namespace: bool,
    /// Limits of the whole pod's cgroup.
    #[serde(default)]
    pub resources: Resources,
    /// Directory on the host that receives the containers' log directories (CRI layout, `NAME/ATTEMPT.log`).
    pub log_dir: PathBuf,
    /// Bytes a second that each container's log may grow by. A container that writes more waits in its `write`.
    #[serde(default = "log_bytes_per_second")]
    pub log_bytes_per_second: u64,
    /// Free-form labels shown by tools and returned by `list` (pod uid, name, namespace).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it was prepared with; refused when it was prepared with something else.
    #[serde(default)]
    pub namespaces: Namespaces,
}

/// Which namespaces a sandbox has of its own. Its shim is born with them, so they are chosen when a sandbox is prepared;
/// every choice but the default gets a sandbox made for it alone, never a warm one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// A user namespace. Without one the container's ids are the host's, and nothing but capabilities, the filter and the
    /// mounts stand between them.
    pub user: bool,
    /// The host's network namespace. This and the next two only without a user namespace of its own.
    pub host_network: bool,
    /// The host's PID namespace.
    pub host_pid: bool,
    /// The host's IPC namespace and shared memory.
    pub host_ipc: bool,
    /// Ids from 65536 on that its containers use. Its user namespace has those below 65536, and of those above, for each of
    /// these the 8192 around it (the aligned ones), eight times at most; they have host ids of this sandbox's own too.
    pub high_ids: BTreeSet<u32>,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self { user: true, host_network: false, host_pid: false, host_ipc: false, high_ids: BTreeSet::new() }
    }
}

impl Namespaces {
    /// What is wrong with the choice, if anything.
    ///
    /// # Errors
    /// The message for whoever chose.
    pub fn check(&self) -> Result<(), String> {
        let hosts = self.host_network || self.host_pid || self.host_ipc;
        if self.user && hosts {
            return Err("the host's network, PID or IPC namespace and a user namespace exclude each other".to_owned());
        }
        crate::ids::Ids::of(0, self).map(drop)
    }

    /// Whether the sandbox has this id: see [`Self::high_ids`].
    #[must_use]
    pub fn has_id(&self, id: u32) -> bool {
        crate::ids::Ids::of(0, self).is_ok_and(|ids| ids.on_host(id).is_some())
    }
}

/// A log's growth when nothing else is said: 64 MiB a second.
pub const LOG_BYTES_PER_SECOND: u64 = 64 << 20;

fn log_bytes_per_second() -> u64 {
    LOG_BYTES_PER_SECOND
}

/// One container to start in a sandbox. A restarted container is a new `attempt` of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The container's name.
    pub name: ContainerName,
    /// 0 for the first start, one more for each restart.
    pub attempt: u32,
    /// Program and arguments; `args[0]` is looked up in the container's `PATH` when it holds no slash.
    pub args: Vec<String>,
    /// Environment, `(name, value)`, in order, no duplicates.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute; created when absent, as the kubelet's runtimes do.
    pub cwd: String,
    /// Who runs it, in the container's own ids.
    pub user: User,
    /// The root filesystem.
    pub rootfs: Rootfs,
    /// The root is mounted read-only.
    #[serde(default)]
    pub readonly_rootfs: bool,
    /// Volume mounts, in order. The default mounts (/proc, /dev, /sys, /dev/shm …) are the sandbox's own work.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Limits of this container's cgroup leaf.
    #[serde(default)]
    pub resources: Resources,
    /// Security settings.
    #[serde(default)]
    pub security: Security,
    /// Signal that asks it to stop (number); 15 unless the image says otherwise.
    #[serde(default = "sigterm")]
    pub stop_signal: i32,
    /// Keep standard input open (otherwise /dev/null).
    #[serde(default)]
    pub stdin: bool,
    /// Close standard input when the first attacher that has it is gone or has no more of it.
    #[serde(default)]
    pub stdin_once: bool,
    /// Give it a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Join the PID namespace of this running container instead of having one (an ephemeral container's
    /// `targetContainerName`); it ends with it at the latest. Where all share one namespace this says nothing new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<ContainerName>,
}

impl ContainerSpec {
    /// Whether any of its mounts is an image.
    pub(crate) fn has_images(&self) -> bool {
        self.mounts.iter().any(|mount| !mount.layers.is_empty())
    }
}

fn sigterm() -> i32 {
    15
}

/// A process's identity, in ids of the container's user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids (the primary one included or not, as the caller decides).
    #[serde(default)]
    pub additional_gids: Vec<u32>,
}

/// Limits and weights; `None` means no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CPU weight as cgroup v1 shares (2 to 262144); v2 hosts convert it.
    pub cpu_shares: Option<u64>,
    /// CPU time in microseconds per `cpu_period_us`.
    pub cpu_quota_us: Option<u64>,
    /// Period of the quota in microseconds; 100000 when absent.
    pub cpu_period_us: Option<u64>,
    /// Memory limit in bytes; swap is always off.
    pub memory_limit: Option<u64>,
    /// Memory in bytes that is never reclaimed from it (v2; the kernel takes from others first, or kills).
    pub memory_min: Option<u64>,
    /// Memory in bytes that is reclaimed from it only when nothing else is left to be (v2).
    pub memory_low: Option<u64>,
    /// Memory in bytes above which it is slowed down and reclaimed from (v2).
    pub memory_high: Option<u64>,
    /// Bytes of huge pages by page size as the kernel names it (`2MB`, `1GB`); sizes that are not named are not limited.
    pub hugepages: BTreeMap<String, u64>,
    /// The CPUs that it may run on, as the kernel lists them (`0-2,5`). Needs a backend opened for it
    /// ([`crate::namespace::NamespaceSandboxes::open_with_cpusets`]); without a list a change leaves them as they are.
    pub cpuset: Option<String>,
    /// Most processes and threads.
    pub pids_limit: Option<u64>,
    /// `oom_score_adj` of its processes, -1000 to 1000; 0 when it is not given.
    pub oom_score_adj: Option<i32>,
}

/// A further process in a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The container it joins.
    pub container: ContainerName,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Added to (and overriding) the container's environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; the container's own when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// A terminal of this size (columns, rows).
    #[serde(default)]
    pub tty: Option<(u16, u16)>,
}
