//! An asynchronous caller of a keeper or a shim: one connection, on which whoever asks writes itself, and one task that reads.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::io::{Interest, Ready};
use tokio::sync::{mpsc, oneshot};

use super::pool::Ending;
use super::wire::{Begun, Incoming, Wire};
use crate::contract::{Detached, Exit, SandboxError, SandboxEvent};
use crate::protocol::{Answer, Call, Connection, Fill, ProtocolError, VERSIONS};
use crate::sys::watch::{self, Shared};

/// An answer with what came along.
#[derive(Debug)]
pub(crate) struct Delivered<R> {
    pub(crate) reply: R,
    pub(crate) fds: Vec<OwnedFd>,
    /// Of a begun exec: its end, when it comes.
    pub(crate) exit: Option<oneshot::Receiver<Exit>>,
    /// Of an attachment: its end, when it comes.
    pub(crate) detached: Option<oneshot::Receiver<Detached>>,
}

/// Calls a keeper or a shim. Clones share the connection.
#[derive(Debug)]
pub(crate) struct Client<W: Wire> {
    link: Arc<Link<W>>,
    /// Tells the reading task that something could not be written at once, and by its end that nobody can ask any more.
    stuck: mpsc::Sender<()>,
    /// The version agreed on.
    version: Arc<AtomicU32>,
}

impl<W: Wire> Clone for Client<W> {
    fn clone(&self) -> Self {
        Self { link: Arc::clone(&self.link), stuck: self.stuck.clone(), version: Arc::clone(&self.version) }
    }
}

/// A connection with who waits for what on it.
type Link<W> = AsyncFd<Shared<Open<W>>>;

/// Who waits for an answer.
type Waiting<R> = oneshot::Sender<Result<Delivered<R>, SandboxError>>;

#[derive(Debug)]
struct Open<W: Wire> {
    waiting: HashMap<u64, Waiting<W::Reply>>,
    execs: HashMap<u64, oneshot::Sender<Exit>>,
    attachments: HashMap<u64, oneshot::Sender<Detached>>,
    next: u64,
    /// Nothing is answered any more.
    ended: bool,
}

impl<W: Wire> Default for Open<W> {
    fn default() -> Self {
        let (waiting, execs, attachments) = Default::default();
        Self { waiting, execs, attachments, next: 1, ended: false }
    }
}

/// Connects to the socket `name` in the directory at `path` (which may be longer than a socket address). Waits for nobody:
/// where as many wait to be taken as may, that is the error `WouldBlock`.
pub(crate) fn connect_in(path: &Path, name: &str) -> io::Result<Connection> {
    let directory = super::layout::open_directory(path)?;
    let address = super::socket_address(&directory, name)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    Ok(Connection::new(socket))
}

/// Where a connection's events go.
#[derive(Debug)]
pub(crate) enum Listener {
    /// None are asked for.
    Nobody,
    /// To somebody for whom alone the connection is there: it waits for a slow reader, and ends with it.
    Subscriber(mpsc::Sender<SandboxEvent>),
    /// To somebody who may come to read them: who does not read in time gets no more.
    Aside {
        events: Option<mpsc::Sender<SandboxEvent>>,
        #[expect(dead_code, reason = "tells who keeps the pool, by being dropped")]
        ending: Ending,
    },
}

impl<W: Wire> Client<W> {
    /// Takes a connection over.
    pub(crate) fn new(connection: Connection, events: Listener) -> io::Result<Self> {
        let link = Arc::new(watch::connection(connection, Open::default())?);
        let (stuck, asked) = mpsc::channel(1);
        tokio::spawn(Task { link: Arc::clone(&link), asked, events }.run());
        Ok(Self { link, stuck, version: Arc::new(AtomicU32::new(VERSIONS.lowest)) })
    }

    /// What was agreed on with the other side: nothing that came later is asked from now on.
    pub(crate) fn agreed(&self, version: u32) {
        self.version.store(version, Ordering::Relaxed);
    }

    /// The connection has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.stuck.is_closed()
    }

    /// Asks. What is asked by one caller after the other is written in that order, before the first await.
    pub(crate) fn call(
        &self,
        operation: &str,
        request: W::Request,
        fds: Vec<OwnedFd>,
    ) -> impl Future<Output = Result<Delivered<W::Reply>, SandboxError>> + Send + use<W> {
        let operation = operation.to_owned();
        let asked = self.ask(request, fds);
        async move {
            let gone = || SandboxError::Unavailable {
                operation,
                source: io::Error::new(io::ErrorKind::ConnectionReset, "the connection has ended"),
            };
            match asked? {
                Some(answered) => answered.await.map_err(|_| gone())?,
                None => Err(gone()),
            }
        }
    }

    /// Writes a request; `None` when the connection has ended.
    fn ask(&self, request: W::Request, fds: Vec<OwnedFd>) -> Result<Option<Answered<W::Reply>>, SandboxError> {
        if let Some(what) = W::unknown_in(&request, self.version.load(Ordering::Relaxed)) {
            return Err(SandboxError::Unsupported { what: what.to_owned() });
        }
        let (answer, answered) = oneshot::channel();
        let (connection, open) = &mut *self.link.get_ref().lock();
        if open.ended {
            return Ok(None);
        }
        let id = open.next;
        let queued = connection.queue(&Call { id, body: request }, fds);
        queued.map_err(|error| SandboxError::Invalid { message: error.to_string() })?;
        open.next += 1;
        open.waiting.insert(id, answer);
        match connection.flush() {
            Ok(true) => {}
            // Full already: the task has been told before, too.
            Ok(false) => drop(self.stuck.try_send(())),
            Err(error) => {
                tracing::debug!(%error, "a request could not be written");
                open.waiting.remove(&id);
                return Ok(None);
            }
        }
        Ok(Some(answered))
    }
}

