//! Slots: found again after a start, connected with, and taken apart.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::ahead::Ahead;
use super::client::{Client, Listener, connect_in};
use super::keeper::unexpected;
use super::layout::{self, Slot};
use super::pool::Ending;
use super::wire::ShimWire;
use super::{Inner, SHIM_SOCKET, events};
use crate::cgroup::CgroupError;
use crate::contract::{SandboxError, SandboxEvent};
use crate::protocol::VERSIONS;
use crate::protocol::shim::{Reply, Request, Status};
use crate::spec::SandboxId;

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

    /// Connects to the shim of a slot that waits, and subscribes to what will happen in it: asked at once, answered when it can.
    pub(super) fn adopt(
        &self,
        slot: &Slot,
        directory: &Path,
    ) -> Result<impl Future<Output = Result<(Warm, Status), SandboxError>> + Send + use<>, SandboxError> {
        let (events, receiver) = mpsc::channel(events::BUFFER);
        let ending = Ending(self.pool_changes.downgrade());
        let (client, greeted) = approach(directory, Listener::Aside { events: Some(events), ending })?;
        let subscribed = client.call("subscription to a shim", Request::Subscribe, vec![]);
        let slot = slot.clone();
        Ok(async move {
            let (status, netns) = greeted.await?;
            subscribed.await?;
            Ok((Warm { slot, client, netns, events: receiver, ahead: None }, status))
        })
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
            match in_time(async { self.adopt(&slot, &directory)?.await }).await {
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
