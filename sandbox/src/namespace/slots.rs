//! Making slots and taking them apart.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::sync::mpsc;

use super::ahead::Ahead;
use super::client::{Client, Listener, connect_in};
use super::keeper::unexpected;
use super::layout::{self, Slot};
use super::pool::Ending;
use super::wire::ShimWire;
use super::{Inner, RECORD, SHIM_SOCKET, events};
use crate::cgroup::{CgroupError, Group};
use crate::contract::{SandboxError, SandboxEvent};
use crate::protocol::VERSIONS;
use crate::protocol::keeper::{FdRole, Spawn};
use crate::protocol::shim::{Reply, Request, Status};
use crate::shim::Arguments;
use crate::shim::spare::LEAF as FIRST_LEAF;
use crate::spec::{Namespaces, SandboxId};

/// How long a shim may take to end by itself, and then its processes to be gone.
const GRACE: Duration = Duration::from_secs(2);
/// How long a shim may take to say who it is. One that waits for a disk lives, and answers when it can; nobody else waits for
/// it meanwhile.
pub(crate) const GREETING: Duration = Duration::from_secs(10);
const REMOVAL: Duration = Duration::from_secs(10);

/// A slot with a living shim.
#[derive(Debug)]
pub(crate) struct Warm {
    pub(crate) slot: Slot,
    pub(crate) client: Client<ShimWire>,
    pub(crate) netns: OwnedFd,
    /// What happens in it, for its first subscriber.
    pub(crate) events: mpsc::Receiver<SandboxEvent>,
    /// The root that it has made ahead.
    pub(crate) ahead: Option<Ahead>,
}

/// Slots that wait.
pub(crate) type Pool = VecDeque<Warm>;

impl Inner {
    /// Makes a slot in `pool/`: claim, directory, cgroup, shim. What fails half-way is taken apart again; a keeper that was
    /// found gone is asked once more, for another slot. `awaited`: somebody's container is to start in it at once.
    pub(crate) async fn make_slot(
        self: &Arc<Self>,
        namespaces: &Namespaces,
        awaited: bool,
    ) -> Result<Warm, SandboxError> {
        match self.try_slot(namespaces, awaited).await {
            Err(SandboxError::Unavailable { .. }) => {
                // Finds the new keeper, or starts it.
                self.keeper.search().await?;
                self.try_slot(namespaces, awaited).await
            }
            other => other,
        }
    }

    async fn try_slot(self: &Arc<Self>, namespaces: &Namespaces, awaited: bool) -> Result<Warm, SandboxError> {
        let claimed = self.layout.claim(namespaces).map_err(|error| io_failed("claim of a range of ids", error))?;
        crate::sys::failpoint::failpoint!(SlotClaimed);
        let slot = Slot { namespaces: namespaces.clone(), ..claimed };
        match self.fill_slot(&slot, awaited).await {
            Ok(warm) => Ok(warm),
            Err(error) => {
                // One that cannot be cleared is left over.
                let _ = self.discard(slot, None).await;
                Err(error)
            }
        }
    }

    async fn fill_slot(self: &Arc<Self>, slot: &Slot, awaited: bool) -> Result<Warm, SandboxError> {
        let directory = self.layout.warm(slot);
        let inner = Arc::clone(self);
        let (named, made) = (slot.clone(), directory.clone());
        let parts = blocking(move || inner.make_parts(&named, &made)).await??;
        let pod = Arc::clone(&parts.pod);
        // Its socket is there before it: what it is asked waits for it in there.
        let spawned = async move {
            self.spawn_shim(slot, &parts, awaited).await?;
            crate::sys::failpoint::failpoint!(ShimSpawned);
            // From here on the socket is the shim's alone: with it ends what waits there.
            drop(parts);
            Ok::<(), SandboxError>(())
        };
        let (mut spawned, mut adopted) = (std::pin::pin!(spawned), std::pin::pin!(self.adopt(slot, &directory)));
        let made = async {
            tokio::select! {
                biased;
                spawned = &mut spawned => {
                    spawned?;
                    adopted.await
                }
                // A keeper that was asked is heard to the end: it may have a child that nobody else knows of, or the reason.
                adopted = &mut adopted => {
                    spawned.await?;
                    adopted
                }
            }
        };
        let beside = async { if awaited { self.help(slot, pod).await } else { None } };
        let (made, ahead) = tokio::join!(biased; made, beside);
        crate::sys::failpoint::failpoint!(ShimGreeted);
        Ok(Warm { ahead, ..made?.0 })
    }

