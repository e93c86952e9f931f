//! Messages between the agent's backend and a shim, on the sandbox's `shim.sock` (0600, peer's uid checked).
//!
//! Any number of clients may be connected. Answers come in any order; notices may come between them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Answer, Versions};
use crate::contract::{Detached, Exit, SandboxEvent, Started};
use crate::spec::{ContainerSpec, ExecSpec, Resources, SandboxSpec};

/// What a shim can be asked.
#[allow(clippy::large_enum_variant, reason = "one at a time, on its way to or from JSON")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// First on every connection. Answer: [`Reply::Hello`].
    Hello {
        /// What the caller speaks.
        versions: Versions,
    },
    /// Who are you, what runs? Answer: [`Reply::Status`] with the network namespace's descriptor.
    Status,
    /// Is everything made that can be made before an order? Answer: [`Reply::Done`], when it is. Since version 2.
    Settle,
    /// Make the root of the first container ahead, of these descriptors: detached clones of the layers' mounts, lowest first, and
    /// last one of the writable directory's. Answer: [`Reply::Done`]; or a refusal, and all is as it was. Since version 2.
    Assemble,
    /// Become this pod's. One descriptor: the pod's log directory. Answer: [`Reply::Done`].
    Configure {
        /// The pod.
        spec: SandboxSpec,
    },
    /// Start a container. Descriptors as [`StartFds`] counts them. Answer: [`Reply::Started`].
    Start {
        /// The container.
        spec: ContainerSpec,
        /// What descriptors came with it.
        fds: StartFds,
    },
    /// Run a further process. Descriptors: those of stdin, stdout, stderr that are present, in this order.
    /// Answer: [`Reply::ExecStarted`], with the terminal's master descriptor when one was asked for; its end is told
    /// to this connection only, by [`Notice::ExecExited`].
    Exec {
        /// The process.
        spec: ExecSpec,
        /// Which of stdin, stdout, stderr came with it.
        stdio: [bool; 3],
    },
    /// Signal an exec'd process. Answer: [`Reply::Done`].
    ExecSignal {
        /// Which exec.
        exec: u64,
        /// The signal's number.
        signal: i32,
    },
    /// Connect with a running container's streams. Descriptors: those of stdin (to be read from), stdout and stderr (to be
    /// written to, both pipes of the caller's making) that are present, in this order. Answer: [`Reply::Attached`]; its end
    /// is told to this connection only, by [`Notice::Detached`]. Since version 2.
    Attach {
        /// The container's name.
        container: String,
        /// Which of stdin, stdout, stderr came with it.
        streams: [bool; 3],
    },
    /// Change the size of a container's terminal. Answer: [`Reply::Done`]. Since version 2.
    Resize {
        /// The container's name.
        container: String,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Stop a container's processes. Answer: [`Reply::Done`], once none runs. Since version 2.
    Pause {
        /// The container's name.
        container: String,
    },
    /// Let them go on. Answer: [`Reply::Done`]. Since version 2.
    Resume {
        /// The container's name.
        container: String,
    },
    /// Signal a container. Answer: [`Reply::Done`].
    Signal {
        /// The container's name.
        container: String,
        /// The signal's number.
        signal: i32,
        /// All of its processes, not just the first.
        all: bool,
    },
    /// Change limits. Answer: [`Reply::Done`].
    Update {
        /// Of which container; the pod's when absent.
        container: Option<String>,
        /// The new limits.
        resources: Resources,
    },
    /// Tell this connection everything that has happened, and from now on happens. Answer: [`Reply::Done`], then
    /// [`Notice::Event`]s.
    Subscribe,
    /// Kill all containers, remove their cgroups, and exit. Answer: [`Reply::Done`], just before the shim is gone.
    Shutdown,
}

