//! A process beside a container, whose children are the container's further processes.
//!
//! What an `exec` needs takes longer to set up than to run: namespaces, ids, forty dropped capabilities, a filter that the
//! kernel compiles; and joining a v1 control group takes a lock that all forks of the host share: microseconds at best,
//! milliseconds when an RCU grace period is waited for, once for each of six hierarchies. So the first exec into a container
//! leaves a process behind that has all of that done ([`Beside`]), for the next ones: probes come again and again. Its
//! children are the shim's.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::launch::{open_pid_namespace, report_channel};
use super::poller::Key;
use super::server::Shim;
use super::stub::Shared;
use super::stub::join::{Beside, Further};
use super::stub::report::Step;
use crate::cgroup::Group;
use crate::protocol::{Connection, Refusal};
use crate::spec::ContainerSpec;
use crate::sys::clone::{Child, fork_beside, fork_with};

/// How long it may take to be ready: afterwards there is the other way.
const READY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// How long it may take to fork: afterwards nobody knows whether it has, so that only failing is left. A host whose processors
/// are all taken lets it wait for seconds.
const FORKED: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The waiting process.
#[derive(Debug)]
pub(crate) struct Joiner {
    child: Child,
    channel: Connection,
}

/// What it says: first whether it is ready, then of each child; with the child's descriptor.
#[derive(Debug, Serialize, Deserialize)]
enum Joined {
    /// Children may be asked for.
    Ready,
    /// The child's number.
    Forked(i32),
    /// There is none.
    Failed(String),
}

impl Shim {
    /// Has the container's joiner fork a process. `fds`: its report channel, then its streams. `None`: there is no joiner,
    /// and nothing was asked of one.
    pub(super) fn fork_by_joiner(
        &mut self,
        container: Key,
        further: &Further,
        fds: impl FnOnce() -> Result<Vec<OwnedFd>, Refusal>,
    ) -> Option<Result<Child, Refusal>> {
        let mut joiner = match super::attach::init_of(&mut self.processes, container)?.joiner.take() {
            Some(joiner) => joiner,
            None => self.make_joiner(container)?,
        };
        let fds = match fds() {
            Ok(fds) => fds,
            Err(refusal) => return Some(Err(refusal)),
        };
        if joiner.channel.send(further, fds).is_err() {
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
        let namespace = open_pid_namespace(process.pid).ok()?;
        let (ours, theirs) = report_channel().ok()?;
        let shared = self.shared(&known.spec.security);
        let leaf = &known.leaf;
        let body = || serve(&shared, &process.pidfd, &namespace, &known.spec, leaf, theirs);
        let child = fork_with(0, leaf.clone_into(), body).ok()?;
        let mut joiner = Joiner { child, channel: Connection::new(ours) };
        match joiner.said(&READY) {
            Ok((Joined::Ready, _)) => Some(joiner),
            failed => {
                crate::sys::say::say!("no process is ready beside container {}: {failed:?}", known.spec.name);
                joiner.end();
                None
            }
        }
    }
}

impl Joiner {
    fn said(&mut self, patience: &Timespec) -> Result<(Joined, Vec<OwnedFd>), Refusal> {
        let socket = self.channel.socket();
        let ready = poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], Some(patience));
        if ready.step("wait for the fork of a process")? == 0 {
            return Err(Refusal::failed("fork of the process", &std::io::ErrorKind::TimedOut.into()));
        }
        let failed = |error| Refusal::failed("fork of the process", &std::io::Error::other(error));
        self.channel.receive::<Joined>().map_err(failed)
    }

    fn answer(&mut self) -> Result<Result<Child, Refusal>, Refusal> {
        let (answer, fds) = self.said(&FORKED)?;
        match (answer, fds.into_iter().next()) {
            (Joined::Forked(number), Some(pidfd)) => match Pid::from_raw(number) {
                Some(pid) => Ok(Ok(Child { pid, pidfd })),
                None => Ok(Err(Refusal::Invalid { message: "a process without a number was forked".into() })),
            },
            (Joined::Failed(message), _) => {
                Ok(Err(Refusal::Failed { operation: "fork of the process".into(), message, errno: None }))
            }
            (Joined::Forked(_) | Joined::Ready, _) => {
                Ok(Err(Refusal::Invalid { message: "a process without a descriptor".into() }))
            }
        }
    }

    /// Ends it; it is collected as all children are.
    fn end(&self) {
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
    }
}

/// Runs in the child, until the shim closes the channel or ends it.
fn serve(
    shared: &Shared<'_>,
    init: &OwnedFd,
    namespace: &OwnedFd,
    spec: &ContainerSpec,
    leaf: &Group,
    channel: OwnedFd,
) -> i32 {
    let mut channel = Connection::new(channel);
    let beside = match Beside::settle(shared, init, namespace, spec, leaf, &mut channel) {
        Ok(beside) => beside,
        Err(refusal) => {
            let _ = channel.send(&Joined::Failed(format!("{refusal:?}")), vec![]);
            return 1;
        }
    };
    if channel.send(&Joined::Ready, vec![]).is_err() {
        return 1;
    }
    while let Ok((further, fds)) = channel.receive::<Further>() {
        let told = match fork_beside(|| beside.execute(&further, fds)) {
            Ok(Child { pid, pidfd }) => channel.send(&Joined::Forked(pid.as_raw_nonzero().get()), vec![pidfd]),
            Err(error) => channel.send(&Joined::Failed(error.to_string()), vec![]),
        };
        if told.is_err() {
            return 1;
        }
    }
    0
}