    /// Makes, while the shim of a sandbox that somebody waits for begins, what that would make next: the control groups of the
    /// first container; and that one's writable directory. Whatever is missing of it is made later.
    async fn help(self: &Arc<Self>, slot: &Slot, pod: Arc<Group>) -> Option<Ahead> {
        let (inner, name) = (Arc::clone(self), slot.name.clone());
        let helped = blocking(move || {
            if let Err(error) = pod.create_leaf(FIRST_LEAF) {
                tracing::debug!(slot = name, %error, "the control groups of the first container are left to the shim");
            }
            crate::sys::failpoint::failpoint!(FirstLeafMade);
            inner.bare_ahead(&name)
        });
        helped.await.ok().flatten()
    }

    fn make_parts(&self, slot: &Slot, directory: &Path) -> Result<Parts, SandboxError> {
        let failed = |operation: &str| {
            let operation = format!("{operation} of {}", slot.name);
            move |error: io::Error| io_failed(&operation, error)
        };
        layout::make_directory(directory).map_err(failed("directory"))?;
        crate::sys::failpoint::failpoint!(SlotDirectoryMade);
        layout::write_json(&directory.join("slot.json"), slot).map_err(failed("record"))?;
        layout::reserve(&directory.join("spec.json")).map_err(failed("record"))?;
        crate::sys::failpoint::failpoint!(SlotRecorded);
        let record = directory.join(RECORD);
        layout::make_directory(&record).map_err(failed("record directory"))?;
        let record = layout::open_directory(&record).map_err(failed("record directory"))?;
        crate::sys::failpoint::failpoint!(RecordDirectoryMade);
        let cgroup = |error: CgroupError| cgroup_failed("control group of a sandbox", &error);
        let pod = self.tree.create_pod(&SandboxId(slot.name.clone())).map_err(cgroup)?;
        crate::sys::failpoint::failpoint!(PodGroupMade);
        let leaf = pod.create_shim_leaf().map_err(cgroup)?;
        crate::sys::failpoint::failpoint!(ShimLeafMade);
        let listener = listen_in(directory).map_err(failed("socket"))?;
        crate::sys::failpoint::failpoint!(SocketBound);
        Ok(Parts { pod: Arc::new(pod), leaf, record, listener })
    }

