//! What containers write: read at a bounded rate, logged, passed on to who is attached.
//!
//! Each log may grow by so many bytes a second. A container that writes faster is not read from for a while; its pipe fills,
//! and it waits in its `write`. Nobody else does.

use rustix::event::Timespec;

use super::attach::init_of;
use super::log::Read;
use super::poller::Key;
use super::server::Shim;
use crate::contract::SandboxEvent;
use crate::sys::clock;

/// Most that is taken from a dead container's pipe: as much as one can hold. Whoever it passed its other end to may write on
/// for ever.
const LAST_BYTES: usize = 2 << 20;

impl Shim {
    /// One turn of an output.
    pub(super) fn read_output(&mut self, process: Key, key: Key) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        let Some(index) = container.outputs.iter().position(|output| output.key == key) else { return };
        // It was there when the wait ended, whatever else had its turn before.
        match self.pump(process, index, self.woken_ns) {
            (Read::Bytes, Some(due_ns)) => self.hold_back(process, due_ns),
            (Read::Bytes, None) | (Read::WouldBlock, _) => {}
            (Read::Ended, _) => self.end_output(process, index),
        }
    }

    /// Moves some output, which came by `came_ns`; and when to go on, if that was too much.
    fn pump(&mut self, process: Key, index: usize, came_ns: u64) -> (Read, Option<u64>) {
        let Some(container) = init_of(&mut self.processes, process) else { return (Read::Ended, None) };
        let output = &container.outputs[index];
        let stream = output.stream;
        let read = self.buffers.read(&output.fd).unwrap_or_else(|error| {
            crate::sys::say::say!("{error}: {:?}", std::error::Error::source(&error));
            Read::Ended
        });
        if read != Read::Bytes {
            return (read, None);
        }
        let before = container.log.written_bytes();
        // What the disk refuses is lost; the log counts it and says so when it can.
        let _ = container.log.write_read(&mut self.buffers, stream, clock::wall_ns());
        let written = container.log.written_bytes() - before;
        let now = clock::boottime_ns();
        let due = container.rate.take(written.max(self.buffers.bytes().len() as u64), now);
        if !std::mem::replace(&mut container.first_byte, true) {
            let (container, attempt) = (container.spec.name.clone(), container.spec.attempt);
            self.record(SandboxEvent::FirstByte { container, attempt, boottime_ns: came_ns });
        }
        self.pass_on(process, stream);
        (read, due)
    }

    /// Does not read what a container writes until `due_ns`. Removed, not masked: epoll tells of a hang-up whatever one asks.
    fn hold_back(&mut self, process: Key, due_ns: u64) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        for output in &container.outputs {
            self.poller.remove(&output.fd);
        }
        // Its other output may have been ready in the same turn.
        match self.held_back.iter_mut().find(|(_, held)| *held == process) {
            Some((due, _)) => *due = due_ns,
            None => self.held_back.push((due_ns, process)),
        }
    }

    /// Reads again what is due.
    pub(super) fn read_on(&mut self) {
        if self.held_back.is_empty() {
            return;
        }
        let now = clock::boottime_ns();
        for (_, process) in self.held_back.extract_if(.., |(due_ns, _)| *due_ns <= now) {
            let Some(container) = init_of(&mut self.processes, process) else { continue };
            for output in &container.outputs {
                if let Err(errno) = self.poller.add(&output.fd, output.key) {
                    crate::sys::say::say!("an output is not read any more: {errno}");
                }
            }
        }
    }

    /// How long until something is due.
    pub(super) fn until_due(&self) -> Option<Timespec> {
        let first = self.held_back.iter().map(|(due_ns, _)| *due_ns).chain(self.joiners.due_ns()).min()?;
        let left = std::time::Duration::from_nanos(first.saturating_sub(clock::boottime_ns()));
        Some(Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    /// An output has ended: its unfinished line is written, its listeners are told.
    fn end_output(&mut self, process: Key, index: usize) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        let output = container.outputs.remove(index);
        self.poller.remove(&output.fd);
        self.sources.remove(&output.key);
        if let Err(error) = container.log.finish(&mut self.buffers, output.stream, clock::wall_ns()) {
            crate::sys::say::say!("log cannot be finished: {error}");
        }
        self.close_sinks(process, output.stream);
    }

    /// Everything that a dead container has left in its pipes.
    pub(super) fn drain(&mut self, process: Key) {
        while init_of(&mut self.processes, process).is_some_and(|container| !container.outputs.is_empty()) {
            let mut taken = 0;
            while taken < LAST_BYTES && self.pump(process, 0, clock::boottime_ns()).0 == Read::Bytes {
                taken += self.buffers.bytes().len();
            }
            self.end_output(process, 0);
        }
        self.detach_all(process);
    }
}
