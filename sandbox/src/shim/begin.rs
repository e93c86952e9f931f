//! From a fork of the keeper to a shim: what it has from there, and how it leaves what it does not need.

use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, getpid, set_child_subreaper, set_dumpable_behavior, setsid};
use serde::{Deserialize, Serialize};

use super::own_root::{self, OwnRoot};
use super::slot::Begun;
use super::stub::report::Step;
use super::{Arguments, ShimError};
use crate::cgroup::Group;
use crate::protocol::{Connection, Refusal};
use crate::sys::process;
use crate::sys::title::Title;

/// Of the process that opens it.
const FDINFO: &str = "self/fdinfo";

/// What a shim has from the keeper: all that is open in it but the standard streams.
#[derive(Debug)]
pub(crate) struct Given<'a> {
    /// Where it gets the rest from, of whoever asked for it.
    pub(crate) supplies: OwnedFd,
    /// Its namespaces, where the sandbox has a user namespace of its own.
    pub(crate) begun: Option<Begun>,
    /// The mount namespace that it starts from.
    pub(crate) template: OwnedFd,
    /// The one that stubs start from.
    pub(crate) stage: OwnedFd,
    /// A /proc of the keeper's PID namespace.
    pub(crate) proc: OwnedFd,
    /// The null device.
    pub(crate) null: OwnedFd,
    /// The keeper's control groups, as /proc/self/cgroup tells them: the shim's are the same where the pod has none of its own.
    pub(crate) groups: &'a str,
    /// Where the command line is to be written.
    pub(crate) title: Title,
}

/// What comes on its socket for supplies. With it come descriptors: its listening socket, its record directory, the pod's cgroup
/// ([`Group::lend`]), then, where [`Namespaces::host_ipc`](crate::spec::Namespaces::host_ipc) is chosen, a detached clone of the host's
/// shared memory, the usual device program if it [comes along](Arguments::device_program), and what it writes `0` to, to be in its
/// control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supplies;

/// What it was supplied with, by what it is for.
#[derive(Debug)]
pub(super) struct Supplied {
    pub(super) listener: OwnedFd,
    pub(super) record: OwnedFd,
    pub(super) pod: Group,
    /// The host's shared memory.
    pub(super) shm: Option<OwnedFd>,
    /// The usual device program.
    pub(super) devices: Option<OwnedFd>,
    joined: Vec<OwnedFd>,
}

impl Supplied {
    /// Waits for it.
    pub(super) fn receive(supplies: OwnedFd, arguments: &Arguments) -> Result<Self, ShimError> {
        let failed = |message: String| ShimError::SetUp { operation: "hand-over of descriptors".into(), message };
        let (Supplies, fds) = Connection::new(supplies).receive().map_err(|error| failed(error.to_string()))?;
        let missing = || failed("too few came".to_owned());
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or_else(missing);
        let (listener, record) = (next()?, next()?);
        let pod = (0..arguments.cgroup.descriptors()).map(|_| next()).collect::<Result<Vec<_>, _>>()?;
        let pod = Group::receive(arguments.cgroup.clone(), pod).ok_or_else(missing)?;
        let shm = arguments.namespaces.host_ipc.then(&mut next).transpose()?;
        let devices = arguments.device_program.then(&mut next).transpose()?;
        Ok(Self { listener, record, pod, shm, devices, joined: fds.collect() })
    }

    /// Moves into the pod's control groups. Whoever is forked from now on is in them.
    pub(super) fn join(&mut self) -> Result<(), Refusal> {
        for members in std::mem::take(&mut self.joined) {
            rustix::io::write(members, b"0").step("move into a control group")?;
        }
        Ok(())
    }
}

/// Nobody may look into the shim, and it follows no terminal. Of the keeper's ways with signals none is left.
pub(super) fn isolate() -> Result<(), Refusal> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("dumpable")?;
    process::restore_signals().step("reset of signals")?;
    process::ignore_broken_pipes();
    setsid().step("session")?;
    set_child_subreaper(Some(getpid())).step("subreaper")?;
    rustix::thread::set_name(c"nodeless-shim").step("process name")
}

impl Given<'_> {
    /// Moves into a mount namespace that has the template and a /proc of the shim's own, and shows `text` as what it was told. Gives
    /// where the supplies come.
    pub(super) fn move_in(self, text: &str) -> Result<(OwnRoot, OwnedFd), Refusal> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        // Where the keeper's cannot tell, nobody can.
        let host_fdinfo = openat(self.proc, FDINFO, flags, Mode::empty()).ok();
        setns(self.template, CloneFlags::CLONE_NEWNS).step("entry into the template namespace")?;
        unshare(CloneFlags::CLONE_NEWNS).step("private mount namespace")?;
        own_root::keep(&own_root::make_proc()?, own_root::PROC)?;
        crate::sys::failpoint::failpoint!(ChildIsolated);
        rustix::stdio::dup2_stdin(&self.null).step("standard input")?;
        rustix::stdio::dup2_stdout(&self.null).step("standard output")?;
        self.title.show(&["nodeless-shim", "shim", text]);
        crate::sys::failpoint::failpoint!(ChildExecuting);
        Ok((OwnRoot { stage: self.stage, host_fdinfo }, self.supplies))
    }
}
