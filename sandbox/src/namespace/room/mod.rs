//! Writable directories that hold only so much ([`Rootfs::writable_limit`](crate::spec::Rootfs::writable_limit)).
//!
//! | the directory's file system | what keeps the limit | a write beyond it fails with |
//! | --- | --- | --- |
//! | has project quotas ([`quota`]) | a project of the directory's own | `EDQUOT` (ext4), `ENOSPC` (XFS) |
//! | any other | an ext4 of its own in a file ([`image`]), made for this attempt alone | `ENOSPC` |
//!
//! A sandbox without a user namespace of its own gets the latter always: whoever owns a file there could give it another project.
//!
//! Neither needs anything to be taken down: a project whose files are gone is free for the next directory, and the file system in
//! the file is there as long as the container's root is, or as long as it is held here ([`held`]): what was written to it last is
//! counted by it alone, and whoever lets go of it last waits until that is on the disk, which is not to be the container's shim.

mod held;
pub(crate) mod image;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, fstatvfs, openat};

use self::held::AllHeld;
use super::{layout, sources};
use crate::contract::SandboxError;
use crate::spec::{ContainerName, SandboxId};
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
    held: AllHeld,
}

/// A container's writable directory.
#[derive(Debug)]
pub(crate) struct Given {
    /// Its detached mount, which nobody else has.
    pub(crate) mount: OwnedFd,
    /// It was in use before, and is as it was: within its limit only if it was given one then.
    pub(crate) taken: bool,
}

impl Given {
    fn new(mount: OwnedFd) -> Self {
        Self { mount, taken: false }
    }
}

/// Whose writable directory it is, and what it may hold.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) sandbox: SandboxId,
    pub(crate) container: ContainerName,
    pub(crate) attempt: u32,
    pub(crate) bytes: u64,
    /// The sandbox has a user namespace.
    pub(crate) own_ids: bool,
}

impl Room {
    /// `wanted`: whether limits are kept at all.
    pub(crate) fn new(wanted: bool) -> Self {
        Self { wanted, next: Mutex::new(0), said: AtomicBool::new(false), held: AllHeld::default() }
    }

    /// A container's writable directory, which is made when missing, and in which no more than so many bytes can be kept. The same
    /// attempt gets the same one, unless another backend has made it; those of other attempts are held no longer. Blocking.
    pub(crate) fn limited(&self, path: &Path, wanted: &Wanted) -> Result<Given, SandboxError> {
        if !self.wanted {
            return sources::writable(path).map(Given::new);
        }
        let failed = |error: io::Error| SandboxError::Failed {
            operation: format!("limit of {} bytes for writable directory {}", wanted.bytes, path.display()),
            message: error.to_string(),
        };
        self.held.leave_others(wanted);
        if let Some(image) = self.held.of(wanted) {
            return image.mount().map(Given::new).map_err(failed);
        }
        layout::make_directory(path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        if wanted.own_ids && quota::are_held(&directory).map_err(failed)? {
            self.give_project(&directory, wanted.bytes).map_err(failed)?;
            return sources::writable(path).map(Given::new);
        }
        match image::create(path, wanted.bytes.min(size_of_disk(&directory).map_err(failed)?)) {
            Ok(image) => {
                let mount = image.mount().map_err(failed)?;
                self.held.keep(wanted, image);
                Ok(Given::new(mount))
            }
            Err(image::ImageError::Taken) => Ok(Given { mount: sources::writable(path)?, taken: true }),
            Err(image::ImageError::Impossible { what, error }) => {
                if !self.said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        what,
                        %error,
                        "what containers write to their roots is limited by eviction alone: neither project quotas nor file systems in files"
                    );
                }
                sources::writable(path).map(Given::new)
            }
            Err(image::ImageError::Failed(error)) => Err(failed(error)),
        }
    }

    /// Bytes in those of a sandbox's file systems that are held here.
    pub(crate) fn written(&self, sandbox: &SandboxId) -> BTreeMap<ContainerName, u64> {
        self.held.written(sandbox)
    }

    /// Lets go of one that was given to a start that comes to nothing: its sandbox is gone. Blocking.
    pub(crate) fn take_back(&self, wanted: &Wanted) {
        self.held.take_back(wanted);
    }

    /// Lets go of a sandbox's file systems: what they have not written yet is written before the last is gone. Blocking.
    pub(crate) fn forget(&self, sandbox: &SandboxId) {
        self.held.forget(sandbox);
    }

    /// A sandbox has some, or some that still leave.
    pub(crate) fn has(&self, sandbox: &SandboxId) -> bool {
        self.held.has(sandbox)
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

/// Bytes of the file system that a directory is on: nothing on it can be larger.
fn size_of_disk(directory: impl AsFd) -> io::Result<u64> {
    let found = fstatvfs(directory)?;
    Ok(found.f_blocks.saturating_mul(found.f_frsize))
}
