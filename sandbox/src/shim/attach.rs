//! Attachers: connected with a container's streams, for as long as they keep up.
//!
//! ```text
//!  container ── stdout ──> output.rs ──> log
//!            ── stderr ──>     └──────> each attacher's pipe: what does not fit cuts the attacher off
//!            <── stdin ──── pending <── attachers' pipes: not read while something is pending
//! ```
//!
//! An attacher's output pipe is the only buffer it has, and the caller's choice; the shim keeps nothing for it. Of input at
//! most one piece is held, so a container that does not read stops its attachers, not the shim.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::container::{Container, Launch, Process, Role, Waiter};
use super::log::Stream;
use super::poller::{Key, Poller};
use super::server::{Shim, Source};
use super::stub::report::Step;
use super::stub::terminal;
use crate::contract::{Detached, MOST_ATTACHERS};
use crate::protocol::Refusal;
use crate::protocol::shim::{Notice, Reply};

/// Input taken from an attacher at once.
const PIECE: usize = 4 << 10;
/// What ends the input of a program that reads a terminal.
const END_OF_TRANSMISSION: u8 = 4;

/// A container's standard input.
#[derive(Debug)]
pub(crate) struct Stdin {
    fd: OwnedFd,
    /// Its key while it is waited for.
    waited: Option<Key>,
    pending: Vec<u8>,
    /// It is closed once nothing is pending.
    closing: bool,
}

impl Stdin {
    /// Takes the side that the shim writes to.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, Refusal> {
        rustix::io::ioctl_fionbio(&fd, true).step("non-blocking standard input")?;
        Ok(Self { fd, waited: None, pending: Vec::new(), closing: false })
    }

    /// Writes what it can. `Err`: nobody reads it any more.
    fn flush(&mut self) -> Result<(), Errno> {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.fd, &self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        // Room for what is seldom is not kept.
        self.pending = Vec::new();
        Ok(())
    }
}

/// One who is attached.
#[derive(Debug)]
pub(crate) struct Attacher {
    number: Key,
    client: Key,
    /// Standard output and error.
    sinks: [Option<End>; 2],
    input: Option<End>,
}

/// An attacher's side of a stream.
#[derive(Debug)]
struct End {
    key: Key,
    fd: OwnedFd,
}

impl Attacher {
    fn is_idle(&self) -> bool {
        self.input.is_none() && self.sinks.iter().all(Option::is_none)
    }

    fn ends(self) -> impl Iterator<Item = End> {
        self.sinks.into_iter().flatten().chain(self.input)
    }
}

/// What an output gave to its attachers.
enum Given {
    All,
    Gone,
    TooSlow,
}

impl Shim {
    pub(super) fn attach(&mut self, waiter: Waiter, name: &str, streams: [bool; 3], fds: Vec<OwnedFd>) {
        match self.attach_new(waiter, name, streams, fds) {
            Ok(attach) => self.clients.answer(&self.poller, waiter, Ok(Reply::Attached { attach }), vec![]),
            Err(refusal) => self.refuse(waiter, refusal),
        }
    }

    fn attach_new(
        &mut self,
        waiter: Waiter,
        name: &str,
        streams: [bool; 3],
        fds: Vec<OwnedFd>,
    ) -> Result<Key, Refusal> {
        let invalid = |message: String| Err(Refusal::Invalid { message });
        let (process, container) = self.running_key(name)?;
        let (tty, attached) = (container.spec.tty, container.attached.len());
        if attached >= MOST_ATTACHERS {
            return invalid(format!("container {name} has {MOST_ATTACHERS} attachers already"));
        }
        if fds.len() != streams.iter().filter(|present| **present).count() {
            return invalid("a stream is missing".into());
        }
        match (&container.stdin, container.spec.stdin) {
            (_, false) if streams[0] => return invalid(format!("container {name} has no standard input")),
            (None, true) if streams[0] => {
                return invalid(format!("the standard input of container {name} is closed"));
            }
            (Some(stdin), _) if streams[0] && stdin.closing => {
                return invalid(format!("the standard input of container {name} is closed"));
            }
            _ => {}
        }
        let blocked = container.stdin.as_ref().is_some_and(|stdin| !stdin.pending.is_empty());
        let mut fds = fds.into_iter();
        let mut end = |shim: &mut Self, present: bool, watch: bool| {
            let Some(fd) = present.then(|| fds.next()).flatten() else { return Ok(None) };
            rustix::io::ioctl_fionbio(&fd, true).step("non-blocking stream of an attacher")?;
            let key = shim.new_key();
            if watch {
                shim.poller.add(&fd, key).step("epoll of an attacher")?;
            }
            Ok(Some(End { key, fd }))
        };
        let input = end(self, streams[0], !blocked)?;
        let stdout = end(self, streams[1], true)?;
        // A terminal has one output; what was meant for the other is closed.
        let stderr = end(self, streams[2], !tty)?.filter(|_| !tty);
        let number = self.new_key();
        let attacher = Attacher { number, client: waiter.client, sinks: [stdout, stderr], input };
        let keys = attacher.sinks.iter().flatten().chain(&attacher.input).map(|end| end.key);
        self.sources.extend(keys.map(|key| (key, Source::Attached { process })));
        if let Some(Process { role: Role::Init(container), .. }) = self.processes.get_mut(&process) {
            container.attached.push(attacher);
        }
        Ok(number)
    }

