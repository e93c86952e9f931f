//! A process beside a container, whose children are the container's further processes.
//!
//! What an `exec` needs takes longer to set up than to run: namespaces, ids, forty dropped capabilities, a filter that the
//! kernel compiles; and joining a v1 control group takes a lock that all forks of the host share: microseconds at best,
//! milliseconds when an RCU grace period is waited for, once for each of six hierarchies. So the first exec into a container
//! leaves a process behind that has all of that done ([`Beside`]), for the next ones: probes come again and again. Its
//! children are the shim's.
//!
//! ```text
//!  forked ── Ready ──────────> asked for children, in their order ── Forked, Failed ──> the exec goes on, is refused
//!    │ Failed, its end, 1 s          │ its end, 10 s
//!    ▼                               ▼
//!  who waits joins by itself       who waits is refused: nobody knows whether there is a child; one that comes is killed
//! ```
//!
//! It is in the container's control groups, which may give it no processor for long. So the shim never waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitStatus, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::attach::init_of;
use super::exec::Wanted;
use super::launch::{open_pid_namespace, report_channel};
use super::poller::Key;
use super::server::{Shim, Source};
use super::stub::Shared;
use super::stub::join::{Beside, Further};
use crate::cgroup::Group;
use crate::protocol::{Connection, Fill, Refusal};
use crate::spec::ContainerSpec;
use crate::sys::clock;
use crate::sys::clone::{Child, fork_beside, fork_with};

/// How long it may take to be ready: afterwards there is the other way.
const READY: Duration = Duration::from_secs(1);
/// How long it may take to fork: afterwards nobody knows whether it has, so that only failing is left. A host whose processors
/// are all taken lets it wait for seconds.
const FORKED: Duration = Duration::from_secs(10);
/// What it may be asked for at a time; the rest joins by itself.
const MOST_ASKED: usize = 64;

/// The waiting process.
#[derive(Debug)]
pub(crate) struct Joiner {
    container: Key,
    child: Child,
    channel: Connection,
    ready: bool,
    /// The oldest first; those that it was told of come before the others.
    asked: VecDeque<Asked>,
    /// When whoever waits now has waited long enough.
    due_ns: u64,
    /// It was given up: what it still forks is killed.
    late: bool,
}

/// One child that is asked for.
#[derive(Debug)]
struct Asked {
    wanted: Wanted,
    /// Until it was told.
    order: Option<(Further, Vec<OwnedFd>)>,
}

/// All of them, by their channels.
#[derive(Debug, Default)]
pub(crate) struct Joiners {
    map: BTreeMap<Key, Joiner>,
    /// Children that have ended before it was said whose they are.
    unclaimed: BTreeMap<i32, WaitStatus>,
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
    /// Has a process forked beside the container, or by the shim itself where that cannot be. `fds`: its report channel, then
    /// its streams.
    pub(super) fn fork_beside(&mut self, wanted: Wanted, further: Further, fds: Vec<OwnedFd>) {
        let known = init_of(&mut self.processes, wanted.container).and_then(|container| container.joiner);
        let Some(key) = known.or_else(|| self.make_joiner(wanted.container)) else {
            return self.fork_joining(wanted, &further, fds);
        };
        match self.joiners.map.get_mut(&key) {
            Some(joiner) if joiner.asked.len() < MOST_ASKED => {
                if joiner.asked.is_empty() && joiner.ready {
                    joiner.due_ns = due_in(FORKED);
                }
                joiner.asked.push_back(Asked { wanted, order: Some((further, fds)) });
                self.tell_joiner(key);
            }
            _ => self.fork_joining(wanted, &further, fds),
        }
    }

    fn make_joiner(&mut self, container: Key) -> Option<Key> {
        let process = self.processes.get(&container)?;
        let super::container::Role::Init(known) = &process.role else { return None };
        let namespace = open_pid_namespace(process.pid).ok()?;
        let (ours, theirs) = report_channel().ok()?;
        let shared = self.shared(&known.spec.security);
        let leaf = &known.leaf;
        let body = || serve(&shared, &process.pidfd, &namespace, &known.spec, leaf, theirs);
        let child = fork_with(0, leaf.clone_into(), body).ok()?;
        let key = self.new_key();
        let watched = rustix::io::ioctl_fionbio(&ours, true).and_then(|()| self.poller.add(&ours, key));
        if watched.is_err() {
            kill(&child);
            return None;
        }
        self.sources.insert(key, Source::Joiner);
        let (channel, asked) = (Connection::new(ours), VecDeque::new());
        let joiner = Joiner { container, child, channel, ready: false, asked, due_ns: due_in(READY), late: false };
        self.joiners.map.insert(key, joiner);
        init_of(&mut self.processes, container)?.joiner = Some(key);
        Some(key)
    }

