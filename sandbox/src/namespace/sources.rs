//! What a container is made of, opened on the host's side: detached clones of mounts, by descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{Inner, blocking};
use crate::contract::SandboxError;
use crate::spec::Mount;
use crate::sys::{mount, paths};

/// The clone of a container's writable directory, which is made when missing.
pub(crate) fn writable(path: &Path) -> Result<OwnedFd, SandboxError> {
    let failed = |error: io::Error| SandboxError::Failed {
        operation: format!("clone of writable directory {}", path.display()),
        message: error.to_string(),
    };
    super::layout::make_directory(path).map_err(failed)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    mount::clone_tree(directory, "", false).map_err(failed)
}

impl Inner {
    /// The clones that volumes are made of, in their order.
    pub(super) async fn volumes(self: &Arc<Self>, mounts: &[Mount]) -> Result<Vec<OwnedFd>, SandboxError> {
        let on_host: Vec<Mount> = mounts.iter().filter(|mount| mount.layers.is_empty()).cloned().collect();
        let opened = match on_host {
            none if none.is_empty() => Vec::new(),
            // A host path may be on a file system that does not answer.
            some => blocking(move || some.iter().map(volume).collect::<Result<Vec<_>, _>>()).await??,
        };
        let (mut opened, mut out) = (opened.into_iter(), Vec::with_capacity(mounts.len()));
        for mount in mounts {
            match mount.layers.as_slice() {
                [] => out.extend(opened.next()),
                layers => out.extend(self.mount(layers).await?),
            }
        }
        Ok(out)
    }
}

/// The clone of a volume: its source, and below that its sub path, resolved inside the source whatever links the pod has
/// put there. A sub path that is missing is made as a directory, as the kubelet does.
pub(crate) fn volume(volume: &Mount) -> Result<OwnedFd, SandboxError> {
    let place = volume.source.join(&volume.sub_path);
    let failed = |error: io::Error| {
        let operation = format!("open of volume {}", place.display());
        match error.kind() {
            io::ErrorKind::NotFound => SandboxError::Invalid { message: format!("{operation}: it does not exist") },
            _ => SandboxError::Failed { operation, message: error.to_string() },
        }
    };
    if volume.sub_path.is_absolute() || volume.sub_path.components().any(|c| c == std::path::Component::ParentDir) {
        let message = format!("sub path {} is not a relative path without ..", volume.sub_path.display());
        return Err(SandboxError::Invalid { message });
    }
    let source = openat(CWD, &volume.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed(errno.into()))?;
    if volume.sub_path.as_os_str().is_empty() {
        return mount::clone_tree(source, "", false).map_err(failed);
    }
    let found =
        paths::target_in(&source, &volume.sub_path, paths::Kind::Directory, 0).map_err(|errno| failed(errno.into()))?;
    mount::clone_tree(found, "", false).map_err(failed)
}

/// The clone of the host's shared memory.
pub(crate) fn shared_memory() -> Result<OwnedFd, SandboxError> {
    let failed = |error: io::Error| SandboxError::Failed {
        operation: "clone of the host's /dev/shm".to_owned(),
        message: error.to_string(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, "/dev/shm", flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let shm = mount::clone_tree(directory, "", false).map_err(failed)?;
    mount::make_private(&shm, false).map_err(failed)?;
    mount::set(&shm, mount::NOSUID | mount::NODEV | mount::NOEXEC, false).map_err(failed)?;
    Ok(shm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount_of(source: &Path, sub_path: &str) -> Mount {
        Mount {
            source: source.to_owned(),
            sub_path: sub_path.into(),
            destination: "/x".into(),
            read_only: false,
            no_exec: false,
            idmap: true,
            exclusive: false,
            layers: Vec::new(),
        }
    }

    #[test]
    fn sub_paths_with_parents_or_roots_are_invalid() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "a/../../x", "/etc"] {
            assert!(matches!(volume(&mount_of(dir.path(), path)), Err(SandboxError::Invalid { .. })), "{path}");
        }
    }

    #[test]
    fn a_source_that_is_missing_is_invalid_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = volume(&mount_of(&dir.path().join("gone"), "")).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }
}
