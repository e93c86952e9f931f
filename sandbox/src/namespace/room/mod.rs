//! Writable directories that hold only so much ([`Rootfs::writable_limit`](crate::spec::Rootfs::writable_limit)).
//!
//! | the directory's file system | what keeps the limit | a write beyond it fails with |
//! | --- | --- | --- |
//! | has project quotas ([`quota`]) | a project of the directory's own | `EDQUOT` (ext4), `ENOSPC` (XFS) |
//! | any other | an ext4 of its own in a file ([`image`]), mounted for this start alone | `ENOSPC` |
//!
//! Neither needs anything to be taken down: a project whose files are gone is free for the next directory, and the file system in
//! the file is there as long as the container's root is.

pub(crate) mod image;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{layout, sources};
use crate::contract::SandboxError;
use crate::sys::quota;

/// Numbers of projects that are given out; far from those that people write into /etc/projid.
const FIRST: u32 = 0x4E4C_0000;
const COUNT: u32 = 0x1_0000;

/// Bytes that the overlay's own directories take of a project's limit, and more.
const DIRECTORIES: u64 = 64 << 10;

/// How a host keeps its writable directories within their limits.
#[derive(Debug)]
pub(crate) struct Room {
    wanted: bool,
    /// The project that is tried next, counted from the first. Held while one is chosen and given.
    next: Mutex<u32>,
    /// It was said that this host cannot.
    said: AtomicBool,
}

impl Room {
    /// `wanted`: whether limits are kept at all.
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, next: Mutex::new(0), said: AtomicBool::new(false) }
    }

    /// The detached mount of a container's writable directory, which is made when missing, and in which no more than so many
    /// bytes can be kept. What an earlier start has left in it may be gone. Blocking.
    pub(crate) fn limited(&self, path: &Path, bytes: u64) -> Result<OwnedFd, SandboxError> {
        if !self.wanted {
            return sources::writable(path);
        }
        let failed = |error: io::Error| SandboxError::Failed {
            operation: format!("limit of {bytes} bytes for writable directory {}", path.display()),
            message: error.to_string(),
        };
        layout::make_directory(path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        if quota::are_held(&directory).map_err(failed)? {
            self.give_project(&directory, bytes).map_err(failed)?;
            return sources::writable(path);
        }
        match image::mount(path, bytes) {
            Ok(mount) => Ok(mount),
            Err(image::ImageError::Impossible { what }) => {
                if !self.said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        what,
                        "what containers write to their roots is limited by eviction alone: neither project quotas nor file systems in files"
                    );
                }
                sources::writable(path)
            }
            Err(image::ImageError::Failed(error)) => Err(failed(error)),
        }
    }

    /// Has the directory be of a project that nothing else is of, with this limit; of the one that it has already, if any.
    fn give_project(&self, directory: impl AsFd, bytes: u64) -> io::Result<()> {
        let (directory, bytes) = (directory.as_fd(), bytes.saturating_add(DIRECTORIES));
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let own = quota::project(directory)?;
        if (FIRST..FIRST + COUNT).contains(&own) {
            return quota::limit(directory, own, bytes);
        }
        for _ in 0..COUNT {
            let project = FIRST + *next;
            *next = (*next + 1) % COUNT;
            if !quota::is_used(directory, project)? {
                // First the limit: nothing is ever written without it.
                quota::limit(directory, project, bytes)?;
                return quota::set_project(directory, project);
            }
        }
        Err(io::Error::other(format!("all {COUNT} projects have files")))
    }
}
