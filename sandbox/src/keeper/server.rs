//! The keeper's loop: accepts, answers, reaps. One thread; no call waits for anybody.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, openat, unlinkat};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt::socket_peercred};
use rustix::process::{WaitOptions, wait};

use super::layers::Layers;
use super::maker::Makers;
use super::spawn::Spawner;
use super::{KeeperError, Step};
use crate::protocol::keeper::{Reply, Request, Shim};
use crate::protocol::{Answer, Call, Connection, Fill, ProtocolError, Refusal, Unparsed, VERSIONS};
use crate::sys::hold;

/// Clients at a time: the agent and a few tools.
const MAX_CLIENTS: usize = 64;
/// Clients accepted before those that are there have their turn.
const ACCEPTED_A_TURN: usize = 16;
/// Requests of one client that are answered before others get their turn.
const REQUESTS_A_TURN: usize = 16;
const SOCKET: &str = "keeper.sock";
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// When those who make namespaces have ended, and what is waited for has come too.
const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// The bound socket, its directory and the lock on it.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    directory: OwnedFd,
    _lock: File,
}

impl Listener {
    /// Takes the lock and binds `DIR/keeper.sock` (0600). A socket that a dead keeper left is replaced.
    pub(super) fn bind(directory: &Path) -> Result<Self, KeeperError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .step(format!("creation of {}", directory.display()))?;
        let path = directory.join("keeper.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .step(format!("open of {}", path.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(KeeperError::AlreadyRunning { path }),
            Err(errno) => return Err(errno).step(format!("lock of {}", path.display())),
        }
        crate::sys::failpoint::failpoint!(KeeperLocked);
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, directory, flags, Mode::empty()).step(format!("open of {}", directory.display()))?;
        // Bound under another name and moved: the socket has its mode from the moment that it has its name.
        let fresh = directory.join(format!("{SOCKET}.next"));
        remove(&opened, &format!("{SOCKET}.next")).step("removal of an old socket")?;
        let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(&fresh);
        rustix::process::umask(mask);
        let bound = bound.step(format!("bind of {}", fresh.display()))?;
        bound.set_nonblocking(true).step("non-blocking socket")?;
        std::fs::rename(&fresh, directory.join(SOCKET)).step("naming of the socket")?;
        crate::sys::failpoint::failpoint!(KeeperNamed);
        Ok(Self { socket: bound.into(), directory: opened, _lock: lock })
    }
}

fn remove(directory: &OwnedFd, name: &str) -> Result<(), Errno> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// One connection.
#[derive(Debug)]
struct Client {
    connection: Connection,
    /// What was agreed on.
    version: u32,
    /// It has asked for something.
    spoke: bool,
    /// Requests that were read already wait: nothing is read before they are answered.
    more: bool,
}

/// Everything the keeper has.
#[derive(Debug)]
pub(super) struct Server {
    listener: Listener,
    signals: SignalFd,
    layers: Layers,
    spawner: Spawner,
    /// Digest of the program that its shims run.
    program: String,
    /// The oldest first.
    clients: Vec<Client>,
    /// Living shims: slot by process.
    shims: BTreeMap<i32, String>,
    /// Who makes their namespaces.
    makers: Makers,
}

impl Server {
    /// Blocks the signals that the loop takes.
    pub(super) fn new(
        listener: Listener,
        layers: Layers,
        spawner: Spawner,
        program: String,
    ) -> Result<Self, KeeperError> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().step("mask of signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .step("descriptor for signals")?;
        let (shims, makers) = (BTreeMap::new(), Makers::default());
        Ok(Self { listener, signals, layers, spawner, program, clients: Vec::new(), shims, makers })
    }

    /// Serves until SIGTERM or SIGINT. Shims are left alone, and who works for them.
    pub(super) fn serve(mut self) -> Result<(), KeeperError> {
        let mut unfinished = false;
        loop {
            let ready = self.wait(unfinished)?;
            if ready[0] && self.take_signals()? {
                // Its name goes first, so that nobody connects to what no longer answers.
                return remove(&self.listener.directory, SOCKET).step("removal of the socket");
            }
            if ready[0] || !self.makers.is_empty() {
                self.collect()?;
            }
            if ready[1] {
                self.accept()?;
            }
            unfinished = false;
            let clients = std::mem::take(&mut self.clients);
            for (i, mut client) in clients.into_iter().enumerate() {
                // Clients accepted just now were not waited for; a turn without anything to read does no harm.
                match self.turn(&mut client) {
                    Ok(more) => {
                        unfinished |= more;
                        self.clients.push(client);
                    }
                    Err(ProtocolError::Closed) => {}
                    Err(error) => {
                        tracing::warn!(client = i, error = %error, "client of the keeper is cut off");
                    }
                }
            }
        }
    }