    async fn spawn_shim(&self, slot: &Slot, parts: &Parts, awaited: bool) -> Result<(), SandboxError> {
        let (handle, pod_fds) = parts.pod.lend();
        let arguments = Arguments {
            slot: slot.name.clone(),
            uid_base: slot.uid_base(),
            cgroup: handle,
            namespaces: slot.namespaces.clone(),
            program: self.keeper.program().await?,
            device_program: self.device_program.is_some(),
            awaited,
        };
        let argument = serde_json::to_string(&arguments)
            .map_err(|error| io_failed("arguments of a shim", io::Error::other(error)))?;
        let mut lent: Vec<(FdRole, OwnedFd)> = Vec::new();
        let copy = |fd: std::os::fd::BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|error| io_failed("copy of a descriptor", error))
        };
        lent.push((FdRole::Keep, copy(parts.listener.as_fd())?));
        lent.push((FdRole::Keep, copy(parts.record.as_fd())?));
        for fd in pod_fds {
            lent.push((FdRole::Keep, copy(fd)?));
        }
        if slot.namespaces.host_ipc {
            lent.push((FdRole::Keep, super::sources::shared_memory()?));
        }
        if let Some(program) = &self.device_program {
            lent.push((FdRole::Keep, copy(program.as_fd())?));
        }
        let group = parts.leaf.as_ref().unwrap_or(&*parts.pod);
        if let Some(directory) = group.clone_into() {
            lent.push((FdRole::CgroupDirectory, copy(directory)?));
        }
        let joined = group.joined_by_shim().map_err(|error| cgroup_failed("open of a shim's control group", &error))?;
        lent.extend(joined.into_iter().map(|members| (FdRole::CgroupProcs, members)));
        let (roles, fds): (Vec<FdRole>, Vec<OwnedFd>) = lent.into_iter().unzip();
        let host_pid = slot.namespaces.host_pid;
        let spawn = Spawn { slot: slot.name.clone(), arguments: vec![argument], fds: roles, host_pid };
        crate::sys::failpoint::failpoint!(ShimAsked);
        let (pid, _) = self.keeper.spawn(&spawn, fds).await?;
        tracing::debug!(slot = slot.name, pid, "started a shim");
        Ok(())
    }

    /// Takes a slot apart, wherever its directory is; every step may have been done before. One that is nobody's when that
    /// fails is left over ([`super::leftovers`]).
    /// `known`: its shim, when it is connected.
    pub(crate) async fn clear_slot(
        self: &Arc<Self>,
        slot: &Slot,
        directory: &Path,
        known: Option<Client<ShimWire>>,
    ) -> Result<(), SandboxError> {
        let client = match known {
            Some(client) => Some(client),
            None => {
                let greeted = tokio::time::timeout(GRACE, greet(directory)).await;
                greeted.ok().and_then(Result::ok).map(|(client, _, _)| client)
            }
        };
        if let Some(client) = client {
            let goodbye = client.call("shutdown of a shim", Request::Shutdown, vec![]);
            if !matches!(tokio::time::timeout(GRACE, goodbye).await, Ok(Ok(_))) {
                tracing::warn!(slot = slot.name, "a shim does not end by itself and is killed");
            }
        }
        crate::sys::failpoint::failpoint!(ShutdownAnswered);
        let inner = Arc::clone(self);
        let (slot, directory) = (slot.clone(), directory.to_owned());
        blocking(move || {
            let removed = inner.remove_parts(&slot, &directory);
            if let Err(why) = &removed
                && (directory == inner.layout.warm(&slot) || !directory.exists())
            {
                // No pod's, or no longer: nobody else will ask for this again.
                inner.leftovers.keep(&slot, why);
            }
            removed
        })
        .await?
    }

    fn remove_parts(&self, slot: &Slot, directory: &Path) -> Result<(), SandboxError> {
        let failed = |operation: &'static str| move |error: io::Error| io_failed(operation, error);
        self.tree
            .remove_pod(&SandboxId(slot.name.clone()), REMOVAL)
            .map_err(|error| cgroup_failed("removal of a sandbox's control groups", &error))?;
        crate::sys::failpoint::failpoint!(GroupsRemoved);
        self.roots.remove(&slot.name).map_err(failed("removal of a writable directory"))?;
        let trash = self.layout.trash(slot);
        layout::unless_absent(fs::remove_dir_all(&trash)).map_err(failed("emptying of the trash"))?;
        layout::unless_absent(fs::rename(directory, &trash)).map_err(failed("removal of a sandbox's directory"))?;
        crate::sys::failpoint::failpoint!(DirectoryTrashed);
        layout::unless_absent(fs::remove_dir_all(&trash)).map_err(failed("emptying of the trash"))?;
        crate::sys::failpoint::failpoint!(TrashEmptied);
        self.layout.release(slot).map_err(failed("release of a range of ids"))?;
        crate::sys::failpoint::failpoint!(SlotReleased);
        Ok(())
    }

    /// Connects to the shim of a slot that waits, and subscribes to what will happen in it.
    async fn adopt(&self, slot: &Slot, directory: &Path) -> Result<(Warm, Status), SandboxError> {
        let (events, receiver) = mpsc::channel(events::BUFFER);
        let ending = Ending(self.pool_changes.downgrade());
        let (client, greeted) = approach(directory, Listener::Aside { events: Some(events), ending })?;
        let subscribed = client.call("subscription to a shim", Request::Subscribe, vec![]);
        let (status, netns) = greeted.await?;
        subscribed.await?;
        Ok((Warm { slot: slot.clone(), client, netns, events: receiver, ahead: None }, status))
    }

    /// After a start: warm slots that live are kept, every other claim that is no sandbox's is cleared.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<(), SandboxError> {
        let failed = |error: io::Error| io_failed("reading of the run directory", error);
        crate::sys::failpoint::failpoint!(RecoveryBegun);
        let mut owned = std::collections::BTreeSet::new();
        for id in self.layout.sandboxes().map_err(failed)? {
            match self.layout.slot(&id).map_err(failed)? {
                Some(slot) => drop(owned.insert(slot.name)),
                None => layout::unless_absent(fs::remove_dir_all(self.layout.sandbox(&id))).map_err(failed)?,
            }
        }
        crate::sys::failpoint::failpoint!(SandboxesRead);
        for slot in self.layout.claimed().map_err(failed)? {
            if owned.contains(&slot.name) {
                continue;
            }
            let directory = self.layout.warm(&slot);
            // One of other namespaces was made for a pod that did not get it.
            let recorded: Option<Slot> = layout::read_json(&directory.join("slot.json")).map_err(failed)?;
            let usual = recorded.is_some_and(|recorded| recorded == slot);
            match in_time(self.adopt(&slot, &directory)).await {
                // Nor is one of an older program for a new pod; and what one has made ahead is forgotten.
                Ok((warm, status))
                    if usual
                        && !status.configured
                        && !status.assembled
                        && status.program == self.keeper.program().await? =>
                {
                    self.pool.lock().await.push_back(warm);
                    crate::sys::failpoint::failpoint!(WarmAdopted);
                }
                _ => {
                    crate::sys::failpoint::failpoint!(OrphanFound);
                    // One that cannot be cleared is left over: a host starts with what it can.
                    let _ = self.discard(slot, None).await;
                }
            }
        }
        for name in self.layout.warm_slots().map_err(failed)? {
            if !self.layout.claimed().map_err(failed)?.iter().any(|slot| slot.name == name) {
                layout::unless_absent(fs::remove_dir_all(self.layout.run.join("pool").join(name))).map_err(failed)?;
            }
        }
        Ok(())
    }
}

