//! Volumes: detached clones, made by the agent's side, attached inside the container's root.

use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{fstat, fstatfs, readlinkat};

use super::image_volume;
use super::owners;
use super::report::Step;
use super::rootfs::Tree;
use crate::ids::Ids;
use crate::protocol::Refusal;
use crate::spec;
use crate::sys::{mount, paths};

/// Attaches the volumes in their order; tells what was left out.
pub(crate) fn mount_all(
    Tree { root, covers: detached }: &Tree,
    ids: &Ids,
    user: Option<&OwnedFd>,
    proc: &OwnedFd,
    volumes: &[spec::Mount],
    sources: &[OwnedFd],
) -> Result<Vec<String>, Refusal> {
    let mut degraded = Vec::new();
    let mut rest = sources;
    for volume in volumes {
        let Some((parts, others)) = rest.split_at_checked(volume.parts()) else {
            return Err(Refusal::Invalid { message: "volumes have come without their descriptors".into() });
        };
        rest = others;
        let destination = volume.destination.display();
        if !volume.destination.is_absolute() {
            return Err(not_below_root(&volume.destination));
        }
        if ["/proc", "/sys"].iter().any(|kernel| volume.destination.starts_with(kernel)) {
            return Err(in_the_kernel(&volume.destination));
        }
        let image;
        let source = if volume.layers.is_empty() {
            degraded.extend(prepare(volume, &parts[0], user, proc, ids)?);
            &parts[0]
        } else {
            image = ManuallyDrop::new(image_volume::assemble(volume, parts, user, *detached)?);
            &*image
        };
        let kind = paths::kind_of(source).step(format!("kind of the volume for {destination}"))?;
        let target =
            paths::target_in(root, &volume.destination, kind, ids.base()).step(format!("mount point {destination}"))?;
        if same(root, &target).step(format!("look at mount point {destination}"))? {
            return Err(not_below_root(&volume.destination));
        }
        if leads_into_the_kernel(root, &target, proc)? {
            return Err(in_the_kernel(&volume.destination));
        }
        mount::attach(source, &target).step(format!("mount on {destination}"))?;
    }
    Ok(degraded)
}

fn prepare(
    volume: &spec::Mount,
    source: &OwnedFd,
    user: Option<&OwnedFd>,
    proc: &OwnedFd,
    ids: &Ids,
) -> Result<Option<String>, Refusal> {
    let destination = volume.destination.display();
    let mut attributes = mount::NODEV | mount::NOSUID;
    if volume.read_only {
        attributes |= mount::RDONLY;
    }
    if volume.no_exec {
        attributes |= mount::NOEXEC;
    }
    mount::make_private(source, true).step(format!("propagation of the volume for {destination}"))?;
    let mut left_out = None;
    if let Some(user) = user.filter(|_| volume.idmap) {
        match mount::idmap(source, user, attributes) {
            Ok(()) => return Ok(None),
            // The file system cannot (tmpfs before Linux 6.3).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && volume.exclusive => {
                let failed = |error| Refusal::failed(format!("owners in the volume for {destination}"), &error);
                owners::shift(source, proc, ids).map_err(failed)?;
            }
            // Owners appear as nobody, modes decide.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let what = format!("owners in the volume on {destination} are not shifted: its file system cannot");
                left_out = Some(what);
            }
            Err(error) => return Err(Refusal::failed(format!("id mapping of the volume for {destination}"), &error)),
        }
    }
    mount::set(source, attributes, true).step(format!("attributes of the volume for {destination}"))?;
    Ok(left_out)
}

/// `/..`, or a link to `/`: who joins the container would get what is mounted there for its root.
fn not_below_root(destination: &Path) -> Refusal {
    Refusal::Invalid { message: format!("mount path {} is not an absolute path below /", destination.display()) }
}

fn same(one: &OwnedFd, other: &OwnedFd) -> rustix::io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Also by way of links, and also where what is there now covers the kernel's file: the names that the mount point has below
/// the root say so.
fn leads_into_the_kernel(root: &OwnedFd, target: &OwnedFd, proc: &OwnedFd) -> Result<bool, Refusal> {
    if paths::KERNEL_FILE_SYSTEMS.contains(&fstatfs(target.as_fd()).step("file system of a mount point")?.f_type) {
        return Ok(true);
    }
    let name = |fd: &OwnedFd| {
        let link = readlinkat(proc, format!("self/fd/{}", fd.as_raw_fd()), Vec::new()).step("name of a mount point")?;
        Ok::<_, Refusal>(PathBuf::from(OsString::from_vec(link.into_bytes())))
    };
    let (root, target) = (name(root)?, name(target)?);
    // What has no name below the root is in no place of it either.
    Ok(target.strip_prefix(root).map_or(true, |path| ["proc", "sys"].iter().any(|kernel| path.starts_with(kernel))))
}

fn in_the_kernel(destination: &Path) -> Refusal {
    Refusal::Invalid {
        message: format!("mount path {} leads into a file system of the kernel's", destination.display()),
    }
}
