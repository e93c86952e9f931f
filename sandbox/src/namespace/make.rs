//! Making a slot: its record, its control groups, its shim.
//!
//! ```text
//!  agent    record, group to be cloned into ─ ask ─ other groups, socket ─ supply ─ connect and ask, first container's parts …
//!  keeper                                      └─ clone ─ clone           │
//!  maker                                            └─ namespaces ────────│──────────┐
//!  shim                                                     └─ root ──────┴─ stub ───┴─ answer
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, socketpair};

use super::ahead::Ahead;
use super::keeper::Ready;
use super::layout::{self, Slot};
use super::slots::{Warm, blocking, cgroup_failed, io_failed};
use super::{Inner, RECORD, SHIM_SOCKET};
use crate::cgroup::{BegunPod, Group};
use crate::contract::SandboxError;
use crate::protocol::Connection;
use crate::protocol::keeper::{FdRole, Spawn};
use crate::shim::spare::LEAF as FIRST_LEAF;
use crate::shim::{Arguments, Supplies};
use crate::spec::{Namespaces, SandboxId};

impl Inner {
    /// Makes a slot in `pool/`. What fails half-way is taken apart again; a keeper that was found gone is asked once more, for
    /// another slot. `awaited`: somebody's container is to start in it at once.
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
        let keeper = self.keeper.ready().await?;
        let (inner, slot) = (Arc::clone(self), slot.clone());
        let begun = blocking(move || {
            let directory = inner.layout.warm(&slot);
            let (spawned, made) = inner.begin_slot(&slot, &directory, &keeper, awaited)?;
            let made = made.and_then(|pod| {
                let adopted = inner.adopt(&slot, &directory)?;
                Ok((adopted, if awaited { inner.help(&slot, &pod) } else { None }))
            });
            Ok::<_, SandboxError>((spawned, made))
        });
        let (spawned, made) = begun.await??;
        // A keeper that was asked is heard to the end: it may have a child that nobody else knows of, or the reason.
        let spawned = async {
            let (pid, _) = spawned.await?;
            crate::sys::failpoint::failpoint!(ShimSpawned);
            tracing::debug!(pid, "started a shim");
            Ok::<(), SandboxError>(())
        };
        let mut spawned = std::pin::pin!(spawned);
        let (adopted, ahead) = match made {
            Ok(made) => made,
            Err(error) => {
                spawned.await?;
                return Err(error);
            }
        };
        let mut adopted = std::pin::pin!(adopted);
        let adopted = tokio::select! {
            biased;
            spawned = &mut spawned => {
                spawned?;
                adopted.await
            }
            adopted = &mut adopted => {
                spawned.await?;
                adopted
            }
        };
        crate::sys::failpoint::failpoint!(ShimGreeted);
        Ok(Warm { ahead, ..adopted?.0 })
    }

    /// Writes down what is being made, asks for the shim, and makes what it needs while it begins. First what the keeper says;
    /// then the pod's group, once the shim has all.
    #[allow(clippy::type_complexity, reason = "what is to come, and what has come to be")]
    fn begin_slot(
        &self,
        slot: &Slot,
        directory: &Path,
        keeper: &Ready,
        awaited: bool,
    ) -> Result<
        (
            impl Future<Output = Result<(u32, Option<OwnedFd>), SandboxError>> + Send + use<>,
            Result<Group, SandboxError>,
        ),
        SandboxError,
    > {
        let failed = |what| failed(slot, what);
        layout::make_directory(directory).map_err(failed("directory"))?;
        crate::sys::failpoint::failpoint!(SlotDirectoryMade);
        layout::write_json(&directory.join("slot.json"), slot).map_err(failed("record"))?;
        crate::sys::failpoint::failpoint!(SlotRecorded);
        let id = SandboxId(slot.name.clone());
        let pod = self.tree.begin_pod(&id).map_err(|error| cgroup_failed("control group of a sandbox", &error))?;
        crate::sys::failpoint::failpoint!(PodGroupBegun);
        let (supplies, its) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|errno| io_failed("socket for what a shim needs", errno.into()))?;
        let arguments = Arguments {
            slot: slot.name.clone(),
            uid_base: slot.uid_base(),
            cgroup: pod.handle(),
            namespaces: slot.namespaces.clone(),
            program: keeper.program.clone(),
            device_program: self.device_program.is_some(),
            awaited,
        };
        let spawned = ask(keeper, slot, &arguments, &pod, its)?;
        crate::sys::failpoint::failpoint!(ShimAsked);
        // Without it, all that the shim gets is the socket's end, and it ends too.
        let supplied = self.supply(slot, directory, pod, supplies);
        Ok((spawned, supplied))
    }

    /// Makes what the shim needs, and gives it away: with the shim ends what waits at its socket.
    fn supply(&self, slot: &Slot, directory: &Path, pod: BegunPod<'_>, to: OwnedFd) -> Result<Group, SandboxError> {
        let failed = |what| failed(slot, what);
        let (pod, joined) = pod.finish().map_err(|error| cgroup_failed("control group of a sandbox", &error))?;
        crate::sys::failpoint::failpoint!(PodGroupMade);
        layout::reserve(&directory.join("spec.json")).map_err(failed("record"))?;
        let record = directory.join(RECORD);
        layout::make_directory(&record).map_err(failed("record directory"))?;
        let record = layout::open_directory(&record).map_err(failed("record directory"))?;
        crate::sys::failpoint::failpoint!(RecordDirectoryMade);
        let listener = listen_in(directory).map_err(failed("socket"))?;
        crate::sys::failpoint::failpoint!(SocketBound);
        let copy =
            |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|error| io_failed("copy of a descriptor", error));
        let mut fds = vec![listener, record];
        for fd in pod.lend().1 {
            fds.push(copy(fd)?);
        }
        if slot.namespaces.host_ipc {
            fds.push(super::sources::shared_memory()?);
        }
        if let Some(program) = &self.device_program {
            fds.push(copy(program.as_fd())?);
        }
        fds.extend(joined);
        let sent = Connection::new(to).send(&Supplies, fds);
        sent.map_err(|error| SandboxError::Unavailable {
            operation: "supply of a shim".to_owned(),
            source: io::Error::other(error),
        })?;
        crate::sys::failpoint::failpoint!(ShimSupplied);
        Ok(pod)
    }

    /// Makes, while the shim of a sandbox that somebody waits for begins, what that would make next: the control groups of the
    /// first container; and that one's writable directory. Whatever is missing of it is made later.
    fn help(&self, slot: &Slot, pod: &Group) -> Option<Ahead> {
        if let Err(error) = pod.create_leaf(FIRST_LEAF) {
            tracing::debug!(slot = slot.name, %error, "the control groups of the first container are left to the shim");
        }
        crate::sys::failpoint::failpoint!(FirstLeafMade);
        self.bare_ahead(&slot.name)
    }
}

