//! Doing things inside a network namespace: on a thread of its own, which enters it and ends afterwards.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rtnetlink::Handle;

/// A namespace could not be entered or used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("open network namespace {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread could not be made, or ended early.
    #[error("run in a network namespace")]
    Thread(#[source] io::Error),
    /// The kernel does not let us in.
    #[error("enter a network namespace")]
    Enter(#[source] io::Error),
    /// No netlink socket.
    #[error("open a netlink socket")]
    Netlink(#[source] io::Error),
}

/// Opens a namespace by path.
pub(super) fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    let file = File::open(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
    Ok(file.into())
}

/// Runs `work` inside the namespace (`None`: our own). What it spawns by exec inherits the namespace.
pub(super) async fn run<R, F>(netns: Option<OwnedFd>, work: F) -> Result<R, NetnsError>
where
    R: Send + 'static,
    F: FnOnce() -> R + Send + 'static,
{
    let (tell, told) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let body = move || {
        let _context = runtime.enter();
        let entered = match netns {
            Some(netns) => nix::sched::setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from),
            None => Ok(()),
        };
        // A receiver that is gone has stopped to care.
        let _ = tell.send(entered.map(|()| work()));
    };
    std::thread::Builder::new().name("netns".to_owned()).spawn(body).map_err(NetnsError::Thread)?;
    let outcome = told.await.map_err(|_| NetnsError::Thread(io::Error::other("the thread ended early")))?;
    outcome.map_err(NetnsError::Enter)
}

/// A netlink socket of the namespace, after `prepare` was run there. The socket stays in that namespace.
pub(super) async fn netlink<F>(netns: Option<OwnedFd>, prepare: F) -> Result<Handle, NetnsError>
where
    F: FnOnce() + Send + 'static,
{
    let opened = run(netns, move || {
        prepare();
        rtnetlink::new_connection().map(|(connection, handle, _)| (connection, handle))
    });
    let (connection, handle) = opened.await?.map_err(NetnsError::Netlink)?;
    // Ends with the last handle.
    tokio::spawn(connection);
    Ok(handle)
}
