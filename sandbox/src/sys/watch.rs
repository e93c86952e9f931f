//! Descriptors for tokio to wait on.
#![allow(unsafe_code)] // tokio asks for the promise that a descriptor stays the same

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};

use crate::protocol::Connection;

/// A connection and what belongs to it, behind a lock; it is waited on without the lock.
#[derive(Debug)]
pub(crate) struct Shared<S> {
    socket: RawFd,
    parts: Mutex<(Connection, S)>,
}

impl<S> Shared<S> {
    /// Both, until the guard is dropped. The connection must not be exchanged for another.
    pub(crate) fn lock(&self) -> MutexGuard<'_, (Connection, S)> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> AsRawFd for Shared<S> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket
    }
}

/// Waits on a connection, for both directions.
pub(crate) fn connection<S>(connection: Connection, state: S) -> std::io::Result<AsyncFd<Shared<S>>> {
    let interest = Interest::READABLE | Interest::WRITABLE;
    let shared = Shared { socket: connection.as_raw_fd(), parts: Mutex::new((connection, state)) };
    // SAFETY: a Connection owns one socket from its making to its drop and has no way to exchange it; the AsyncFd owns
    // it, and this crate never replaces what `lock` gives.
    Ok(unsafe { AsyncFd::register_with_interest(shared, interest) }?)
}

/// Waits on any descriptor. One that cannot be waited on (a regular file) comes back.
pub(crate) fn descriptor(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, AsyncFdRegisterError<OwnedFd>> {
    // SAFETY: the OwnedFd is open and moves into the AsyncFd, which closes it; nothing else owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }
}
