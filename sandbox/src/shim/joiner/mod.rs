//! A process beside a container, whose children are the container's further processes.
//!
//! What an `exec` needs takes longer to set up than to run: namespaces, ids, forty dropped capabilities, a filter that the
//! kernel compiles; and joining a v1 control group takes a lock that all forks of the host share: microseconds at best,
//! milliseconds when an RCU grace period is waited for, once for each of six hierarchies. So the first exec into a container
//! leaves a process behind that has all of that done ([`Beside`]), for the next ones: probes come again and again. Its
//! children are the shim's. They borrow its memory until their programs take over, for that long it waits: so it says of each
//! but one thing, at the end.
//!
//! ```text
//!  forked ── Ready ──────────> asked for children, one at a time ── Executed, Refused ──> the exec goes on, is refused
//!    │ Failed, its end, 1 s          │ 1 s, and others wait      │ its end, 10 s
//!    ▼                               ▼                           ▼
//!  who waits joins by itself       the others join by          if it had read the order nobody knows whether there is a
//!                                  themselves                  child: one that there is is killed once it has ended, and
//!                                                              then who waits is refused; if not, who waits joins by itself
//! ```
//!
//! It is in the container's control groups, which may give it no processor for long. So the shim never waits for it.
mod known;
mod serve;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal, pidfd_send_signal};

pub(crate) use self::known::Joiners;
use self::known::{Asked, Joiner};
use self::serve::{Joined, serve};
use super::attach::init_of;
use super::exec::Wanted;
use super::plumbing::report_channel;
use super::poller::Key;
use super::server::{Shim, Source};
use super::shared_pids::open_pid_namespace;
use super::stub::join::Further;
use crate::protocol::{Connection, Fill, Refusal};
use crate::sys::clock;
use crate::sys::clone::{Child, fork_with};

/// What it may be asked for at a time; the rest joins by itself.
const MOST_ASKED: usize = 64;

impl Shim {
    /// Has a process forked beside the container, or by the shim itself where that cannot be. `fds`: its streams.
    pub(super) fn fork_beside(&mut self, wanted: Wanted, further: Further, fds: Vec<OwnedFd>) {
        let known = init_of(&mut self.processes, wanted.container).and_then(|container| container.joiner);
        let Some(key) = known.or_else(|| self.make_joiner(wanted.container)) else {
            return self.fork_joining(wanted, &further, fds);
        };
        match self.joiners.map.get_mut(&key) {
            Some(joiner) if joiner.asked.len() < MOST_ASKED && !joiner.late => {
                joiner.asked.push_back(Asked { wanted, further, fds, told: false });
                self.tell_joiner(key);
            }
            _ => self.fork_joining(wanted, &further, fds),
        }
    }

