//! Namespaces known by handle: not held, and not mistaken for a later one.
#![allow(unsafe_code)] // file handles have no safe wrapper

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

/// A namespace's handle has 16 bytes (`struct nsfs_file_handle`).
const ROOM: usize = 64;

/// What `name_to_handle_at` fills in: `struct file_handle`, and room for the handle.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Raw {
    head: [u32; 2],
    bytes: [u8; ROOM],
}

/// One namespace, as long as it is there.
#[derive(Debug)]
pub(in crate::bench) struct Handle(Raw);

impl Handle {
    /// The handle of an open namespace; none where the kernel gives none out (before 6.18).
    pub(in crate::bench) fn of(namespace: BorrowedFd<'_>) -> Result<Option<Self>> {
        let mut raw = Raw { head: [ROOM as u32, 0], bytes: [0; ROOM] };
        let mut mount = 0;
        // SAFETY: the descriptor is borrowed and open, the path is an empty C string that AT_EMPTY_PATH asks for, `raw` has
        // the layout of `struct file_handle` with as much room behind it as its first word says, and both outlive the call.
        let done = unsafe {
            libc::name_to_handle_at(
                namespace.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if done == 0 {
            return Ok(Some(Self(raw)));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error).context("name_to_handle_at of a namespace"),
        }
    }

    /// Whether anything holds it still; where that cannot be asked, yes.
    pub(in crate::bench) fn has_holders(&self) -> bool {
        !matches!(self.open(), Err(error) if error.raw_os_error() == Some(libc::ESTALE))
    }

    fn open(&self) -> io::Result<OwnedFd> {
        let place = File::open("/proc/thread-self/ns/net")?;
        let mut raw = self.0;
        // SAFETY: `place` is an open descriptor on the file system of namespaces, `raw` is a handle as the kernel filled it
        // in, with its own size in its first word, and outlives the call.
        let fd = unsafe { libc::open_by_handle_at(place.as_raw_fd(), (&raw mut raw).cast(), libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given it out, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn privileged_a_namespace_is_known_as_long_as_somebody_holds_it() {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo held; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 5];
        io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut word).unwrap();
        let namespace = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        let handle = Handle::of(namespace.as_fd()).unwrap();
        let (own, ended) = (File::open("/proc/self/ns/net").unwrap(), holder.stdin.take());
        let Some(handle) = handle else {
            eprintln!(
                "SKIPPED privileged_a_namespace_is_known_as_long_as_somebody_holds_it: no handles before Linux 6.18"
            );
            drop(ended);
            holder.wait().unwrap();
            return;
        };
        drop(ended);
        holder.wait().unwrap();
        assert!(handle.has_holders(), "the descriptor");
        drop(namespace);
        let deadline = Instant::now() + Duration::from_secs(30);
        while handle.has_holders() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(Handle::of(own.as_fd()).unwrap().unwrap().has_holders());
    }
}
