//! What every sandbox kind must do.
//!
//! # Vocabulary
//! A *sandbox* is a pod's place: network, IPC and UTS namespaces, one user namespace, a cgroup with a leaf for the shim
//! and one for each container. A *container* is one process tree in it with its own root, mount and PID namespace.
//!
//! # A whole use
//! ```text
//! prepare()                     take a warm sandbox: namespaces and cgroups exist, network namespace can be configured
//! prepare_as()                  the same with other namespaces than usual: made for it, never warm
//! configure(id, spec)           it is this pod's now
//! start(id, container)          from spec to a running process; returns when exec has succeeded or failed
//! exec, attach, pause, resume   further processes, further listeners, a stop and a go, as often as one likes
//! events(id)                    exits (with true times and OOM marks), also those from before the call
//! destroy(id)                   everything released; idempotent, resumable
//! ```
//!
//! After an agent restart `list()` gives every sandbox that still lives; `events` replays every exit since the sandbox
//! was made, so nothing that happened meanwhile is lost.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::spec::{ContainerName, ContainerSpec, ExecSpec, Namespaces, Resources, SandboxId, SandboxSpec};

/// A sandbox kind. Every method is safe to repeat with the same arguments. What one caller asks of a sandbox that it has
/// prepared is done in the order in which it is first polled: a start may be asked for before the answer to `configure` is there,
/// and is refused where that is.
#[async_trait]
pub trait Sandboxes: Send + Sync {
    /// Takes a warm sandbox (or makes one), under `id`, which the caller has written down before the call.
    async fn prepare(&self, id: &SandboxId) -> Result<Prepared, SandboxError> {
        self.prepare_as(id, &Namespaces::default()).await
    }
    /// Takes a sandbox with these namespaces, which its [`SandboxSpec`] must name again.
    async fn prepare_as(&self, id: &SandboxId, namespaces: &Namespaces) -> Result<Prepared, SandboxError>;
    /// Makes the prepared sandbox the pod's: host name, sysctls, limits.
    async fn configure(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<(), SandboxError>;
    /// Starts a container; returns when its program has been executed, or why it was not.
    async fn start(&self, id: &SandboxId, container: &ContainerSpec) -> Result<Started, SandboxError>;
    /// Runs a further process in a container with the given standard streams.
    async fn exec(&self, id: &SandboxId, exec: &ExecSpec, stdio: Stdio) -> Result<Box<dyn ExecProcess>, SandboxError>;
    /// Connects streams with those of a running container, from now on: what it wrote before is in its log only. Up to
    /// [`MOST_ATTACHERS`] may be attached; the log goes on. `stdin` is for a container that has one ([`ContainerSpec::stdin`]);
    /// with a terminal there is no `stderr`, which is closed at once. Whoever reads too slowly is cut off
    /// ([`Detached::TooSlow`]): nobody waits for an attacher.
    async fn attach(&self, id: &SandboxId, container: &str, stdio: Stdio) -> Result<Box<dyn Attachment>, SandboxError>;
    /// Stops a container's processes where they are; returns when none runs any more. Until [`Sandboxes::resume`] nothing
    /// can be executed in it and signals wait, but SIGKILL and `destroy` do what they always do.
    async fn pause(&self, id: &SandboxId, container: &str) -> Result<(), SandboxError>;
    /// Lets a paused container go on. One that is not paused goes on as it does.
    async fn resume(&self, id: &SandboxId, container: &str) -> Result<(), SandboxError>;
    /// Sends a signal to a container's first process, or to all of its processes.
    async fn signal(&self, id: &SandboxId, container: &str, signal: i32, all: bool) -> Result<(), SandboxError>;
    /// Changes a container's limits in place (`None`: the pod's).
    async fn update(&self, id: &SandboxId, container: Option<&str>, resources: &Resources) -> Result<(), SandboxError>;
    /// Resource use now.
    async fn stats(&self, id: &SandboxId) -> Result<SandboxStats, SandboxError>;
    /// Bytes in those roots of its containers whose files cannot be counted in their writable directories
    /// ([`crate::spec::Rootfs::writable_limit`]), as far as this backend has started them.
    fn written(&self, _id: &SandboxId) -> BTreeMap<ContainerName, u64> {
        BTreeMap::new()
    }
    /// Everything that happened to the sandbox's containers, from the beginning, then live. The stream ends when the
    /// sandbox is destroyed; an item `Lost` says that the shim died and its containers with it.
    async fn events(&self, id: &SandboxId) -> Result<tokio::sync::mpsc::Receiver<SandboxEvent>, SandboxError>;
    /// Kills what runs and releases everything. Destroying what does not exist succeeds.
    async fn destroy(&self, id: &SandboxId) -> Result<(), SandboxError>;
    /// Every sandbox on this host that has not been destroyed, warm ones not included.
    async fn list(&self) -> Result<Vec<Listed>, SandboxError>;
}

/// A sandbox ready to be configured.
#[derive(Debug)]
pub struct Prepared {
    /// Which one.
    pub id: SandboxId,
    /// Its network namespace, to be given addresses and links by the caller.
    pub netns: OwnedFd,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// PID of the container's first process on the host.
    pub pid: u32,
    /// CLOCK_BOOTTIME in nanoseconds at its exec.
    pub boottime_ns: u64,
    /// CLOCK_REALTIME in nanoseconds since 1970 at its exec.
    pub wall_ns: u64,
}

/// Where an exec'd process's streams go; `None` is /dev/null. With a terminal all three are the terminal's other side.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// A running exec.
#[async_trait]
pub trait ExecProcess: Send {
    /// Waits for its end. May be given up and called again, and told again what was told before.
    async fn wait(&mut self) -> Result<Exit, SandboxError>;
    /// Signals it.
    async fn signal(&mut self, signal: i32) -> Result<(), SandboxError>;
    /// Changes the terminal's size (columns, rows).
    async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), SandboxError>;
}

