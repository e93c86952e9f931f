//! A process that waits in a container's control groups, and forks those that join the container.
//!
//! Joining a v1 control group takes a lock that all forks of the host share: microseconds at best, milliseconds when an RCU
//! grace period is waited for, six times for one `exec`. A child of a process that is in them already is in them at once. So
//! the first exec into a container leaves such a process behind, for the next ones (probes come again and again). It is in
//! the shim's PID namespace, out of the container's sight, and its children are the shim's. On v2 a process is cloned into
//! its group, and nobody waits.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::launch::{open_pid_namespace, report_channel};
use super::poller::Key;
use super::server::Shim;
use super::stub::mounts::CgroupView;
use super::stub::report::Step;
use super::stub::{self, Joining, Shared};
use crate::cgroup::Group;
use crate::ids::Ids;
use crate::protocol::{Connection, Refusal};
use crate::seccomp;
use crate::sys::clone::{Child, fork_beside, fork_with};
use crate::sys::process;

/// How long it may take to fork.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The waiting process.
#[derive(Debug)]
pub(crate) struct Joiner {
    child: Child,
    channel: Connection,
}

/// What it answers to a [`Joining`]; with the child's descriptor.
#[derive(Debug, Serialize, Deserialize)]
enum Joined {
    /// The child's number.
    Forked(i32),
    /// There is none.
    Failed(String),
}

impl Shim {
    /// Has the container's joiner fork a process. `fds`: its report channel, then its streams unless it gets a terminal.
    /// `None`: there is no joiner, and nothing was asked of one.
    pub(super) fn fork_by_joiner(
        &mut self,
        container: Key,
        joining: &Joining,
        fds: Vec<OwnedFd>,
    ) -> Option<Result<Child, Refusal>> {
        let mut joiner = match super::attach::init_of(&mut self.processes, container)?.joiner.take() {
            Some(joiner) => joiner,
            None => self.make_joiner(container)?,
        };
        if joiner.channel.send(joining, fds).is_err() {
            joiner.end();
            return None;
        }
        match joiner.answer() {
            Ok(Ok(child)) => {
                if let Some(container) = super::attach::init_of(&mut self.processes, container) {
                    container.joiner = Some(joiner);
                }
                Some(Ok(child))
            }
            Ok(Err(refusal)) | Err(refusal) => {
                joiner.end();
                Some(Err(refusal))
            }
        }
    }

    fn make_joiner(&self, container: Key) -> Option<Joiner> {
        let process = self.processes.get(&container)?;
        let super::container::Role::Init(known) = &process.role else { return None };
        if known.leaf.clone_into().is_some() {
            return None;
        }
        let namespace = open_pid_namespace(process.pid).ok()?;
        let (ours, theirs) = report_channel().ok()?;
        let parts = Parts {
            user: self.slot.user.as_ref(),
            ids: &self.slot.ids,
            cgroups: &self.view,
            init: &process.pidfd,
            namespace: &namespace,
        };
        let child = fork_with(0, None, || parts.serve(&known.leaf, theirs)).ok()?;
        Some(Joiner { child, channel: Connection::new(ours) })
    }
}

impl Joiner {
    fn answer(&mut self) -> Result<Result<Child, Refusal>, Refusal> {
        let socket = self.channel.socket();
        let ready = poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], Some(&PATIENCE));
        if ready.step("wait for the fork of a process")? == 0 {
            return Err(Refusal::failed("fork of the process", &std::io::ErrorKind::TimedOut.into()));
        }
        let failed = |error| Refusal::failed("fork of the process", &std::io::Error::other(error));
        let (answer, fds) = self.channel.receive::<Joined>().map_err(failed)?;
        match (answer, fds.into_iter().next()) {
            (Joined::Forked(number), Some(pidfd)) => match Pid::from_raw(number) {
                Some(pid) => Ok(Ok(Child { pid, pidfd })),
                None => Ok(Err(Refusal::Invalid { message: "a process without a number was forked".into() })),
            },
            (Joined::Forked(_), None) => Ok(Err(Refusal::Invalid { message: "a process without a descriptor".into() })),
            (Joined::Failed(message), _) => {
                Ok(Err(Refusal::Failed { operation: "fork of the process".into(), message, errno: None }))
            }
        }
    }

    /// Ends it; it is collected as all children are.
    fn end(&self) {
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
    }
}

/// Closes every descriptor but the standard ones and these, which get the numbers from 3 on.
fn keep_only(fds: &[Option<&OwnedFd>]) -> std::io::Result<Vec<OwnedFd>> {
    let count = i32::try_from(fds.len()).unwrap_or(i32::MAX);
    let above = |fd: &&OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3 + count);
    let sources = fds.iter().flatten().map(above).collect::<rustix::io::Result<Vec<_>>>()?;
    let mut next = 3;
    let mut kept = Vec::with_capacity(sources.len());
    for source in &sources {
        // Whoever owned the number drops nothing any more.
        let mut target = ManuallyDrop::new(process::adopt(next));
        rustix::io::dup3(source, &mut target, rustix::io::DupFlags::CLOEXEC)?;
        kept.push(ManuallyDrop::into_inner(target));
        next += 1;
    }
    std::mem::forget(sources);
    process::close_from(next.unsigned_abs())?;
    Ok(kept)
}

/// What the waiting process needs of the shim.
struct Parts<'a> {
    user: Option<&'a OwnedFd>,
    ids: &'a Ids,
    cgroups: &'a CgroupView,
    init: &'a OwnedFd,
    namespace: &'a OwnedFd,
}

impl Parts<'_> {
    /// Runs in the child, until the shim closes the channel or ends it.
    fn serve(&self, leaf: &Group, channel: OwnedFd) -> i32 {
        if stub::begin(Some(leaf)).is_err() {
            return 1;
        }
        let kind = Some(LinkNameSpaceType::ProcessID);
        if move_into_link_name_space(self.namespace.as_fd(), kind).is_err() {
            return 1;
        }
        // Whatever else the shim has open, clients and containers' pipes among it, must not stay open here.
        let Ok(kept) = keep_only(&[Some(&channel), Some(self.init), self.user]) else { return 1 };
        std::mem::forget(channel);
        let mut kept = kept.into_iter();
        let (Some(channel), Some(init), user) = (kept.next(), kept.next(), kept.next()) else { return 1 };
        let mut channel = Connection::new(channel);
        while let Ok((joining, fds)) = channel.receive::<Joining>() {
            let filter = seccomp::program(&joining.security.seccomp, &joining.security.capabilities);
            let shared = Shared { user: user.as_ref(), ids: self.ids, cgroups: self.cgroups, filter };
            let forked = fork_beside(|| stub::join_with(&shared, &init, &joining, fds));
            let told = match forked {
                Ok(Child { pid, pidfd }) => channel.send(&Joined::Forked(pid.as_raw_nonzero().get()), vec![pidfd]),
                Err(error) => channel.send(&Joined::Failed(error.to_string()), vec![]),
            };
            if told.is_err() {
                return 1;
            }
        }
        0
    }
}