    /// Tells a joiner that is ready what is asked for.
    fn tell_joiner(&mut self, key: Key) {
        let Some(joiner) = self.joiners.map.get_mut(&key) else { return };
        if !joiner.ready || joiner.late {
            return;
        }
        if joiner.tell().is_err() {
            return self.lose_joiner(key);
        }
        let (channel, write) = (&joiner.channel, joiner.channel.wants_write());
        if write && self.poller.modify(channel.socket(), key, true, true).is_err() {
            self.lose_joiner(key);
        }
    }

    /// A joiner's channel is ready.
    pub(super) fn follow_joiner(&mut self, key: Key) {
        loop {
            let Some(joiner) = self.joiners.map.get_mut(&key) else { return };
            match joiner.channel.next_message::<Joined>() {
                Ok(Some((said, fds))) => {
                    joiner.due_ns = due_in(FORKED);
                    self.joiner_said(key, said, fds.into_iter().next());
                    match self.joiners.map.get(&key) {
                        Some(joiner) if !joiner.asked.is_empty() => continue,
                        // Nothing more is to come.
                        _ => return,
                    }
                }
                Ok(None) => {}
                Err(_) => return self.lose_joiner(key),
            }
            match joiner.channel.fill() {
                Ok(Fill::Data) => {}
                Ok(Fill::WouldBlock) => break,
                Ok(Fill::Closed) | Err(_) => return self.lose_joiner(key),
            }
        }
        let Some(joiner) = self.joiners.map.get_mut(&key) else { return };
        if joiner.channel.wants_write() {
            let modified = match joiner.channel.flush() {
                Ok(false) => Ok(()),
                Ok(true) => self.poller.modify(joiner.channel.socket(), key, true, false),
                Err(_) => Err(rustix::io::Errno::PIPE),
            };
            if modified.is_err() {
                self.lose_joiner(key);
            }
        }
    }

    fn joiner_said(&mut self, key: Key, said: Joined, pidfd: Option<OwnedFd>) {
        let Some(joiner) = self.joiners.map.get_mut(&key) else { return };
        match said {
            Joined::Ready => {
                joiner.ready = true;
                self.tell_joiner(key);
            }
            Joined::Failed(message) if !joiner.ready => {
                crate::sys::say::say!("no process is ready beside a container: {message}");
                self.lose_joiner(key);
            }
            Joined::Failed(message) => {
                let asked = joiner.asked.pop_front();
                if joiner.asked.is_empty() {
                    // It counts as one of the container's: where there is no room for one more, its own place is given back.
                    self.dismiss_joiner(key);
                }
                if let Some(asked) = asked {
                    self.refuse(asked.wanted.waiter, not_forked(message));
                }
            }
            Joined::Forked(number) => {
                let asked = joiner.asked.pop_front();
                let (Some(pid), Some(pidfd)) = (Pid::from_raw(number), pidfd) else {
                    let refusal = || not_forked("a process without number or descriptor".into());
                    return asked.into_iter().for_each(|asked| self.refuse(asked.wanted.waiter, refusal()));
                };
                let child = Child { pid, pidfd };
                let status = self.joiners.claim(&child);
                match asked {
                    Some(asked) => self.forked(asked.wanted, child, status),
                    None => kill(&child),
                }
            }
        }
    }

    /// Nothing more is asked of it; what it was asked for may still come.
    pub(super) fn dismiss_joiner(&mut self, key: Key) {
        let Some(joiner) = self.joiners.map.get_mut(&key) else { return };
        kill(&joiner.child);
        if let Some(container) = init_of(&mut self.processes, joiner.container)
            && container.joiner == Some(key)
        {
            container.joiner = None;
        }
        for asked in joiner.untold() {
            self.join_after_all(asked);
        }
    }

    /// Its channel has ended.
    fn lose_joiner(&mut self, key: Key) {
        self.dismiss_joiner(key);
        let Some(joiner) = self.joiners.map.remove(&key) else { return };
        self.poller.remove(joiner.channel.socket());
        self.sources.remove(&key);
        for asked in joiner.asked {
            self.refuse(asked.wanted.waiter, not_forked("the process beside the container has ended".into()));
        }
    }

    fn join_after_all(&mut self, asked: Asked) {
        if let Some((further, fds)) = asked.order {
            self.fork_joining(asked.wanted, &further, fds);
        }
    }