/// Where an answer comes.
type Answered<R> = oneshot::Receiver<Result<Delivered<R>, SandboxError>>;

struct Task<W: Wire> {
    link: Arc<Link<W>>,
    asked: mpsc::Receiver<()>,
    /// The last: whoever is told of the end finds the connection closed.
    events: Listener,
}

impl<W: Wire> Drop for Task<W> {
    fn drop(&mut self) {
        let (_, open) = &mut *self.link.get_ref().lock();
        *open = Open { ended: true, ..Open::default() };
    }
}

impl<W: Wire> Task<W> {
    /// Ends with the connection or with the last client that could ask or wait.
    async fn run(mut self) {
        if let Err(error) = self.serve().await {
            tracing::debug!(error = %error, "connection to a keeper or shim has ended");
        }
    }

    async fn serve(&mut self) -> Result<(), ProtocolError> {
        loop {
            let interest = self.interest();
            tokio::select! {
                stuck = self.asked.recv() => if stuck.is_none() {
                    // Nobody can ask any more, but ends or events may be waited for.
                    return self.only_listen().await;
                },
                guard = self.link.ready(interest) => {
                    let open = transfer(&mut guard?)?;
                    self.take_in().await?;
                    if !open {
                        return Err(ProtocolError::Closed);
                    }
                }
            }
        }
    }

    fn interest(&self) -> Interest {
        if self.link.get_ref().lock().0.wants_write() {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        }
    }

    /// Whether an end is still waited for.
    fn awaited(&self) -> bool {
        let (_, open) = &mut *self.link.get_ref().lock();
        open.execs.retain(|_, waiter| !waiter.is_closed());
        open.attachments.retain(|_, waiter| !waiter.is_closed());
        !open.execs.is_empty() || !open.attachments.is_empty()
    }

    async fn only_listen(&mut self) -> Result<(), ProtocolError> {
        loop {
            let interest = self.interest();
            let subscriber = match &self.events {
                Listener::Subscriber(events) => Some(events.clone()),
                _ => None,
            };
            if !self.awaited() && subscriber.is_none() {
                return Ok(());
            }
            let gone = async {
                match subscriber {
                    Some(events) => events.closed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = gone => return Ok(()),
                guard = self.link.ready(interest) => {
                    let open = transfer(&mut guard?)?;
                    self.take_in().await?;
                    if !open {
                        return Err(ProtocolError::Closed);
                    }
                }
            }
        }
    }

    async fn take_in(&mut self) -> Result<(), ProtocolError> {
        while let Some(event) = self.next_event()? {
            match &mut self.events {
                Listener::Nobody => {}
                Listener::Subscriber(events) => events.send(event).await.map_err(|_| ProtocolError::Closed)?,
                Listener::Aside { events, .. } => {
                    if events.as_ref().is_some_and(|reader| reader.try_send(event).is_err()) {
                        *events = None;
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands out what came, up to the next event.
    fn next_event(&self) -> Result<Option<SandboxEvent>, ProtocolError> {
        let (connection, open) = &mut *self.link.get_ref().lock();
        while let Some((incoming, fds)) = connection.next_message::<W::Incoming>()? {
            match W::sort(incoming) {
                Incoming::Event(event) => return Ok(Some(event)),
                Incoming::Answer(answer) => open.deliver(answer, fds),
                Incoming::ExecExited(exec, exit) => {
                    if let Some(waiter) = open.execs.remove(&exec) {
                        let _ = waiter.send(exit);
                    }
                }
                Incoming::Detached(attach, why) => {
                    if let Some(waiter) = open.attachments.remove(&attach) {
                        let _ = waiter.send(why);
                    }
                }
                Incoming::Unknown(answered) => {
                    if let Some(waiter) = answered.and_then(|id| open.waiting.remove(&id)) {
                        let what = "understanding of a newer version's answer".to_owned();
                        let _ = waiter.send(Err(SandboxError::Unsupported { what }));
                    }
                }
            }
        }
        Ok(None)
    }
}

impl<W: Wire> Open<W> {
    fn deliver(&mut self, answer: Answer<W::Reply>, fds: Vec<OwnedFd>) {
        let Some(waiter) = self.waiting.remove(&answer.id) else { return };
        let delivered = answer.result.map_err(SandboxError::from).map(|reply| {
            let (mut exit, mut detached) = (None, None);
            match W::begun(&reply) {
                Some(Begun::Exec(exec)) => {
                    let (told, waiter) = oneshot::channel();
                    self.execs.insert(exec, told);
                    exit = Some(waiter);
                }
                Some(Begun::Attachment(attach)) => {
                    let (told, waiter) = oneshot::channel();
                    self.attachments.insert(attach, told);
                    detached = Some(waiter);
                }
                None => {}
            }
            Delivered { reply, fds, exit, detached }
        });
        let _ = waiter.send(delivered);
    }
}

/// Reads and writes what the socket is ready for; false when the other side has closed.
fn transfer<S>(guard: &mut AsyncFdReadyGuard<'_, Shared<S>>) -> Result<bool, ProtocolError> {
    let ready = guard.ready();
    let (written, read) = {
        let (connection, _) = &mut *guard.get_inner().lock();
        let written = if ready.is_writable() { Some(connection.flush()?) } else { None };
        let read = if ready.is_readable() { Some(connection.fill()?) } else { None };
        (written, read)
    };
    if written == Some(false) {
        guard.clear_ready_matching(Ready::WRITABLE);
    }
    match read {
        Some(Fill::WouldBlock) => guard.clear_ready_matching(Ready::READABLE),
        Some(Fill::Closed | Fill::Unread) => return Ok(false),
        Some(Fill::Data) | None => {}
    }
    Ok(true)
}
