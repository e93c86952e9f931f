//! The shim's own root: an empty tmpfs with its own /proc, in which stubs assemble containers.
//!
//! Nothing of the host's paths is reachable from it. A stub's mount namespace is a copy of this one: few mounts, so cheap
//! to copy, and the stub's `pivot_root` leaves it.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat};
use rustix::io::Errno;

use super::stub::report::Step;
use crate::protocol::Refusal;
use crate::sys::mount;

/// A null device of the shim's own.
const NULL: &str = "/null";

/// The pod's shared memory, a tmpfs.
pub(crate) const SHM: &str = "/shm";
/// Directories of the keeper's that all shims of the host share, read-only.
pub(crate) const PARTS_PATH: &str = "/parts";
/// What there is of them; parents come first.
pub(crate) const PARTS: [&str; 9] = [
    "empty",
    "stage",
    "stage/proc",
    "stage/dev",
    "stage/sys",
    "stage/empty",
    LAYERS_PART,
    "stage/writable",
    "stage/root",
];
/// Where a stub attaches layers, each on the directory of its number, on kernels that take them by path only.
pub(crate) const LAYERS_PART: &str = "stage/layers";
/// Layers of an image at most, there: what image builders allow.
pub(crate) const MOST_LAYERS: usize = 128;
/// The empty directory that masks others.
pub(crate) const EMPTY: &str = "/parts/empty";
/// What a stub's own root is a clone of.
pub(crate) const STAGE: &str = "/parts/stage";

/// What setting up gave.
#[derive(Debug)]
pub(crate) struct OwnRoot {
    /// `fdinfo` of this process in the /proc that the keeper left: there, PIDs are the host's.
    pub(crate) host_fdinfo: Option<OwnedFd>,
}

/// Replaces the mount namespace's content. The process must be in a mount namespace of its own.
pub(crate) fn set_up() -> Result<OwnRoot, Refusal> {
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let host_fdinfo = openat(CWD, "/proc/self/fdinfo", directory | OFlags::RDONLY, Mode::empty()).ok();
    let parts = self::directory(PARTS_PATH)?;
    let parts = mount::clone_tree(&parts, "", false).step("clone of the keeper's directories")?;
    let old = openat(CWD, "/", directory | OFlags::PATH, Mode::empty()).step("open of the old root")?;
    mount::make_private(&old, true).step("privacy of mounts")?;
    // Device nodes of this mount are for the shim and its stubs only; containers have their own /dev.
    let root = mount::create("tmpfs", &[("mode", Some("0755")), ("size", Some("1m"))], mount::NOSUID)
        .step("tmpfs for the shim's root")?;
    mount::attach(&root, &old).step("mount of the shim's root")?;
    rustix::process::fchdir(&root).step("change into the shim's root")?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).step("unmount of the old root")?,
        // The old root has no parent (an initramfs): it stays beneath, out of reach.
        Err(Errno::INVAL) => rustix::process::chroot(".").step("change of root")?,
        other => other.step("pivot_root of the shim")?,
    }
    rustix::process::chdir("/").step("change to /")?;
    mkdirat(CWD, "/proc", Mode::from_raw_mode(0o555)).step("directory /proc")?;
    let proc = mount::create("proc", &[], mount::NOSUID | mount::NODEV | mount::NOEXEC).step("mount of /proc")?;
    let target = openat(CWD, "/proc", directory | OFlags::PATH, Mode::empty()).step("open of /proc")?;
    mount::attach(&proc, &target).step("mount of /proc")?;
    for path in [super::stub::rootfs::LAYERS, super::stub::rootfs::WRITABLE, super::stub::rootfs::ROOT] {
        mkdirat(CWD, path, Mode::from_raw_mode(0o755)).step(format!("directory {path}"))?;
    }
    mknodat(CWD, NULL, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3)).step("null device")?;
    keep(&parts, PARTS_PATH)?;
    Ok(OwnRoot { host_fdinfo })
}

/// Attaches a mount for the stubs. By path, because before Linux 6.15 only what is attached in one's own mount namespace
/// can be cloned: a stub finds it in its copy of this root.
pub(crate) fn keep(mounted: &OwnedFd, path: &str) -> Result<(), Refusal> {
    mkdirat(CWD, path, Mode::from_raw_mode(0o755)).step(format!("directory {path}"))?;
    mount::attach(mounted, directory(path)?).step(format!("mount of {path}"))
}

/// What [`keep`] attached, as the calling stub has it.
pub(crate) fn directory(path: &str) -> Result<OwnedFd, Refusal> {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step(format!("open of {path}"))
}

/// Opens the null device.
pub(crate) fn null() -> Result<OwnedFd, Refusal> {
    openat(CWD, NULL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open of the null device")
}

impl OwnRoot {
    /// The host's number of the process behind `pidfd`, where the keeper left a /proc that tells.
    pub(crate) fn host_pid(&self, pidfd: &OwnedFd) -> Option<u32> {
        let directory = self.host_fdinfo.as_ref()?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(directory, pidfd.as_raw_fd().to_string(), flags, Mode::empty()).ok()?;
        let mut text = [0; 512];
        let length = rustix::io::read(&file, &mut text).ok()?;
        let text = std::str::from_utf8(text.get(..length)?).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
    }
}
