//! The event loop.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::ShimError;
use super::clients::Clients;
use super::container::{Process, Waiter};
use super::history::History;
use super::joiner::Joiners;
use super::log::Buffers;
use super::own_root::OwnRoot;
use super::poller::{Key, Poller};
use super::slot::Slot;
use super::spare::Spare;
use super::stub::cgroups::CgroupView;
use super::stub::report::Step;
use crate::cgroup::{DeviceProgram, Group};
use crate::contract::SandboxEvent;
use crate::protocol::asking::Asking;
use crate::protocol::shim::Request;
use crate::protocol::{Call, Fill, Refusal};
use crate::spec::SandboxSpec;
use crate::sys::clock;

const LISTENER: Key = 0;
const SIGNALS: Key = 1;
const FIRST_FREE: Key = 2;

/// Messages taken from one client before the others have their turn.
const TURN: usize = 16;

/// What a key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Client,
    /// A stub's report.
    Report {
        process: Key,
    },
    /// A container's output.
    Output {
        process: Key,
    },
    /// A container's standard input, which takes bytes again.
    Stdin {
        process: Key,
    },
    /// A stream of one who is attached to a container.
    Attached {
        process: Key,
    },
    /// What a process beside a container says.
    Joiner,
}

/// What a configured sandbox has besides.
#[derive(Debug)]
pub(super) struct Configured {
    pub(super) spec: SandboxSpec,
    pub(super) logs: OwnedFd,
    /// First process of the pod's shared PID namespace.
    pub(super) pod_init: Option<PodInit>,
}

/// The pod's own PID namespace.
#[derive(Debug)]
pub(super) struct PodInit {
    pub(super) pid: rustix::process::Pid,
    pub(super) namespace: OwnedFd,
}

/// The whole state of a shim.
pub(crate) struct Shim {
    pub(super) poller: Poller,
    pub(super) sources: BTreeMap<Key, Source>,
    pub(super) clients: Clients,
    /// Children by key; a container's is known until its end has been told.
    pub(super) processes: BTreeMap<Key, Process>,
    pub(super) history: History,
    pub(super) pod: Group,
    pub(super) slot: Slot,
    pub(super) own_root: OwnRoot,
    pub(super) view: CgroupView,
    /// Room for output on its way to the logs.
    pub(super) buffers: Buffers,
    /// Containers that wrote too fast, and when to read on.
    pub(super) held_back: Vec<(u64, Key)>,
    pub(super) configured: Option<Configured>,
    pub(super) joiners: Joiners,
    /// For the first container.
    pub(super) spare: Option<Spare>,
    /// The mounts of a root that the spare has made ahead, and the root's own, which is in its hands too.
    pub(super) ahead: Option<Vec<OwnedFd>>,
    /// What decides about the devices of containers that ask for nothing special, where the host has loaded it.
    pub(super) usual_devices: Option<DeviceProgram>,
    /// Digest of the program that it runs, where it was told.
    pub(super) program: Option<String>,
    /// Set by `Shutdown`: who waits for the last child's end.
    pub(super) leaving: Option<Vec<Waiter>>,
    /// When the last wait ended: what it found was there by then.
    pub(super) woken_ns: u64,
    listener: OwnedFd,
    signals: SignalFd,
    next: Key,
}

