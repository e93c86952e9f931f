//! The mounts that every container has: /proc, /dev and what is in it, /sys.
//!
//! Each is made detached and attached on a directory opened without following any link: an image whose `/proc` is a
//! link somewhere is refused (CVE-2019-19921, CVE-2023-27561).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mkdirat, mknodat, symlinkat};
use rustix::io::Errno;

use super::super::own_root;
use super::report::Step;
use crate::protocol::Refusal;
use crate::sys::{mount, paths};

/// The group `tty` in every distribution.
const TTY_GROUP: u32 = 5;

/// Device nodes: name, major, minor; mode 0666, owned by the container's root.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links of /dev; none to /proc/kcore.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Makes a container's /dev, detached. The shim does so before it forks: in the container's own cgroup no device node may
/// be made, only used.
pub(crate) fn make_dev(base: u32) -> Result<OwnedFd, Refusal> {
    let id = base.to_string();
    let options =
        [("uid", Some(id.as_str())), ("gid", Some(id.as_str())), ("mode", Some("0755")), ("size", Some("65536k"))];
    let dev = mount::create("tmpfs", &options, mount::NOSUID | libc::MOUNT_ATTR_STRICTATIME).step("mount of /dev")?;
    populate_dev(&dev, base)?;
    Ok(dev)
}

/// As [`make_dev`], once for a pod: in its file system in memory.
pub(crate) fn make_first_dev(base: u32) -> Result<OwnedFd, Refusal> {
    let dev = own_root::directory(own_root::FIRST_DEV)?;
    let dev = mount::clone_tree(dev, "", false).step("bind of /dev")?;
    populate_dev(&dev, base)?;
    Ok(dev)
}

/// What no container of a sandbox may do with a file system of the kernel's.
pub(crate) const STRICT: u64 = mount::NOSUID | mount::NODEV | mount::NOEXEC;

/// A /proc of this PID namespace, below `root`.
pub(crate) fn mount_proc(root: &OwnedFd, base: u32) -> Result<OwnedFd, Refusal> {
    let proc = mount::create("proc", &[], STRICT).step("mount of /proc")?;
    attach(&proc, root, "proc", base)?;
    Ok(proc)
}

/// `dev` below `root`, and what is mounted in it but the message queues; gives the root of /dev/pts. `base` is the host's id of
/// the container's root.
pub(crate) fn mount_dev(root: &OwnedFd, base: u32, dev: &OwnedFd, shm: &OwnedFd) -> Result<OwnedFd, Refusal> {
    attach(dev, root, "dev", base)?;
    let group = (base + TTY_GROUP).to_string();
    let options =
        [("newinstance", None), ("ptmxmode", Some("0666")), ("mode", Some("0620")), ("gid", Some(group.as_str()))];
    let pts = mount::create("devpts", &options, mount::NOSUID | mount::NOEXEC).step("mount of /dev/pts")?;
    let (uid, gid) = (Some(Uid::from_raw(base)), Some(Gid::from_raw(base)));
    chownat(&pts, "", uid, gid, AtFlags::EMPTY_PATH).step("owner of /dev/pts")?;
    attach(&pts, dev, "pts", base)?;
    attach(shm, dev, "shm", base)?;
    Ok(pts)
}

/// The pod's shared memory, from the shim's root.
pub(crate) fn shared_memory() -> Result<OwnedFd, Refusal> {
    let shm = own_root::directory(own_root::SHM)?;
    let shm = mount::clone_tree(shm, "", false).step("clone of the pod's shared memory")?;
    mount::set(&shm, STRICT, false).step("attributes of the shared memory")?;
    Ok(shm)
}

/// The message queues of this IPC namespace, in `dev`.
pub(crate) fn mount_mqueue(dev: &OwnedFd, base: u32) -> Result<(), Refusal> {
    match mount::create("mqueue", &[], STRICT) {
        Ok(mqueue) => attach(&mqueue, dev, "mqueue", base),
        // A kernel without POSIX message queues.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other.map(drop).step("mount of /dev/mqueue"),
    }
}

/// A /sys of this network namespace below `root`.
///
/// `writable`: by whom the files' modes let.
pub(crate) fn mount_sys(root: &OwnedFd, base: u32, writable: bool) -> Result<OwnedFd, Refusal> {
    let attributes = if writable { STRICT } else { STRICT | mount::RDONLY };
    let sys = mount::create("sysfs", &[], attributes).step("mount of /sys")?;
    attach(&sys, root, "sys", base)?;
    Ok(sys)
}

/// Attaches (or moves, with all that is mounted in it) on `name` below `directory`, made when missing, never through a link.
pub(crate) fn attach(mounted: &OwnedFd, directory: &OwnedFd, name: &str, base: u32) -> Result<(), Refusal> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let target = match paths::open_plain(directory, name, flags) {
        Err(Errno::NOENT) => {
            mkdirat(directory, name, Mode::from_raw_mode(0o755)).step(format!("directory {name}"))?;
            let (uid, gid) = (Some(Uid::from_raw(base)), Some(Gid::from_raw(base)));
            chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(format!("owner of {name}"))?;
            paths::open_plain(directory, name, flags).step(format!("open of {name}"))?
        }
        Err(Errno::LOOP | Errno::NOTDIR) => {
            return Err(Refusal::Invalid {
                message: format!("/{name} of the image is not a plain directory, so nothing can be mounted on it"),
            });
        }
        other => other.step(format!("open of {name}"))?,
    };
    mount::attach(mounted, target).step(format!("mount on {name}"))
}

fn populate_dev(dev: &OwnedFd, base: u32) -> Result<(), Refusal> {
    let (uid, gid) = (Some(Uid::from_raw(base)), Some(Gid::from_raw(base)));
    // With all of its mode at once.
    let usual = rustix::process::umask(Mode::empty());
    let made = DEVICES.iter().try_for_each(|(name, major, minor)| {
        mknodat(dev, *name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(*major, *minor))
            .step(format!("device /dev/{name}"))
    });
    rustix::process::umask(usual);
    made?;
    for (name, ..) in DEVICES {
        chownat(dev, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(format!("owner of /dev/{name}"))?;
    }
    for (to, name) in LINKS {
        symlinkat(to, dev.as_fd(), name).step(format!("link /dev/{name}"))?;
        chownat(dev, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(format!("owner of /dev/{name}"))?;
    }
    Ok(())
}