    pub(super) fn resize(&mut self, name: &str, columns: u16, rows: u16) -> Result<Reply, Refusal> {
        let (_, container) = self.running(name)?;
        let master = container.outputs.first().filter(|_| container.spec.tty);
        let master = master.ok_or_else(|| Refusal::Invalid { message: format!("container {name} has no terminal") })?;
        terminal::resize(&master.fd, columns, rows).step("resize of a terminal")?;
        Ok(Reply::Done)
    }

    /// The key of a container whose program runs.
    pub(super) fn running_key(&self, name: &str) -> Result<(Key, &Container), Refusal> {
        let found = self.processes.iter().find_map(|(key, process)| match (&process.role, &process.launch) {
            (Role::Init(container), Launch::Running) if container.spec.name == name => Some((*key, &**container)),
            _ => None,
        });
        found.ok_or_else(|| Refusal::NotFound { what: format!("running container {name}") })
    }

    /// Something happened to an attacher's stream: input, or its end.
    pub(super) fn attached(&mut self, process: Key, key: Key) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        let Some(index) = container
            .attached
            .iter()
            .position(|attacher| attacher.sinks.iter().flatten().chain(&attacher.input).any(|end| end.key == key))
        else {
            return;
        };
        if container.attached[index].input.as_ref().is_some_and(|end| end.key == key) {
            return self.read_input(process, index);
        }
        // Nothing is ever read from a sink: its reader is gone.
        for sink in &mut container.attached[index].sinks {
            if let Some(end) = sink.take_if(|end| end.key == key) {
                forget(&self.poller, &mut self.sources, end);
            }
        }
        self.detach_idle(process, index);
    }

    fn read_input(&mut self, process: Key, index: usize) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        let (Some(stdin), Some(end)) = (&mut container.stdin, &container.attached[index].input) else { return };
        let mut piece = [0; PIECE];
        match rustix::io::read(&end.fd, &mut piece) {
            Ok(0) => {}
            Ok(count) => {
                stdin.pending.extend_from_slice(&piece[..count]);
                return self.flush_input(process);
            }
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(errno) => crate::sys::say::say!("an attacher's input cannot be read: {errno}"),
        }
        if let Some(end) = container.attached[index].input.take() {
            forget(&self.poller, &mut self.sources, end);
        }
        self.detach_idle(process, index);
        self.end_input(process);
    }

    /// Writes pending input; reads on from attachers once there is none.
    pub(super) fn flush_input(&mut self, process: Key) {
        let key = self.new_key();
        let Some(container) = init_of(&mut self.processes, process) else { return };
        let Some(stdin) = &mut container.stdin else { return };
        let open = stdin.flush().is_ok();
        match (open, stdin.pending.is_empty(), stdin.waited) {
            (false, ..) => self.close_input(process),
            (true, true, _) if stdin.closing => self.close_input(process),
            (true, true, Some(_)) => self.unblock_input(process),
            (true, false, None) => {
                if self.poller.add_writable(&stdin.fd, key).is_ok() {
                    stdin.waited = Some(key);
                    self.sources.insert(key, Source::Stdin { process });
                }
                for end in container.attached.iter().filter_map(|attacher| attacher.input.as_ref()) {
                    self.poller.remove(&end.fd);
                }
            }
            (true, true, None) | (true, false, Some(_)) => {}
        }
    }

    fn unblock_input(&mut self, process: Key) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        if let Some(stdin) = &mut container.stdin
            && let Some(key) = stdin.waited.take()
        {
            self.poller.remove(&stdin.fd);
            self.sources.remove(&key);
        }
        for end in container.attached.iter().filter_map(|attacher| attacher.input.as_ref()) {
            if let Err(errno) = self.poller.add(&end.fd, end.key) {
                crate::sys::say::say!("an attacher's input is not read any more: {errno}");
            }
        }
    }

    /// No more goes in: nobody reads it, or its one attacher is done.
    fn close_input(&mut self, process: Key) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        if let Some(Stdin { fd, waited: Some(key), .. }) = container.stdin.take() {
            self.poller.remove(&fd);
            self.sources.remove(&key);
        }
        for end in container.attached.iter_mut().filter_map(|attacher| attacher.input.take()) {
            forget(&self.poller, &mut self.sources, end);
        }
        let (idle, busy) = std::mem::take(&mut container.attached).into_iter().partition(Attacher::is_idle);
        container.attached = busy;
        let idle: Vec<Attacher> = idle;
        idle.into_iter().for_each(|attacher| self.detach(attacher, Detached::Closed));
    }

    /// Whoever had a standard input that is for one only has no more of it.
    fn end_input(&mut self, process: Key) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        if let Some(stdin) = container.stdin.as_mut().filter(|_| container.spec.stdin_once) {
            if container.spec.tty && !stdin.closing {
                stdin.pending.push(END_OF_TRANSMISSION);
            }
            stdin.closing = true;
            self.flush_input(process);
        }
    }

    /// Takes out an attacher that has no stream left.
    fn detach_idle(&mut self, process: Key, index: usize) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        if container.attached[index].is_idle() {
            let attacher = container.attached.remove(index);
            self.detach(attacher, Detached::Closed);
        }
    }

    fn detach(&mut self, attacher: Attacher, why: Detached) {
        let (attach, client) = (attacher.number, attacher.client);
        for end in attacher.ends() {
            forget(&self.poller, &mut self.sources, end);
        }
        self.clients.notify(&self.poller, client, &Notice::Detached { attach, why });
    }

    /// Gives what was read last to all who are attached.
    pub(super) fn pass_on(&mut self, process: Key, stream: Stream) {
        let bytes = self.buffers.bytes();
        let Some(container) = init_of(&mut self.processes, process) else { return };
        let mut over = Vec::new();
        for index in (0..container.attached.len()).rev() {
            let attacher = &mut container.attached[index];
            let sink = &mut attacher.sinks[stream as usize];
            let Some(end) = sink else { continue };
            let why = match give(&end.fd, bytes) {
                Given::All => continue,
                Given::Gone => Detached::Closed,
                Given::TooSlow => Detached::TooSlow,
            };
            if let Some(end) = sink.take_if(|_| why == Detached::Closed) {
                forget(&self.poller, &mut self.sources, end);
            }
            if why == Detached::TooSlow || attacher.is_idle() {
                over.push((container.attached.remove(index), why));
            }
        }
        for (attacher, why) in over {
            let had_input = attacher.input.is_some();
            self.detach(attacher, why);
            if had_input {
                self.end_input(process);
            }
        }
    }

    /// An output has ended: so do those who listen to it.
    pub(super) fn close_sinks(&mut self, process: Key, stream: Stream) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        for attacher in &mut container.attached {
            if let Some(end) = attacher.sinks[stream as usize].take() {
                forget(&self.poller, &mut self.sources, end);
            }
        }
    }

    /// The container has ended and its output was passed on.
    pub(super) fn detach_all(&mut self, process: Key) {
        let Some(container) = init_of(&mut self.processes, process) else { return };
        for attacher in std::mem::take(&mut container.attached) {
            self.detach(attacher, Detached::Ended);
        }
        self.close_input(process);
    }
}

/// The container whose first process this is.
pub(super) fn init_of(processes: &mut BTreeMap<Key, Process>, key: Key) -> Option<&mut Container> {
    match processes.get_mut(&key) {
        Some(Process { role: Role::Init(container), .. }) => Some(container),
        _ => None,
    }
}

fn forget(poller: &Poller, sources: &mut BTreeMap<Key, Source>, end: End) {
    poller.remove(&end.fd);
    sources.remove(&end.key);
}

fn give(to: &impl AsFd, mut bytes: &[u8]) -> Given {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Given::TooSlow,
            Err(_) => return Given::Gone,
        }
    }
    Given::All
}