impl Shim {
    pub(super) fn new(
        listener: OwnedFd,
        pod: Group,
        slot: Slot,
        own_root: OwnRoot,
        view: CgroupView,
        history: History,
    ) -> Result<Self, Refusal> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().step("blocking of SIGCHLD")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).step("signalfd")?;
        let poller = Poller::new().step("epoll")?;
        rustix::io::ioctl_fionbio(&listener, true).step("non-blocking listener")?;
        poller.add(&listener, LISTENER).step("epoll of the listener")?;
        poller.add(&signals, SIGNALS).step("epoll of signals")?;
        Ok(Self {
            poller,
            sources: BTreeMap::new(),
            clients: Clients::default(),
            processes: BTreeMap::new(),
            history,
            pod,
            slot,
            own_root,
            view,
            buffers: Buffers::default(),
            held_back: Vec::new(),
            configured: None,
            joiners: Joiners::default(),
            spare: None,
            ahead: None,
            usual_devices: None,
            program: None,
            leaving: None,
            woken_ns: 0,
            listener,
            signals,
            next: FIRST_FREE,
        })
    }

    /// Serves until told to shut down and the last child has gone.
    pub(super) fn serve(mut self) -> Result<(), ShimError> {
        loop {
            if self.leaving.is_some() && self.processes.is_empty() {
                crate::sys::failpoint::failpoint!(LastChildGone);
                self.farewell();
                crate::sys::failpoint::failpoint!(ShutdownTold);
                return Ok(());
            }
            let timeout = self.until_due();
            let ready = self.poller.wait(timeout.as_ref()).map_err(|errno| ShimError::Wait(errno.into()))?;
            self.woken_ns = clock::boottime_ns();
            for key in ready {
                self.dispatch(key);
            }
            self.read_on();
            self.give_up_joiners();
        }
    }

    fn dispatch(&mut self, key: Key) {
        match key {
            LISTENER => {
                if let Some(silent) = self.clients.surplus() {
                    self.forget_client(silent);
                }
                let key = self.new_key();
                if self.clients.accept(&self.listener, key, &self.poller).is_ok() {
                    self.sources.insert(key, Source::Client);
                }
            }
            SIGNALS => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            key => match self.sources.get(&key) {
                Some(Source::Client) => self.serve_client(key),
                Some(Source::Report { process }) => drop(self.follow_report(*process)),
                Some(Source::Output { process }) => self.read_output(*process, key),
                Some(Source::Stdin { process }) => self.flush_input(*process),
                Some(Source::Attached { process }) => self.attached(*process, key),
                Some(Source::Joiner) => self.follow_joiner(key),
                None => {}
            },
        }
    }

    fn serve_client(&mut self, key: Key) {
        let filled = match self.clients.map.get_mut(&key) {
            Some(client) => client.connection.fill(),
            None => return,
        };
        match filled {
            Ok(Fill::Data) => {}
            Ok(Fill::WouldBlock) => {
                if !self.clients.flush(&self.poller, key) {
                    self.forget_client(key);
                }
                return;
            }
            Ok(Fill::Closed | Fill::Unread) | Err(_) => return self.forget_client(key),
        }
        for _ in 0..TURN * 64 {
            let Some(client) = self.clients.map.get_mut(&key) else { return };
            match client.connection.next_body() {
                Ok(Some((body, fds))) => match self.read(key, &body) {
                    Ok(call) => self.request(key, call, fds),
                    Err(error) if !self.refuse_unparsed(key, &body, &error) => return self.forget_client(key),
                    Err(_) => {}
                },
                Ok(None) => break,
                Err(_) => return self.forget_client(key),
            }
        }
        if !self.clients.flush(&self.poller, key) {
            self.forget_client(key);
        }
    }

    /// Reads a request. The stub that stands by reads a start at the same time.
    fn read(&mut self, client: Key, body: &[u8]) -> Result<Call<Request>, serde_json::Error> {
        let asking = Asking::of(body)?;
        if let Some(start) = asking.start()
            && self.clients.map.get(&client).is_some_and(|client| client.version.is_some())
        {
            self.forward_start(start);
        }
        asking.call()
    }

    pub(super) fn forget_client(&mut self, key: Key) {
        self.clients.drop_client(&self.poller, key);
        self.sources.remove(&key);
    }

    pub(super) fn new_key(&mut self) -> Key {
        let key = self.next;
        self.next += 1;
        key
    }

    /// Records an event, then tells it.
    pub(super) fn record(&mut self, event: SandboxEvent) {
        if let Err(error) = self.history.push(event.clone()) {
            crate::sys::say::say!("event record cannot be written: {error}");
        }
        self.clients.publish(&self.poller, &event);
    }
}