    fn make_joiner(&mut self, container: Key) -> Option<Key> {
        let process = self.processes.get(&container)?;
        let super::container::Role::Init(known) = &process.role else { return None };
        // Who can trace a child that has the memory of a process of the host's user namespace is that process.
        if self.slot.user.is_none() && known.spec.security.capabilities.iter().any(|held| held == "CAP_SYS_PTRACE") {
            return None;
        }
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
        let (ready, late, refusal, since_ns) = (false, false, None, clock::boottime_ns());
        let joiner = Joiner { container, child, channel, ready, asked, since_ns, late, refusal };
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
                    self.joiner_said(key, said, fds);
                    match self.joiners.map.get(&key) {
                        Some(joiner) if !joiner.asked.is_empty() && !joiner.late => {
                            self.tell_joiner(key);
                            continue;
                        }
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
                Ok(Fill::Unread) => {
                    joiner.read_nothing();
                    return self.lose_joiner(key);
                }
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

    /// Hears what a joiner has answered already, and tells it nothing.
    pub(super) fn hear_joiner(&mut self, key: Key) {
        let Some(joiner) = self.joiners.map.get_mut(&key).filter(|joiner| joiner.ready) else { return };
        match joiner.channel.fill() {
            Ok(Fill::Data) => {
                if let Ok(Some((said, fds))) = joiner.channel.next_message() {
                    self.joiner_said(key, said, fds);
                }
            }
            Ok(Fill::Unread) => joiner.read_nothing(),
            _ => {}
        }
    }

    fn joiner_said(&mut self, key: Key, said: Joined, fds: Vec<OwnedFd>) {
        let Some(joiner) = self.joiners.map.get_mut(&key) else { return };
        match said {
            Joined::Ready => joiner.ready = true,
            Joined::Failed(message) if !joiner.ready => {
                crate::sys::say::say!("no process is ready beside a container: {message}");
                self.lose_joiner(key);
            }
            Joined::Failed(message) => {
                let asked = joiner.asked.pop_front();
                if joiner.asked.is_empty() {
                    // It counts as one of the container's: where there is no room for one more, its own place is given back.
                    self.lose_joiner(key);
                }
                if let Some(asked) = asked {
                    self.refuse(asked.wanted.waiter, not_forked(message));
                }
            }
            Joined::Refused(number, refusal) => {
                let asked = joiner.asked.pop_front();
                if let Some(child) = child_of(number, fds.into_iter().next()) {
                    // If it was collected already nobody else asks for it.
                    let _ = self.joiners.claim(&child);
                }
                if let Some(asked) = asked {
                    self.refuse(asked.wanted.waiter, refusal);
                }
            }
            Joined::Executed(number) => {
                let asked = joiner.asked.pop_front();
                let mut fds = fds.into_iter();
                let Some(child) = child_of(Some(number), fds.next()) else {
                    let refusal = || not_forked("a process without number or descriptor".into());
                    return asked.into_iter().for_each(|asked| self.refuse(asked.wanted.waiter, refusal()));
                };
                let status = self.joiners.claim(&child);
                match asked {
                    Some(asked) => self.executed(asked.wanted, child, fds.next(), status),
                    None => kill(&child),
                }
            }
        }
    }

    /// Ends it; what it was not told of goes the other way, who waits for what it was told of is refused when it has ended.
    pub(super) fn lose_joiner(&mut self, key: Key) {
        self.end_joiner(key, || not_forked("the process beside the container has ended".into()));
    }

    fn end_joiner(&mut self, key: Key, refusal: impl FnOnce() -> Refusal) {
        let Some(joiner) = self.joiners.map.get_mut(&key) else { return };
        if !std::mem::replace(&mut joiner.late, true) {
            kill(&joiner.child);
            joiner.since_ns = clock::boottime_ns();
            self.poller.remove(joiner.channel.socket());
            self.sources.remove(&key);
        }
        joiner.refusal.get_or_insert_with(refusal);
        let untold = joiner.take_untold();
        self.join_by_themselves(untold);
    }

    fn join_by_themselves(&mut self, asked: VecDeque<Asked>) {
        for Asked { wanted, further, fds, .. } in asked {
            self.fork_joining(wanted, &further, fds);
        }
    }

    /// Whether this child was one; then it is forgotten, and what it has forked without telling is killed.
    pub(super) fn joiner_ended(&mut self, pid: Pid) -> bool {
        let found = self.joiners.map.iter().find(|(_, joiner)| joiner.child.pid == pid).map(|(key, _)| *key);
        let Some(key) = found else { return false };
        // What it said last comes first.
        self.follow_joiner(key);
        self.lose_joiner(key);
        let Some(joiner) = self.joiners.map.remove(&key) else { return true };
        let leaf = init_of(&mut self.processes, joiner.container).map(|container| {
            container.joiner.take_if(|own| *own == key);
            container.leaf.name().to_owned()
        });
        if let Some(leaf) = leaf {
            self.kill_strangers(&leaf);
        }
        self.refuse_told(joiner.asked, joiner.refusal);
        true
    }

    fn refuse_told(&mut self, told: VecDeque<Asked>, refusal: Option<Refusal>) {
        for (asked, refusal) in told.into_iter().zip(refusal) {
            self.refuse(asked.wanted.waiter, refusal);
        }
    }

    /// Kills children of the shim's in a leaf that nobody knows.
    fn kill_strangers(&self, leaf: &str) {
        let own = rustix::process::getpid();
        let children = std::fs::read_to_string(format!("/proc/self/task/{}/children", own.as_raw_nonzero()));
        let children = children.unwrap_or_else(|error| {
            crate::sys::say::say!("children of a process beside a container cannot be looked for: {error}");
            String::new()
        });
        let known = |pid: Pid| {
            self.processes.values().any(|process| process.pid == pid)
                || self.joiners.map.values().any(|joiner| joiner.child.pid == pid)
        };
        for pid in children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap_or_default();
            if !known(pid) && groups.lines().any(|line| line.ends_with(&format!("/{leaf}"))) {
                // It cannot be another's: nobody has collected it yet.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Gives up what takes too long.
    pub(super) fn give_up_joiners(&mut self) {
        let now = clock::boottime_ns();
        let late = self.joiners.map.iter().filter(|(_, joiner)| joiner.due_ns().is_some_and(|due| due <= now));
        for key in late.map(|(key, _)| *key).collect::<Vec<_>>() {
            let Some(joiner) = self.joiners.map.get_mut(&key) else { continue };
            if joiner.late {
                let (told, refusal) = (std::mem::take(&mut joiner.asked), joiner.refusal.clone());
                self.refuse_told(told, refusal);
                continue;
            }
            // A paused container's stands still with it.
            if init_of(&mut self.processes, joiner.container).is_some_and(|container| container.paused) {
                joiner.since_ns = now;
                continue;
            }
            if joiner.ready && joiner.asked.len() > 1 {
                let others = joiner.asked.split_off(1);
                self.join_by_themselves(others);
                continue;
            }
            self.end_joiner(key, || Refusal::failed(NOT_FORKED, &std::io::ErrorKind::TimedOut.into()));
        }
    }
}

const NOT_FORKED: &str = "fork of the process";

fn not_forked(message: String) -> Refusal {
    Refusal::Failed { operation: NOT_FORKED.into(), message, errno: None }
}

fn child_of(number: Option<i32>, pidfd: Option<OwnedFd>) -> Option<Child> {
    Some(Child { pid: Pid::from_raw(number?)?, pidfd: pidfd? })
}

/// Ends a child; it is collected as all are.
fn kill(child: &Child) {
    let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
}
