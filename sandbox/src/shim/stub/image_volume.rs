//! A volume that is an image: its layers as a root has them, without anything to write to.
//!
//! From Linux 6.15 on nothing of it is attached before it gets to its place. Before, an overlay takes its layers by path and
//! only what is attached can be cloned: layers and overlay are mounted below the stub's own root, over what the container's
//! root was made of there, and left behind with it.

use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::super::own_root::MOST_LAYERS;
use super::report::Step;
use super::rootfs::{self, LAYERS, ROOT};
use super::stage::EMPTY;
use crate::protocol::Refusal;
use crate::spec;
use crate::sys::{mount, paths};

/// What is attached in the container: the merged layers, or a file or directory of them. `detached`: this kernel clones what
/// is attached nowhere.
pub(crate) fn assemble(
    volume: &spec::Mount,
    layers: &[OwnedFd],
    user: Option<&OwnedFd>,
    detached: bool,
) -> Result<OwnedFd, Refusal> {
    let destination = volume.destination.display();
    if layers.is_empty() || layers.len() > MOST_LAYERS {
        let message = format!("the image for {destination} has {} layers, not 1 to {MOST_LAYERS}", layers.len());
        return Err(Refusal::Invalid { message });
    }
    let mut attributes = mount::RDONLY | mount::NODEV | mount::NOSUID;
    if volume.no_exec {
        attributes |= mount::NOEXEC;
    }
    rootfs::shift(layers, user.filter(|_| volume.idmap), attributes)?;
    let is_whole = volume.sub_path.as_os_str().is_empty();
    let merged = if detached { merge(layers, attributes, is_whole)? } else { merge_by_path(layers)? };
    let part = match is_whole {
        true if detached => merged,
        _ => part_of(&ManuallyDrop::new(merged), &volume.sub_path, &destination.to_string())?,
    };
    mount::make_private(&part, true).step(format!("propagation of the image for {destination}"))?;
    mount::set(&part, attributes, false).step(format!("attributes of the image for {destination}"))?;
    Ok(part)
}

/// A single layer is taken as it is where all of it is wanted. A part of it could not be cloned: that takes a mount that was
/// made in this mount namespace.
fn merge(layers: &[OwnedFd], attributes: u64, is_whole: bool) -> Result<OwnedFd, Refusal> {
    let overlay = match layers {
        [only] if is_whole => return only.try_clone().step("copy of a layer's descriptor"),
        [only] => {
            // Two at least make an overlay.
            let empty = openat(CWD, EMPTY, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            let parts =
                [empty.step("open of the empty directory")?, only.try_clone().step("copy of a layer's descriptor")?];
            rootfs::overlay_of(&parts)?
        }
        layers => rootfs::overlay_of(layers)?,
    };
    let overlay = overlay.ok_or(Errno::OPNOTSUPP).step("layers of an image")?;
    overlay.mount_read_only(attributes).step("mount of the overlay of an image")
}

fn merge_by_path(layers: &[OwnedFd]) -> Result<OwnedFd, Refusal> {
    let lower = rootfs::lower_paths(layers)?;
    let merged = if layers.len() == 1 {
        format!("{LAYERS}/0")
    } else {
        let options = format!("lowerdir={lower},index=off,metacopy=off");
        let options =
            CString::new(options).map_err(|_| Refusal::Invalid { message: "layer path holds a zero".into() })?;
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
        rustix::mount::mount("overlay", ROOT, "overlay", flags, options.as_c_str())
            .step("mount of the overlay of an image")?;
        ROOT.to_owned()
    };
    openat(CWD, merged, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step("open of an image")
}

/// Links of the image lead nowhere but inside it.
fn part_of(merged: &OwnedFd, sub_path: &Path, destination: &str) -> Result<OwnedFd, Refusal> {
    let what = || format!("sub path {} of the image for {destination}", sub_path.display());
    let found = match paths::open_in(merged, sub_path, OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => {
            return Err(Refusal::Invalid { message: format!("{} does not exist", what()) });
        }
        other => other.step(format!("open of {}", what()))?,
    };
    mount::clone_tree(&found, "", false).step(format!("clone of {}", what()))
}
