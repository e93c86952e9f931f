//! A container's root: shared layers, each shifted into the sandbox's ids, under an overlay.
//!
//! The layers and the writable directory come as detached mounts. From Linux 6.15 on overlayfs takes them as they are, by
//! descriptor. Before, they are attached in this stub's own mount namespace and named there; `pivot_root` leaves them
//! behind, and the overlay keeps its own private clones.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chmodat, chownat, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::report::Step;
use crate::protocol::Refusal;
use crate::sys::mount;

/// Where the parts are attached, below the mount namespace's own root.
pub(crate) const LAYERS: &str = "/layers";
pub(crate) const WRITABLE: &str = "/writable";
pub(crate) const ROOT: &str = "/root";

/// Size of the writable part of a root that was given no directory for it.
const SMALL_UPPER: &str = "16m";

/// A container's root.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Its directory.
    pub(crate) root: OwnedFd,
    /// It is mounted over the mount namespace's own root, and nothing was attached elsewhere on the way.
    pub(crate) covers: bool,
}

/// Assembles the root; `own` is the root of this process's mount namespace.
pub(crate) fn assemble(
    own: &OwnedFd,
    layers: &[OwnedFd],
    writable: Option<&OwnedFd>,
    user: Option<&OwnedFd>,
    attempt: u32,
) -> Result<Tree, Refusal> {
    let Some(top) = layers.last() else {
        return Err(Refusal::Invalid { message: "a root filesystem has at least one layer".into() });
    };
    for (index, layer) in layers.iter().enumerate() {
        let attributes = mount::RDONLY | mount::NODEV;
        match user {
            Some(user) => mount::idmap(layer, user, attributes).step(format!("id mapping of layer {index}"))?,
            None => mount::set(layer, attributes, false).step(format!("attributes of layer {index}"))?,
        }
    }
    let own_upper;
    let writable = match writable {
        Some(fd) => fd,
        None => {
            let options = [("size", Some(SMALL_UPPER)), ("mode", Some("0755"))];
            own_upper = mount::create("tmpfs", &options, mount::NODEV).step("tmpfs for the root's writable part")?;
            &own_upper
        }
    };
    let work = prepare_upper(writable, top, attempt)?;
    if let Some(root) = overlay_of_descriptors(layers, writable, &work)? {
        mount::attach(&root, own).step("mount of the root")?;
        return Ok(Tree { root, covers: true });
    }
    Ok(Tree { root: overlay_of_paths(layers, writable, &work)?, covers: false })
}

/// The overlay, detached; `None` where the kernel takes no descriptors.
fn overlay_of_descriptors(layers: &[OwnedFd], writable: &OwnedFd, work: &str) -> Result<Option<OwnedFd>, Refusal> {
    let overlay = mount::Overlay::open().step("context of the root overlay")?;
    for layer in layers.iter().rev() {
        if !overlay.lower(layer).step("layer of the root overlay")? {
            return Ok(None);
        }
    }
    let open = |name: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(writable, name, flags, Mode::empty()).step(format!("open of the overlay's {name}"))
    };
    overlay.mount(&open("upper")?, &open(work)?).step("mount of the root overlay").map(Some)
}

/// The overlay of parts that were attached below the own root.
fn overlay_of_paths(layers: &[OwnedFd], writable: &OwnedFd, work: &str) -> Result<OwnedFd, Refusal> {
    let mut lower = String::with_capacity(layers.len() * 12);
    for (index, layer) in layers.iter().enumerate().rev() {
        let path = format!("{LAYERS}/{index}");
        let target = directory(&path).step("directory for a layer")?;
        mount::attach(layer, &target).step(format!("mount of layer {index}"))?;
        if !lower.is_empty() {
            lower.push(':');
        }
        lower.push_str(&path);
    }
    mount::attach(writable, directory(WRITABLE).step("directory for the writable part")?)
        .step("mount of the writable part")?;
    // Volatile: what is written here does not outlive the container, so it is never worth a sync.
    let options =
        format!("lowerdir={lower},upperdir={WRITABLE}/upper,workdir={WRITABLE}/{work},index=off,metacopy=off,volatile");
    let options = CString::new(options).map_err(|_| Refusal::Invalid { message: "layer path holds a zero".into() })?;
    rustix::mount::mount("overlay", ROOT, "overlay", MountFlags::NODEV, options.as_c_str())
        .step("mount of the root overlay")?;
    openat(CWD, ROOT, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step("open of the root")
}

/// Makes `upper`, which lends the merged root its owner and mode, and a fresh work directory (an old one of a volatile
/// overlay is refused by the kernel); gives the latter's name.
fn prepare_upper(writable: &OwnedFd, top: &OwnedFd, attempt: u32) -> Result<String, Refusal> {
    match mkdirat(writable, "upper", Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => {}
        other => {
            other.step("directory for the overlay's upper")?;
            let root = fstat(top).step("owner of the image's root")?;
            let (uid, gid) = (Uid::from_raw(root.st_uid), Gid::from_raw(root.st_gid));
            chownat(writable, "upper", Some(uid), Some(gid), AtFlags::empty()).step("owner of the overlay's upper")?;
            chmodat(writable, "upper", Mode::from_raw_mode(root.st_mode & 0o7777), AtFlags::empty())
                .step("mode of the overlay's upper")?;
        }
    }
    for number in attempt.. {
        let name = format!("work{number}");
        match mkdirat(writable, name.as_str(), Mode::from_raw_mode(0o700)) {
            Err(Errno::EXIST) => {}
            other => {
                other.step("directory for the overlay's work")?;
                return Ok(name);
            }
        }
    }
    Err(Refusal::Invalid { message: "too many attempts".into() })
}

/// A directory of the mount namespace's own root, made when missing.
fn directory(path: &str) -> rustix::io::Result<OwnedFd> {
    match mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Makes `root` what the process sees, and lets go of everything else.
pub(crate) fn pivot(root: &OwnedFd) -> Result<(), Refusal> {
    rustix::process::fchdir(root.as_fd()).step("change into the root")?;
    rustix::process::pivot_root(".", ".").step("pivot_root")?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).step("unmount of the old root")?;
    rustix::process::chdir("/").step("change to /")
}
