//! The start of a container: what it is made of is opened and handed to its shim.
//!
//! A root that was made ahead is used where it is the same; where that cannot be any more the container starts without it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::ahead::{Ahead, Given};
use super::client::{Client, Delivered};
use super::keeper::unexpected;
use super::room::Wanted;
use super::slots::io_failed;
use super::wire::ShimWire;
use super::{Inner, STATUS, blocking, not_found, sources};
use crate::contract::{SandboxError, Started};
use crate::protocol::shim::{Reply, Request, StartFds};
use crate::spec::{ContainerSpec, SandboxId};

impl Inner {
    /// See [`Sandboxes::start`](crate::contract::Sandboxes::start).
    pub(crate) async fn start(
        self: &Arc<Self>,
        id: &SandboxId,
        container: &ContainerSpec,
    ) -> Result<Started, SandboxError> {
        let shim = self.shim(id).await?;
        let (ahead, first) = self.shims.begin(id);
        if first {
            self.roots.started(&container.rootfs.layers);
        }
        // What was made ahead holds as much as its disk.
        let ahead = ahead.filter(|_| container.rootfs.writable_limit.is_none());
        let volumes = self.volumes(&container.mounts).await?;
        crate::sys::failpoint::failpoint!(SourcesOpened);
        let started = match start_assembled(&shim, ahead, container, &volumes).await? {
            Some(started) => started,
            None => self.start_afresh(id, &shim, container, volumes).await?,
        };
        crate::sys::failpoint::failpoint!(StartAnswered);
        Ok(started)
    }

    /// With a root that the container's stub makes.
    async fn start_afresh(
        self: &Arc<Self>,
        id: &SandboxId,
        shim: &Client<ShimWire>,
        container: &ContainerSpec,
        volumes: Vec<OwnedFd>,
    ) -> Result<Started, SandboxError> {
        let mut fds = self.mount(&container.rootfs.layers).await?;
        crate::sys::failpoint::failpoint!(LayersReceived);
        let writable = match (&container.rootfs.writable, container.rootfs.writable_limit) {
            (Some(path), Some(bytes)) => Some(self.limited(id, shim, container, path.clone(), bytes).await?),
            (Some(path), None) => Some(sources::writable(path)?),
            (None, _) => None,
        };
        let (layers, writables, mounts) = (fds.len(), usize::from(writable.is_some()), volumes.len());
        fds.extend(writable.into_iter().chain(volumes));
        let counts = StartFds { layers, writable: writables, mounts, assembled: false };
        let started = call(shim, container, counts, fds).await?;
        self.pile_layers();
        Ok(started)
    }

    /// The mount of a writable directory with a limit.
    async fn limited(
        self: &Arc<Self>,
        id: &SandboxId,
        shim: &Client<ShimWire>,
        container: &ContainerSpec,
        path: PathBuf,
        bytes: u64,
    ) -> Result<OwnedFd, SandboxError> {
        let (inner, sandbox) = (Arc::clone(self), id.clone());
        let (name, attempt) = (container.name.clone(), container.attempt);
        let given = blocking(move || {
            let slot = inner.slot(&sandbox)?;
            let own_ids = slot.namespaces.user;
            let wanted = Wanted { sandbox, container: name, attempt, bytes, own_ids };
            let given = inner.room.limited(&path, &wanted)?;
            // Who has destroyed it meanwhile did not find this.
            if !matches!(inner.slot(&wanted.sandbox), Ok(same) if same == slot) {
                drop(given);
                inner.room.take_back(&wanted);
                return Err(not_found(&wanted.sandbox));
            }
            Ok(given)
        });
        let given = given.await??;
        crate::sys::failpoint::failpoint!(RoomMounted);
        if given.taken && !runs(shim, &container.name).await {
            tracing::warn!(
                sandbox.id = %id,
                container = container.name,
                attempt,
                "a container's root may hold more than its limit: its writable directory was in use before"
            );
        }
        Ok(given.mount)
    }
}

/// Whether a container runs already: what is asked again of a backend was not heard by the one before. It has then what it was given.
async fn runs(shim: &Client<ShimWire>, container: &str) -> bool {
    let asked = shim.call("status of a shim", Request::Status, vec![]);
    match tokio::time::timeout(STATUS, asked).await {
        Ok(Ok(Delivered { reply: Reply::Status(status), .. })) => status.running.contains_key(container),
        _ => false,
    }
}

/// With the root that was made ahead, if it is the container's and its stub still has it.
async fn start_assembled(
    shim: &Client<ShimWire>,
    ahead: Option<Ahead>,
    container: &ContainerSpec,
    volumes: &[OwnedFd],
) -> Result<Option<Started>, SandboxError> {
    if ahead.map(|ahead| ahead.become_of(container)) != Some(Given::Root) {
        return Ok(None);
    }
    let copies = volumes.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>();
    let copies = copies.map_err(|error| io_failed("copies of descriptors", error))?;
    let counts = StartFds { mounts: volumes.len(), assembled: true, ..StartFds::default() };
    match call(shim, container, counts, copies).await {
        // The stub that had made it is not there any more, or its limits are below what it has used.
        Err(SandboxError::NotFound { .. }) => Ok(None),
        other => other.map(Some),
    }
}

async fn call(
    shim: &Client<ShimWire>,
    container: &ContainerSpec,
    counts: StartFds,
    fds: Vec<OwnedFd>,
) -> Result<Started, SandboxError> {
    let request = Request::Start { spec: container.clone(), fds: counts };
    match shim.call("start of a container", request, fds).await?.reply {
        Reply::Started(started) => Ok(started),
        _ => Err(unexpected("start of a container")),
    }
}