struct Parts {
    pod: Arc<Group>,
    /// The shim's own, unless it is in the pod's.
    leaf: Option<Group>,
    record: OwnedFd,
    listener: OwnedFd,
}

fn listen_in(directory: &Path) -> io::Result<OwnedFd> {
    let directory = layout::open_directory(directory)?;
    let address = super::socket_address(&directory, SHIM_SOCKET)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The directory is 0700; the socket's own mode says so again. Nobody connects before listen.
    bind(&socket, &address)?;
    rustix::fs::chmodat(&directory, SHIM_SOCKET, rustix::fs::Mode::from_raw_mode(0o600), rustix::fs::AtFlags::empty())?;
    listen(&socket, 64)?;
    Ok(socket)
}

/// What a shim says within [`GREETING`].
pub(crate) async fn in_time<T>(asked: impl Future<Output = Result<T, SandboxError>>) -> Result<T, SandboxError> {
    let late = |_| SandboxError::Unavailable {
        operation: "connection to a shim".to_owned(),
        source: io::Error::new(io::ErrorKind::TimedOut, "it does not answer"),
    };
    tokio::time::timeout(GREETING, asked).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

/// Connects to the shim whose directory this is, and learns how it is.
pub(crate) async fn greet(directory: &Path) -> Result<(Client<ShimWire>, Status, OwnedFd), SandboxError> {
    let (client, greeted) = approach(directory, Listener::Nobody)?;
    let (status, netns) = greeted.await?;
    Ok((client, status, netns))
}

/// The connection, and how its shim is. It is asked in one breath, as each answer would be waited for anew.
#[allow(clippy::type_complexity, reason = "a pair, and what it will be")]
fn approach(
    directory: &Path,
    events: Listener,
) -> Result<
    (Client<ShimWire>, impl Future<Output = Result<(Status, OwnedFd), SandboxError>> + Send + use<>),
    SandboxError,
> {
    let unavailable = |source| SandboxError::Unavailable { operation: "connection to a shim".to_owned(), source };
    let connection = connect_in(directory, SHIM_SOCKET).map_err(unavailable)?;
    let client = Client::new(connection, events).map_err(unavailable)?;
    let greeted = hello(&client);
    let told = client.call("status of a shim", Request::Status, vec![]);
    let answered = async move {
        greeted.await?;
        let delivered = told.await?;
        match (delivered.reply, delivered.fds.into_iter().next()) {
            (Reply::Status(status), Some(netns)) => Ok((status, netns)),
            _ => Err(unexpected("status of a shim")),
        }
    };
    Ok((client, answered))
}

/// The first words on a connection.
pub(crate) fn hello(client: &Client<ShimWire>) -> impl Future<Output = Result<(), SandboxError>> + Send + use<> {
    let asked = client.call("greeting of a shim", Request::Hello { versions: VERSIONS }, vec![]);
    let client = client.clone();
    async move {
        match asked.await?.reply {
            Reply::Hello { version } => {
                client.agreed(version);
                Ok(())
            }
            _ => Err(unexpected("greeting of a shim")),
        }
    }
}

pub(crate) fn io_failed(operation: &str, error: io::Error) -> SandboxError {
    SandboxError::Failed { operation: operation.to_owned(), message: error.to_string() }
}

pub(crate) fn cgroup_failed(operation: &str, error: &CgroupError) -> SandboxError {
    let source = std::error::Error::source(error);
    let message = source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    SandboxError::Failed { operation: operation.to_owned(), message }
}

/// Runs what may block beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SandboxError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| SandboxError::Failed { operation: "background work".to_owned(), message: error.to_string() })
}
