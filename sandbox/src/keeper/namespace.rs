//! Two mount namespaces with next to nothing in them: one for the keeper, one that shims start from.
//!
//! Copying a mount namespace takes time in proportion to its mounts (27 us with few, 1.2 ms with a thousand), and whatever
//! is in it is kept from being unmounted elsewhere. So neither has anything of the host's, and the shims' has no layers.
//!
//! ```text
//!  the template   /        tmpfs
//!                 /proc    of the keeper's PID namespace
//!                 /parts   tmpfs, read-only: empty directories that all shims share ([`crate::shim::own_root`])
//! ```
//!
//! They are shared because a file system costs: its own slabs, and in each memory control group of the host a place for
//! what its shrinker counts.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::{KeeperError, Step};
use crate::shim::own_root;
use crate::sys::mount;

/// Where layers are mounted in the keeper's namespace.
pub(super) const LAYERS: &str = "/layers";

/// Moves the process into a namespace of its own and gives the shims' template. Paths of the host are gone afterwards;
/// descriptors opened before go on working.
pub(super) fn enter() -> Result<OwnedFd, KeeperError> {
    unshare()?;
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
    let old = openat(CWD, "/", directory, Mode::empty()).step("open of the host's root")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).step("privacy of mounts")?;
    let strict = mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let root = mount::create("tmpfs", &[("mode", Some("0755")), ("size", Some("256k"))], strict)
        .step("tmpfs for the keeper's root")?;
    mount::attach(&root, &old).step("mount of the keeper's root")?;
    fchdir(&root).step("change into the keeper's root")?;
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH).step("unmount of the host's root")?,
        // The root is an initramfs, which cannot be moved: it stays beneath, and its submounts go.
        Err(Errno::INVAL) => rustix::process::chroot(".").step("change of root")?,
        other => other.step("pivot_root of the keeper")?,
    }
    chdir("/").step("change to /")?;
    for path in ["/proc", LAYERS] {
        mkdirat(CWD, path, Mode::from_raw_mode(0o755)).step(format!("directory {path}"))?;
    }
    attach(&mount::create("proc", &[], strict).step("proc for the keeper")?, "/proc")?;
    make_parts(strict)?;
    let template = openat(CWD, "/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .step("open of the template")?;
    unshare()?;
    let layers = mount::create("tmpfs", &[("mode", Some("0700")), ("size", Some("16m"))], strict)
        .step("tmpfs for the layers' mount points")?;
    attach(&layers, LAYERS)?;
    Ok(template)
}

/// The directories that shims and stubs mount on or show as empty.
fn make_parts(strict: u64) -> Result<(), KeeperError> {
    let parts = mount::create("tmpfs", &[("mode", Some("0555")), ("size", Some("4m"))], strict)
        .step("tmpfs for the shims' directories")?;
    let make = |path: &str| mkdirat(&parts, path, Mode::from_raw_mode(0o555)).step(format!("directory {path}"));
    for path in own_root::PARTS {
        make(path)?;
    }
    for number in 0..own_root::MOST_LAYERS {
        make(&format!("{}/{number}", own_root::LAYERS_PART))?;
    }
    mkdirat(CWD, own_root::PARTS_PATH, Mode::from_raw_mode(0o555)).step("directory for the shims' directories")?;
    mount::set(&parts, mount::RDONLY, false).step("read-only directories of the shims")?;
    attach(&parts, own_root::PARTS_PATH)
}

fn attach(mounted: &OwnedFd, path: &str) -> Result<(), KeeperError> {
    let target = openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH, Mode::empty())
        .step(format!("open of {path}"))?;
    mount::attach(mounted, &target).step(format!("mount of {path}"))
}

fn unshare() -> Result<(), KeeperError> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).step("private mount namespace")
}