/// Names what of a slot could not be made.
fn failed(slot: &Slot, what: &str) -> impl FnOnce(io::Error) -> SandboxError + use<> {
    let operation = format!("{what} of {}", slot.name);
    move |error| io_failed(&operation, error)
}

/// Asks the keeper for a shim.
fn ask(
    keeper: &Ready,
    slot: &Slot,
    arguments: &Arguments,
    pod: &BegunPod<'_>,
    supplies: OwnedFd,
) -> Result<impl Future<Output = Result<(u32, Option<OwnedFd>), SandboxError>> + Send + use<>, SandboxError> {
    let argument =
        serde_json::to_string(arguments).map_err(|error| io_failed("arguments of a shim", io::Error::other(error)))?;
    let (mut roles, mut fds) = (vec![FdRole::Supplies], vec![supplies]);
    if let Some(directory) = pod.clone_into() {
        let copy = directory.try_clone_to_owned().map_err(|error| io_failed("copy of a descriptor", error))?;
        roles.push(FdRole::CgroupDirectory);
        fds.push(copy);
    }
    let host_pid = slot.namespaces.host_pid;
    Ok(keeper.spawn(
        Spawn { slot: slot.name.clone(), arguments: vec![argument], fds: roles, host_pid },
        fds,
        arguments.awaited,
    ))
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
