//! What the shim knows of a container and of an exec'd process.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::process::Pid;

use super::attach::{Attacher, Stdin};
use super::log::rate::Rate;
use super::poller::Key;
use crate::cgroup::Group;
use crate::contract::Started;
use crate::protocol::{Connection, Refusal};
use crate::spec::{ContainerSpec, ExecSpec};
use crate::sys::lend::Lender;

/// Who waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiter {
    /// The client.
    pub(crate) client: Key,
    /// Its call.
    pub(crate) call: u64,
}

/// How far a stub is.
#[derive(Debug)]
pub(crate) enum Launch {
    /// Its report is being read.
    Stub {
        /// The channel.
        report: Connection,
        /// The channel's key.
        key: Key,
        /// `Executing` has come.
        executing: bool,
        /// A terminal's master side has come.
        master: Option<OwnedFd>,
        /// A refusal has come.
        refusal: Option<Refusal>,
    },
    /// Its program runs.
    Running,
    /// It was refused; who waits is told so once it has ended and nothing of it is left.
    Refused(Refusal),
}

/// What a process is.
#[derive(Debug)]
pub(crate) enum Role {
    /// A container's first process.
    Init(Box<Container>),
    /// An exec'd process.
    Exec {
        /// Its number for clients.
        exec: u64,
        /// What it was asked to be.
        spec: ExecSpec,
        /// The client that asked and is told its end.
        client: Key,
        /// What the container's leaf had counted of OOM kills before, and when it ended if it did first.
        oom_kills: OomKills,
    },
}

/// OOM kills in the leaf of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OomKills {
    /// When the process began.
    pub(crate) before: u64,
    /// When the container ended, if that was before the process's own end was told.
    pub(crate) at_end: Option<u64>,
}

/// A child of the shim.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) launch: Launch,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) role: Role,
}

/// A container that runs or is about to.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) spec: Rc<ContainerSpec>,
    pub(crate) leaf: Group,
    /// Whose memory its stub has, until its program runs.
    pub(crate) lender: Option<Lender>,
    pub(crate) started: Option<Started>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) stdin: Option<Stdin>,
    pub(crate) log: super::log::LogWriter,
    pub(crate) rate: Rate,
    pub(crate) first_byte: bool,
    pub(crate) attached: Vec<Attacher>,
    /// Its leaf is frozen.
    pub(crate) paused: bool,
    /// Forks what joins it, once something has.
    pub(crate) joiner: Option<Key>,
    /// The mounts that it was made of, until it has ended. Whoever closes the last descriptor of a detached mount waits for
    /// an RCU grace period; without these that would be the stub, on its way to the program.
    #[expect(dead_code, reason = "held, not used")]
    pub(crate) mounts: Vec<OwnedFd>,
}

/// One stream of a container's output.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) key: Key,
    pub(crate) fd: OwnedFd,
    pub(crate) stream: super::log::Stream,
}

impl Container {
    /// The name of an attempt's own cgroup leaf.
    pub(crate) fn leaf_name(spec: &ContainerSpec) -> String {
        format!("{}.{}", spec.name, spec.attempt)
    }
}
