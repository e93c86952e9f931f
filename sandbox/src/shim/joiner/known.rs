//! The processes beside containers that the shim knows, and what was asked of each.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitStatus};

use super::super::exec::Wanted;
use super::super::poller::Key;
use super::super::stub::join::Further;
use crate::protocol::{Connection, ProtocolError, Refusal};
use crate::sys::clock;
use crate::sys::clone::Child;

/// How long it may take to be ready, and to carry out one order while others wait: they have another way.
const READY: Duration = Duration::from_secs(1);
/// How long an order may take: afterwards nobody knows whether there is a child, so that only failing is left. A host whose
/// processors are all taken lets it wait for seconds.
const FORKED: Duration = Duration::from_secs(10);
/// The waiting process.
#[derive(Debug)]
pub(super) struct Joiner {
    pub(super) container: Key,
    pub(super) child: Child,
    pub(super) channel: Connection,
    pub(super) ready: bool,
    /// The oldest first, which alone it may have been told of.
    pub(super) asked: VecDeque<Asked>,
    /// Since when it makes itself ready, or carries out the oldest order.
    pub(super) since_ns: u64,
    /// Nothing is asked of it any more. It stays known until it has ended: it may have a child that nobody was told of.
    pub(super) late: bool,
    /// How who waits for what it was told of is refused, should it end without an answer, and with it the child that it may
    /// have: what was refused is not to run afterwards.
    pub(super) refusal: Option<Refusal>,
}

/// One child that is asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) wanted: Wanted,
    pub(super) further: Further,
    /// Its streams.
    pub(super) fds: Vec<OwnedFd>,
    pub(super) told: bool,
}

/// All of them, by their channels.
#[derive(Debug, Default)]
pub(crate) struct Joiners {
    pub(super) map: BTreeMap<Key, Joiner>,
    /// Children that have ended before it was said whose they are.
    unclaimed: BTreeMap<i32, WaitStatus>,
}

impl Joiner {
    /// Says what is asked for next, unless something is asked for already.
    pub(super) fn tell(&mut self) -> Result<(), ProtocolError> {
        let Some(asked) = self.asked.front_mut().filter(|asked| !asked.told) else { return Ok(()) };
        self.since_ns = clock::boottime_ns();
        // Copies: if it ends without having read this they are needed for the other way.
        let copies = asked.fds.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>();
        self.channel.queue(&asked.further, copies.map_err(|_| ProtocolError::MissingFds)?)?;
        self.channel.flush()?;
        asked.told = true;
        Ok(())
    }

    /// It has ended before it read what it was told last.
    pub(super) fn read_nothing(&mut self) {
        self.asked.iter_mut().for_each(|asked| asked.told = false);
    }

    /// What it was not told of whole, and now never will be.
    pub(super) fn take_untold(&mut self) -> VecDeque<Asked> {
        let told = self.asked.front().is_some_and(|asked| asked.told) && !self.channel.wants_write();
        self.asked.split_off(usize::from(told))
    }

    /// When whoever waits now has waited long enough.
    pub(super) fn due_ns(&self) -> Option<u64> {
        let longest = match (self.ready, self.asked.len()) {
            _ if self.late && self.asked.is_empty() => return None,
            // One that no signal ends yet holds up nobody for ever.
            _ if self.late => FORKED,
            (false, _) => READY,
            (true, 0) => return None,
            (true, 1) => FORKED,
            (true, _) => READY,
        };
        Some(later(self.since_ns, longest))
    }
}

impl Joiners {
    /// When the first has waited long enough.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        self.map.values().filter_map(Joiner::due_ns).min()
    }

    /// A child that nobody knows has ended: one that will be told of, perhaps.
    pub(crate) fn keep(&mut self, pid: Pid, status: WaitStatus) {
        if self.map.values().any(|joiner| !joiner.asked.is_empty()) {
            self.unclaimed.insert(pid.as_raw_nonzero().get(), status);
        } else {
            self.unclaimed.clear();
        }
    }

    /// How the child has ended, if it has been collected already. Not another one that had its number before.
    pub(super) fn claim(&mut self, child: &Child) -> Option<WaitStatus> {
        let status = self.unclaimed.remove(&child.pid.as_raw_nonzero().get())?;
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], Some(&now)) == Ok(1);
        ended.then_some(status)
    }
}

fn later(since_ns: u64, time: Duration) -> u64 {
    since_ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
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