    /// Gives up what takes too long.
    pub(super) fn give_up_joiners(&mut self) {
        let Some(due_ns) = self.joiners.due_ns() else { return };
        let now = clock::boottime_ns();
        if due_ns > now {
            return;
        }
        let late: Vec<Key> = self.joiners.waited_for().filter(|(_, j)| j.due_ns <= now).map(|(key, _)| *key).collect();
        for key in late {
            let Some(joiner) = self.joiners.map.get_mut(&key) else { continue };
            // A paused container's stands still with it.
            if init_of(&mut self.processes, joiner.container).is_some_and(|container| container.paused) {
                joiner.due_ns = due_in(FORKED);
                continue;
            }
            joiner.late = true;
            self.dismiss_joiner(key);
            let given_up = self.joiners.map.get_mut(&key).map(|joiner| std::mem::take(&mut joiner.asked));
            for asked in given_up.into_iter().flatten() {
                self.refuse(asked.wanted.waiter, Refusal::failed(NOT_FORKED, &std::io::ErrorKind::TimedOut.into()));
            }
        }
    }
}

const NOT_FORKED: &str = "fork of the process";

fn not_forked(message: String) -> Refusal {
    Refusal::Failed { operation: NOT_FORKED.into(), message, errno: None }
}

fn due_in(time: Duration) -> u64 {
    clock::boottime_ns().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// Ends a child; it is collected as all are.
fn kill(child: &Child) {
    let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
}

impl Joiner {
    /// Those that it was not told of.
    fn untold(&mut self) -> Vec<Asked> {
        let told = self.asked.iter().take_while(|asked| asked.order.is_none()).count();
        self.asked.drain(told..).collect()
    }

    /// Says what was asked for meanwhile; what could not be said stays with its order.
    fn tell(&mut self) -> Result<(), crate::protocol::ProtocolError> {
        for asked in &mut self.asked {
            let Some((further, fds)) = &asked.order else { continue };
            // Copies: if it is dead these are needed for the other way.
            let copies = fds.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>();
            self.channel.queue(further, copies.map_err(|_| crate::protocol::ProtocolError::MissingFds)?)?;
            self.channel.flush()?;
            asked.order = None;
        }
        Ok(())
    }
}

impl Joiners {
    /// Those from whom somebody waits for something.
    fn waited_for(&self) -> impl Iterator<Item = (&Key, &Joiner)> {
        self.map.iter().filter(|(_, joiner)| !joiner.late && (!joiner.ready || !joiner.asked.is_empty()))
    }

    /// When the first has waited long enough.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.waited_for().map(|(_, joiner)| joiner.due_ns).min()
    }

    /// A child that nobody knows has ended: one that will be told of, perhaps.
    pub(super) fn keep(&mut self, pid: Pid, status: WaitStatus) {
        if self.map.values().any(|joiner| !joiner.asked.is_empty()) {
            self.unclaimed.insert(pid.as_raw_nonzero().get(), status);
        } else {
            self.unclaimed.clear();
        }
    }

    /// How the child has ended, if it has been collected already. Not another one that had its number before.
    fn claim(&mut self, child: &Child) -> Option<WaitStatus> {
        let status = self.unclaimed.remove(&child.pid.as_raw_nonzero().get())?;
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], Some(&now)) == Ok(1);
        ended.then_some(status)
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{PidfdFlags, WaitOptions, pidfd_open, waitpid};

    use super::*;

    fn child(program: &str) -> (Child, std::process::Child) {
        let spawned = Command::new(program).arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&spawned);
        (Child { pid, pidfd: pidfd_open(pid, PidfdFlags::empty()).unwrap() }, spawned)
    }

    #[test]
    fn a_child_that_was_collected_before_it_was_known_has_ended_and_another_of_its_number_has_not() {
        let mut joiners = Joiners::default();
        let (ended, _) = child("true");
        let (_, status) = waitpid(Some(ended.pid), WaitOptions::empty()).unwrap().unwrap();
        let number = ended.pid.as_raw_nonzero().get();
        joiners.unclaimed.insert(number, status);
        assert!(joiners.claim(&ended).is_some());
        assert!(joiners.claim(&ended).is_none(), "told once");
        let (lives, mut spawned) = child("sleep");
        joiners.unclaimed.insert(lives.pid.as_raw_nonzero().get(), status);
        assert!(joiners.claim(&lives).is_none());
        // Nobody waits for a child: whatever ends is nobody's.
        joiners.unclaimed.insert(number, status);
        joiners.keep(ended.pid, status);
        assert!(joiners.unclaimed.is_empty());
        spawned.kill().unwrap();
        spawned.wait().unwrap();
    }
}
