//! Taking a host out of service: every sandbox, the warm pool, the keeper, the cgroups and the run directory's content.

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::keeper::{Keeper, unexpected};
use super::layout::unless_absent;
use super::slots::{blocking, cgroup_failed, io_failed};
use super::{NamespaceSandboxes, client};
use crate::cgroup::{Layout, Tree};
use crate::contract::{SandboxError, Sandboxes};
use crate::protocol::VERSIONS;
use crate::protocol::keeper::{Reply, Request};

/// How long the keeper may take to end.
const END: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

impl NamespaceSandboxes {
    /// Destroys every sandbox, warm ones too, ends the keeper and removes the cgroups. Running containers are killed.
    /// What fails is told, and the call may be repeated; the backend makes nothing new afterwards.
    pub async fn reset(&self) -> Result<(), SandboxError> {
        for listed in self.list().await? {
            self.destroy(&listed.id).await?;
        }
        let inner = &self.inner;
        inner.drain().await?;
        inner.keeper.stop().await?;
        // With every hierarchy that an agent may have used.
        let found = Layout::detect_all().map_err(|error| cgroup_failed("search for control groups", &error))?;
        Tree::remove(&found, &inner.config.cgroup_parent)
            .map_err(|error| cgroup_failed("removal of the pods' control group", &error))?;
        let run = &inner.config.run_dir;
        for name in ["pool", "sandboxes", "trash", "ids"] {
            unless_absent(std::fs::remove_dir_all(run.join(name)))
                .map_err(|error| io_failed("removal of the run directory's content", error))?;
        }
        unless_absent(std::fs::remove_file(run.join("keeper.sock")))
            .map_err(|error| io_failed("removal of the keeper's socket", error))
    }
}

impl Keeper {
    /// Ends the keeper if one answers, and waits until it has ended. Shims go on without it.
    pub(crate) async fn stop(&self) -> Result<(), SandboxError> {
        let mut held = self.client.lock().await;
        *held = None;
        let Ok(connection) = client::connect_in(&self.config.run_dir, "keeper.sock") else { return Ok(()) };
        let failed = |source| SandboxError::Unavailable { operation: "end of the keeper".to_owned(), source };
        let client =
            client::Client::<super::wire::KeeperWire>::new(connection, client::Listener::Nobody).map_err(failed)?;
        let greeted = client.call("greeting of the keeper", Request::Hello { versions: VERSIONS }, vec![]).await?;
        let Reply::Hello { pid, .. } = greeted.reply else { return Err(unexpected("greeting of the keeper")) };
        blocking(move || end(pid)).await?.map_err(failed)
    }
}

/// Asks a process to end and waits for it, by descriptor, so that its number cannot come to mean another.
pub(super) fn end(pid: u32) -> io::Result<()> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        other => other?,
    };
    match pidfd_send_signal(&process, Signal::TERM) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&END))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, format!("keeper {pid} did not end within 10 s of SIGTERM"))),
        _ => Ok(()),
    }
}