    /// Waits; tells of the signals and of the listener whether they are ready. `unfinished`: only looks.
    fn wait(&self, unfinished: bool) -> Result<[bool; 2], KeeperError> {
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.socket.as_fd(), PollFlags::IN),
        ];
        for client in &self.clients {
            let client = &client.connection;
            let flags = if client.wants_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::from_borrowed_fd(client.socket(), flags));
        }
        let wait = if unfinished { Some(&NOW) } else { Some(&SOON).filter(|_| !self.makers.is_empty()) };
        match poll(&mut fds, wait) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).step("wait for events"),
        }
        Ok([!fds[0].revents().is_empty(), !fds[1].revents().is_empty()])
    }

    /// True when told to end.
    fn take_signals(&mut self) -> Result<bool, KeeperError> {
        let mut end = false;
        while let Some(signal) = self.signals.read_signal().step("read of signals")? {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            end |= number == Signal::SIGTERM as i32 || number == Signal::SIGINT as i32;
        }
        Ok(end)
    }

    /// Collects whoever has ended.
    fn collect(&mut self) -> Result<(), KeeperError> {
        // One SIGCHLD may stand for several ends, and none tells of who makes namespaces.
        loop {
            match wait(WaitOptions::NOHANG | hold::ALL) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    if !self.makers.ended(pid)
                        && let Some(slot) = self.shims.remove(&pid)
                    {
                        crate::sys::failpoint::failpoint!(ShimReaped);
                        tracing::info!(slot, pid, ?status, "shim has ended");
                    }
                }
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).step("reaping"),
            }
        }
    }

    fn accept(&mut self) -> Result<(), KeeperError> {
        let own = rustix::process::geteuid();
        for _ in 0..ACCEPTED_A_TURN {
            let socket = match accept_with(&self.listener.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    tracing::warn!("a client could not be accepted for want of descriptors or memory");
                    return Ok(());
                }
                Err(errno) => return Err(errno).step("accept"),
            };
            match socket_peercred(&socket) {
                Ok(peer) if (peer.uid == own || peer.uid.is_root()) && self.make_room() => {
                    let connection = Connection::new(socket);
                    let version = VERSIONS.lowest;
                    self.clients.push(Client { connection, version, spoke: false, more: false });
                }
                // Dropping it is the answer.
                Ok(peer) => tracing::warn!(uid = peer.uid.as_raw(), "client of the keeper is refused"),
                Err(errno) => tracing::warn!(error = %errno, "client of the keeper cannot be identified"),
            }
        }
        Ok(())
    }

    /// Whether one more client can be had; the oldest that never asked for anything goes for it. Whoever only connects
    /// never keeps the agent out.
    fn make_room(&mut self) -> bool {
        if self.clients.len() >= MAX_CLIENTS
            && let Some(silent) = self.clients.iter().position(|client| !client.spoke)
        {
            self.clients.remove(silent);
        }
        self.clients.len() < MAX_CLIENTS
    }

    /// Reads, answers and writes what is there now. True when more requests wait that were already read.
    fn turn(
        &mut self,
        Client { connection: client, version, spoke, more }: &mut Client,
    ) -> Result<bool, ProtocolError> {
        let fill = if *more { Fill::Data } else { client.fill()? };
        let mut answered = 0;
        *more = false;
        while let Some((body, fds)) = client.next_body()? {
            let (id, answered_with) = match serde_json::from_slice::<Call<Request>>(&body) {
                Ok(call) => (call.id, self.answer(call.body, fds)),
                Err(error) => match Unparsed::refuse(&body, &Request::NAMES, *version, &error) {
                    Some((id, refusal)) => (id, Err(refusal)),
                    None => return Err(ProtocolError::Body(error)),
                },
            };
            let (result, fds) = match answered_with {
                Ok((reply, fds)) => (Ok(reply), fds),
                Err(refusal) => (Err(refusal), Vec::new()),
            };
            if let Ok(Reply::Hello { version: agreed, .. }) = &result {
                *version = *agreed;
            }
            client.queue(&Answer { id, result }, fds)?;
            *spoke = true;
            answered += 1;
            if answered == REQUESTS_A_TURN {
                *more = true;
                break;
            }
        }
        client.flush()?;
        if matches!(fill, Fill::Closed | Fill::Unread) && !*more {
            return Err(ProtocolError::Closed);
        }
        Ok(*more)
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<(Reply, Vec<OwnedFd>), Refusal> {
        match request {
            Request::Hello { versions } => {
                let version = VERSIONS.negotiate(versions).ok_or_else(|| Refusal::Invalid {
                    message: format!("no common protocol version: keeper {VERSIONS:?}, caller {versions:?}"),
                })?;
                let program = Some(self.program.clone());
                Ok((Reply::Hello { version, pid: std::process::id(), program }, Vec::new()))
            }
            Request::Ping => Ok((Reply::Pong, Vec::new())),
            Request::Mount { layers } => {
                let clones = self.layers.clones(&layers)?;
                crate::sys::failpoint::failpoint!(LayersCloned);
                Ok((Reply::Mounted, clones))
            }
            Request::Release { ids } => {
                self.layers.release(&ids);
                crate::sys::failpoint::failpoint!(LayerReleased);
                Ok((Reply::Done, Vec::new()))
            }
            Request::Spawn(spawn) => {
                if self.shims.values().any(|slot| *slot == spawn.slot) {
                    return Err(Refusal::Invalid { message: format!("slot {} has a living shim", spawn.slot) });
                }
                crate::sys::failpoint::failpoint!(SpawnRead);
                let child = self.spawner.spawn(&spawn, fds, &mut self.makers)?;
                crate::sys::failpoint::failpoint!(ShimForked);
                let pid = child.pid.as_raw_nonzero().get();
                self.shims.insert(pid, spawn.slot);
                Ok((Reply::Spawned { pid: pid.unsigned_abs() }, vec![child.pidfd]))
            }
            Request::List => {
                let shims =
                    self.shims.iter().map(|(pid, slot)| Shim { slot: slot.clone(), pid: pid.unsigned_abs() }).collect();
                Ok((Reply::Listed { shims, layers: self.layers.ids() }, Vec::new()))
            }
        }
    }
}