/// Attachments that a container may have at a time.
pub const MOST_ATTACHERS: usize = 16;

/// Streams connected with a container's. Dropping it detaches and leaves the container as it is, but for the standard input
/// of a container that has it for one attacher only ([`ContainerSpec::stdin_once`]).
#[async_trait]
pub trait Attachment: Send {
    /// Waits until nothing more will come, and says why. May be given up and called again.
    async fn wait(&mut self) -> Result<Detached, SandboxError>;
    /// Changes the size (columns, rows) of the container's terminal, which all who are attached share.
    async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), SandboxError>;
}

/// Why an attachment is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detached {
    /// The container has ended, and all of its output was passed on.
    Ended,
    /// Output was not taken in time: some is missing, the rest is in the log.
    TooSlow,
    /// Its streams were closed from this side.
    Closed,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status 0 to 255, or 128 + signal.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The kernel's OOM killer ended a process of this container.
    pub oom_killed: bool,
    /// CLOCK_BOOTTIME in nanoseconds when it was reaped.
    pub boottime_ns: u64,
    /// CLOCK_REALTIME in nanoseconds since 1970 when it was reaped.
    pub wall_ns: u64,
}

/// Something that happened in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxEvent {
    /// A container's program was executed.
    Started {
        /// Which container.
        container: ContainerName,
        /// Which attempt of it.
        attempt: u32,
        /// When and as what.
        started: Started,
    },
    /// A container's first process wrote its first byte of output.
    FirstByte {
        /// Which container.
        container: ContainerName,
        /// Which attempt of it.
        attempt: u32,
        /// CLOCK_BOOTTIME in nanoseconds.
        boottime_ns: u64,
    },
    /// A container ended.
    Exited {
        /// Which container.
        container: ContainerName,
        /// Which attempt of it.
        attempt: u32,
        /// How.
        exit: Exit,
    },
    /// The shim is gone; its containers are dead.
    Lost {
        /// CLOCK_BOOTTIME in nanoseconds when it was noticed.
        boottime_ns: u64,
    },
}

/// One sandbox found on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Which one.
    pub id: SandboxId,
    /// Labels from its [`SandboxSpec`]; empty when it was never configured.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Its shim answers.
    pub alive: bool,
}

/// Resource use of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStats {
    /// The whole pod.
    pub pod: Usage,
    /// Each container that runs.
    pub containers: std::collections::BTreeMap<ContainerName, Usage>,
}

/// Resource use of one cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time used since it was made, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// Memory in use without what can be dropped (the kubelet's working set), in bytes.
    pub memory_working_set_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Why a sandbox operation failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The sandbox or container is not there (asked and answered, not "could not ask").
    #[error("{what} does not exist")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The specification cannot be carried out; trying again will not help.
    #[error("{message}")]
    Invalid {
        /// What is wrong and where.
        message: String,
    },
    /// This sandbox cannot do that: its shim is of an older version.
    #[error("{what}: its sandbox was made by an older version, which cannot do that")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// The container's program could not be executed (not found, not executable, working directory …); the kubelet's `RunContainerError`.
    #[error("{message}")]
    Exec {
        /// As a container runtime would word it.
        message: String,
        /// The exit code that Kubernetes reports: 127 not found, 126 not executable, 128 otherwise.
        code: i32,
    },
    /// The keeper or shim could not be asked.
    #[error("{operation} failed")]
    Unavailable {
        /// What was tried.
        operation: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused a step.
    #[error("{operation} failed: {message}")]
    Failed {
        /// Which step.
        operation: String,
        /// The kernel's or the shim's words.
        message: String,
    },
}
