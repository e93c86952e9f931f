//! A container's root: shared layers, each shifted into the sandbox's ids, under an overlay.
//!
//! The layers and the writable directory come as detached mounts. From Linux 6.15 on overlayfs takes them as they are, by
//! descriptor. Before, they are attached in this stub's own mount namespace and named there; `pivot_root` leaves them
//! behind, and the overlay keeps its own private clones.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chmodat, chownat, fstat, mkdirat, openat, statat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, unmount};

use super::report::Step;
use crate::protocol::Refusal;
use crate::sys::mount;

/// Where the parts are attached, below the mount namespace's own root.
pub(crate) const LAYERS: &str = "/layers";
pub(crate) const WRITABLE: &str = "/writable";
pub(crate) const ROOT: &str = "/root";

/// Size of the writable part of a root that was given no directory for it.
const SMALL_UPPER: &str = "16m";

/// Attributes of a root's layers.
const OF_A_ROOT: u64 = mount::RDONLY | mount::NODEV;

/// A container's root.
#[derive(Debug)]
pub struct Tree {
    /// Its directory.
    pub(crate) root: OwnedFd,
    /// It is mounted over the mount namespace's own root, and nothing was attached elsewhere on the way.
    pub(crate) covers: bool,
}

/// Assembles the root of detached mounts and attaches it over `own`, the root of this process's mount namespace. `user`: whose
/// ids it has. `writable` is made anew for each `attempt` of a container, but for what was written.
///
/// # Errors
/// The kernel's refusals, each with what was tried.
pub fn assemble(
    own: &OwnedFd,
    layers: &[OwnedFd],
    writable: Option<&OwnedFd>,
    user: Option<&OwnedFd>,
    attempt: u32,
) -> Result<Tree, Refusal> {
    let top = shift(layers, user, OF_A_ROOT)?;
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

/// Makes a root that is attached nowhere yet; `None` where the kernel takes no layers by descriptor.
pub(crate) fn assemble_ahead(
    layers: &[OwnedFd],
    writable: &OwnedFd,
    user: Option<&OwnedFd>,
) -> Result<Option<OwnedFd>, Refusal> {
    let top = shift(layers, user, OF_A_ROOT)?;
    let work = prepare_upper(writable, top, 0)?;
    overlay_of_descriptors(layers, writable, &work)
}

/// Attaches a root that was made ahead.
pub(crate) fn take(own: &OwnedFd, root: OwnedFd) -> Result<Tree, Refusal> {
    mount::attach(&root, own).step("mount of the root")?;
    Ok(Tree { root, covers: true })
}

/// Detaches it again: another one is asked for. Needs a /proc at its place in the own root.
pub(crate) fn leave(tree: &Tree) -> Result<(), Refusal> {
    let path = format!("/proc/self/fd/{}", tree.root.as_raw_fd());
    unmount(path, UnmountFlags::DETACH).step("unmount of a root made ahead")
}

/// Has the layers belong to the container's ids, with these attributes; gives the top one.
pub(crate) fn shift<'a>(
    layers: &'a [OwnedFd],
    user: Option<&OwnedFd>,
    attributes: u64,
) -> Result<&'a OwnedFd, Refusal> {
    let Some(top) = layers.last() else {
        return Err(Refusal::Invalid { message: "a root filesystem has at least one layer".into() });
    };
    for (index, layer) in layers.iter().enumerate() {
        match user {
            Some(user) => mount::idmap(layer, user, attributes).step(format!("id mapping of layer {index}"))?,
            None => mount::set(layer, attributes, false).step(format!("attributes of layer {index}"))?,
        }
    }
    Ok(top)
}

/// An overlay of these layers, not made yet; `None` where the kernel takes no descriptors.
pub(crate) fn overlay_of(layers: &[OwnedFd]) -> Result<Option<mount::Overlay>, Refusal> {
    let overlay = mount::Overlay::open().step("context of an overlay")?;
    for layer in layers.iter().rev() {
        if !overlay.lower(layer).step("layer of an overlay")? {
            return Ok(None);
        }
    }
    Ok(Some(overlay))
}

/// The overlay, detached; `None` where the kernel takes no descriptors.
fn overlay_of_descriptors(layers: &[OwnedFd], writable: &OwnedFd, work: &str) -> Result<Option<OwnedFd>, Refusal> {
    let Some(overlay) = overlay_of(layers)? else { return Ok(None) };
    let open = |name: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(writable, name, flags, Mode::empty()).step(format!("open of the overlay's {name}"))
    };
    overlay.mount(&open("upper")?, &open(work)?).step("mount of the root overlay").map(Some)
}

