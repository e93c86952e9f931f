//! Descriptors for tokio to wait on.
#![allow(unsafe_code)] // tokio asks for the promise that a descriptor stays the same

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};

use crate::protocol::Connection;

/// Waits on a connection, for both directions.
pub(crate) fn connection(connection: Connection) -> std::io::Result<AsyncFd<Connection>> {
    let interest = Interest::READABLE | Interest::WRITABLE;
    // SAFETY: a Connection owns one socket from its making to its drop and has no way to exchange it; the AsyncFd owns
    // the Connection, and this crate never replaces what `get_mut` gives.
    Ok(unsafe { AsyncFd::register_with_interest(connection, interest) }?)
}

/// Waits on any descriptor. One that cannot be waited on (a regular file) comes back.
pub(crate) fn descriptor(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, AsyncFdRegisterError<OwnedFd>> {
    // SAFETY: the OwnedFd is open and moves into the AsyncFd, which closes it; nothing else owns it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }
}
