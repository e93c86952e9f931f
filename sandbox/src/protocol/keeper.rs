//! Messages between the agent's backend and the keeper, on `RUN_DIR/keeper.sock` (0600, peer's uid checked).

use serde::{Deserialize, Serialize};

use super::Versions;
use crate::spec::Layer;

/// What the keeper can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// First on every connection. Answer: [`Reply::Hello`].
    Hello {
        /// What the caller speaks.
        versions: Versions,
    },
    /// Are you there? Answer: [`Reply::Pong`].
    Ping,
    /// Mount these layers, if they are not mounted yet, and give a detached clone of each.
    /// Answer: [`Reply::Mounted`] with as many descriptors as layers, in their order (each an
    /// `open_tree(OPEN_TREE_CLONE)` mount, read-only, nodev, not idmapped, never attached anywhere).
    Mount {
        /// Lowest first; repeats are allowed.
        layers: Vec<Layer>,
    },
    /// Drop the keeper's own mounts of these layers (clones handed out live on). Unknown ids are passed over.
    /// Answer: [`Reply::Done`].
    Release {
        /// Layer identities.
        ids: Vec<String>,
    },
    /// Start a shim. Descriptors: as `fds` says, in that order. Answer: [`Reply::Spawned`] with the shim's pidfd.
    Spawn(Spawn),
    /// Everything the keeper holds. Answer: [`Reply::Listed`].
    List,
}

impl Request {
    /// Names of all requests, as they are on the wire.
    pub const NAMES: [&str; 6] = ["hello", "ping", "mount", "release", "spawn", "list"];
}

/// A shim to start.
///
/// The keeper clones a child with `CLONE_NEWNS | CLONE_NEWPID` (and `CLONE_PIDFD`; `CLONE_INTO_CGROUP` where asked) from
/// an almost empty, private mount namespace. **The shim is PID 1 of a PID namespace of its own**: whenever it dies, the
/// kernel kills every process of its containers with it. In the child: own session, standard streams on /dev/null
/// (standard error may go to the keeper's), everything closed but what is for it, a command line as if
/// `nodeless-shim shim ARGUMENT` had been executed; but it goes on in the keeper's program, which is a copy that nobody can change. The shim itself mounts its own /proc.
///
/// Before it, where the sandbox is to have a user namespace, the keeper clones who makes that and, meanwhile, what it owns; the shim
/// enters them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// The slot it serves; unique among living shims.
    pub slot: String,
    /// What the shim is told: one argument.
    pub arguments: Vec<String>,
    /// What each descriptor of the frame is for.
    pub fds: Vec<FdRole>,
    /// It stays in the keeper's PID namespace: its containers are to see the host's processes. Then nothing but control groups
    /// ends them when it dies.
    #[serde(default)]
    pub host_pid: bool,
}

/// What a descriptor that goes with [`Request::Spawn`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FdRole {
    /// A stream socket, on which the shim will be sent the rest: see [`Supplies`](crate::shim::Supplies).
    Supplies,
    /// A cgroup v2 directory: the shim is cloned into it.
    CgroupDirectory,
    /// What agents up to the first of version 3 had handed to the shim before it began. Refused: an agent has a keeper of its own
    /// program.
    Keep,
    /// The v1 groups that they had it join. Refused likewise.
    CgroupProcs,
}

/// What the keeper answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "re", rename_all = "snake_case")]
pub enum Reply {
    /// To `Hello`.
    Hello {
        /// The version spoken from now on.
        version: u32,
        /// The keeper's process.
        pid: u32,
        /// SHA-256, in hexadecimal, of the program that it runs and its shims will. Since version 2.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        program: Option<String>,
    },
    /// To `Ping`.
    Pong,
    /// To `Mount`.
    Mounted,
    /// To `Release`.
    Done,
    /// To `Spawn`.
    Spawned {
        /// The shim's process, in the keeper's PID namespace.
        pid: u32,
    },
    /// To `List`.
    Listed {
        /// Living shims that this keeper started (not those of a keeper before it).
        shims: Vec<Shim>,
        /// Identities of mounted layers.
        layers: Vec<String>,
    },
}

/// A shim that the keeper parents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shim {
    /// Its slot.
    pub slot: String,
    /// Its process.
    pub pid: u32,
}