impl Request {
    /// The version that added it, or what it asks for.
    pub fn since(&self) -> u32 {
        match self {
            Self::Settle
            | Self::Assemble
            | Self::Attach { .. }
            | Self::Resize { .. }
            | Self::Pause { .. }
            | Self::Resume { .. } => 2,
            // Who does not know of these mounts the first layer alone.
            Self::Start { spec, .. } if spec.has_images() => 3,
            Self::Start { spec, fds } if spec.target.is_some() || fds.assembled => 2,
            _ => 1,
        }
    }

    /// Its name, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Status => "status",
            Self::Settle => "settle",
            Self::Assemble => "assemble",
            Self::Configure { .. } => "configure",
            Self::Start { spec, .. } if spec.has_images() => "start with an image as a volume",
            Self::Start { spec, .. } if spec.target.is_some() => "start with a target",
            Self::Start { .. } => "start",
            Self::Exec { .. } => "exec",
            Self::ExecSignal { .. } => "exec_signal",
            Self::Attach { .. } => "attach",
            Self::Resize { .. } => "resize",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Signal { .. } => "signal",
            Self::Update { .. } => "update",
            Self::Subscribe => "subscribe",
            Self::Shutdown => "shutdown",
        }
    }

    /// Names of all requests, as they are on the wire.
    pub const NAMES: [&str; 16] = [
        "hello",
        "status",
        "settle",
        "assemble",
        "configure",
        "start",
        "exec",
        "exec_signal",
        "attach",
        "resize",
        "pause",
        "resume",
        "signal",
        "update",
        "subscribe",
        "shutdown",
    ];
}

/// The descriptors of a `Start`, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartFds {
    /// Detached clones of the layers' mounts, lowest first.
    pub layers: usize,
    /// 1 when a detached clone of the writable directory's mount is among them.
    pub writable: usize,
    /// Detached clones of the volumes' mounts, in the order of `ContainerSpec::mounts`; for an image those of its layers.
    pub mounts: usize,
    /// The root is the one that was made ahead; then there are neither layers nor a writable directory among them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub assembled: bool,
}

impl StartFds {
    /// How many in all.
    pub fn total(self) -> usize {
        self.layers + self.writable + self.mounts
    }
}

/// What a shim answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "re", rename_all = "snake_case")]
pub enum Reply {
    /// To `Hello`.
    Hello {
        /// The version spoken from now on.
        version: u32,
    },
    /// To `Status`.
    Status(Status),
    /// Carried out.
    Done,
    /// To `Start`.
    Started(Started),
    /// To `Exec`.
    ExecStarted {
        /// By which number it is known.
        exec: u64,
        /// Its process on the host.
        pid: u32,
    },
    /// To `Attach`.
    Attached {
        /// By which number it is known.
        attach: u64,
    },
}

/// A shim's own account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// It has been configured.
    pub configured: bool,
    /// Labels of its pod.
    pub labels: BTreeMap<String, String>,
    /// Containers that run, by name, with the name of their cgroup leaf.
    pub running: BTreeMap<String, String>,
    /// SHA-256, in hexadecimal, of the program that it runs, as its keeper knew it. Since version 2.
    pub program: Option<String>,
    /// Those of them that are paused.
    pub paused: BTreeSet<String>,
    /// It has a root made ahead. Since version 2.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub assembled: bool,
}

/// What a shim tells unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
pub enum Notice {
    /// To subscribers.
    Event(SandboxEvent),
    /// To the connection that started the exec.
    ExecExited {
        /// Which.
        exec: u64,
        /// How.
        exit: Exit,
    },
    /// To the connection that attached. Since version 2.
    Detached {
        /// Which attachment.
        attach: u64,
        /// Why it is over.
        why: Detached,
    },
}

/// Anything that a shim sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FromShim {
    /// An answer to a call.
    Answer(Answer<Reply>),
    /// A notice.
    Notice(Notice),
    /// Something that a later version says.
    Unknown(Unknown),
}

/// What can be told of a message that this version does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// It answers this call.
    #[serde(default)]
    pub id: Option<u64>,
}