/// Attaches layers below the own root; what an overlay of them is told.
pub(crate) fn lower_paths(layers: &[OwnedFd]) -> Result<String, Refusal> {
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
    Ok(lower)
}

/// The overlay of parts that were attached below the own root.
fn overlay_of_paths(layers: &[OwnedFd], writable: &OwnedFd, work: &str) -> Result<OwnedFd, Refusal> {
    let lower = lower_paths(layers)?;
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

/// Mode of an `upper` that does not have its owner yet.
const UNFINISHED: u32 = 0;

/// Makes what an overlay wants in a writable directory that is empty, before its image is known; [`assemble`] takes it over.
///
/// # Errors
/// The kernel's.
pub fn furnish(writable: &Path) -> std::io::Result<()> {
    mkdirat(CWD, writable.join("upper"), Mode::from_raw_mode(UNFINISHED))?;
    Ok(mkdirat(CWD, writable.join(work_of(0)), Mode::from_raw_mode(0o700))?)
}

fn work_of(number: u32) -> String {
    format!("work{number}")
}

/// Makes `upper`, which lends the merged root its owner and mode, and a fresh work directory (an old one of a volatile
/// overlay is refused by the kernel); gives the latter's name.
fn prepare_upper(writable: &OwnedFd, top: &OwnedFd, attempt: u32) -> Result<String, Refusal> {
    let finished = match mkdirat(writable, "upper", Mode::from_raw_mode(UNFINISHED)) {
        Err(Errno::EXIST) => {
            let found = statat(writable, "upper", AtFlags::SYMLINK_NOFOLLOW).step("mode of the overlay's upper")?;
            // Its mode comes last.
            found.st_mode & 0o7777 != UNFINISHED
        }
        other => other.step("directory for the overlay's upper").map(|()| false)?,
    };
    if !finished {
        let root = fstat(top).step("owner of the image's root")?;
        let (uid, gid) = (Uid::from_raw(root.st_uid), Gid::from_raw(root.st_gid));
        chownat(writable, "upper", Some(uid), Some(gid), AtFlags::empty()).step("owner of the overlay's upper")?;
        chmodat(writable, "upper", Mode::from_raw_mode(root.st_mode & 0o7777), AtFlags::empty())
            .step("mode of the overlay's upper")?;
    }
    for number in attempt.. {
        let name = work_of(number);
        match mkdirat(writable, name.as_str(), Mode::from_raw_mode(0o700)) {
            // An overlay makes a directory of this name in it, which stays.
            Err(Errno::EXIST) => match statat(writable, format!("{name}/work"), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => return Ok(name),
                other => other.map(drop).step("use of the overlay's work directory")?,
            },
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
    unmount(".", UnmountFlags::DETACH).step("unmount of the old root")?;
    rustix::process::chdir("/").step("change to /")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_furnished_directory_becomes_as_one_that_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (image, empty, furnished) =
            (dir.path().join("image"), dir.path().join("empty"), dir.path().join("furnished"));
        for path in [&image, &empty, &furnished] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::set_permissions(&image, PermissionsExt::from_mode(0o1751)).unwrap();
        furnish(&furnished).unwrap();
        for place in [&empty, &furnished] {
            assert_eq!(prepare_upper(&open(place), &open(&image), 0).unwrap(), "work0");
            assert_eq!((mode(&place.join("upper")), mode(&place.join("work0"))), (0o1751, 0o700));
            assert_eq!(std::fs::read_dir(place).unwrap().count(), 2);
        }
    }

    #[test]
    fn what_a_container_made_of_its_root_stays_and_a_work_directory_is_used_once() {
        let dir = tempfile::tempdir().unwrap();
        let (image, place) = (dir.path().join("image"), dir.path().join("writable"));
        std::fs::create_dir(&image).unwrap();
        std::fs::create_dir(&place).unwrap();
        let prepare = |attempt| prepare_upper(&open(&place), &open(&image), attempt).unwrap();
        assert_eq!(prepare(0), "work0");
        // It ended before there was an overlay.
        assert_eq!(prepare(0), "work0");
        std::fs::create_dir(place.join("work0/work")).unwrap();
        std::fs::set_permissions(place.join("upper"), PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(prepare(0), "work1");
        assert_eq!(prepare(5), "work5");
        assert_eq!(mode(&place.join("upper")), 0o700);
    }
}
