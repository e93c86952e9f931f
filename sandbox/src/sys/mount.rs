//! The new mount API: mounts are made detached, adjusted, and attached by descriptor; no path is resolved twice.
#![allow(unsafe_code)] // mount_setattr is in neither rustix nor nix

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount,
    open_tree,
};

/// Read-only.
pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// No set-uid.
pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// No devices.
pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
/// No programs.
pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// Makes a new file system instance, detached. An option without value is a flag.
pub fn create(kind: &str, options: &[(&str, Option<&str>)], attributes: u64) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), *key, *value)?,
            None => fsconfig_set_flag(context.as_fd(), *key)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(attributes).unwrap_or(0));
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// An overlay in the making, of layers by descriptor.
#[derive(Debug)]
pub struct Overlay(OwnedFd);

impl Overlay {
    /// Of nothing yet.
    pub fn open() -> io::Result<Self> {
        Ok(Self(fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?))
    }

    /// Adds a layer below those that were added before; false where the kernel takes no descriptors, or none of detached
    /// mounts (before Linux 6.15).
    pub fn lower(&self, layer: impl AsFd) -> io::Result<bool> {
        match fsconfig_set_fd(self.0.as_fd(), "lowerdir+", layer.as_fd()) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL | Errno::BADF | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes it of its layers alone, at least two, detached and read-only.
    pub fn mount_read_only(&self, attributes: u64) -> io::Result<OwnedFd> {
        let context = self.0.as_fd();
        fsconfig_set_string(context, "index", "off")?;
        fsconfig_set_string(context, "metacopy", "off")?;
        fsconfig_set_flag(context, "ro")?;
        fsconfig_create(context)?;
        let attributes = MountAttrFlags::from_bits_retain(u32::try_from(attributes | RDONLY).unwrap_or(0));
        Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    }

    /// Makes it with these directories on top, detached. Volatile: what is written to it does not outlive its mount, so it
    /// is never worth a sync.
    pub fn mount(&self, upper: impl AsFd, work: impl AsFd) -> io::Result<OwnedFd> {
        let context = self.0.as_fd();
        fsconfig_set_fd(context, "upperdir", upper.as_fd())?;
        fsconfig_set_fd(context, "workdir", work.as_fd())?;
        fsconfig_set_string(context, "index", "off")?;
        fsconfig_set_string(context, "metacopy", "off")?;
        fsconfig_set_flag(context, "volatile")?;
        fsconfig_create(context)?;
        Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?)
    }
}

/// A detached copy of the mount at `path` below `directory` (empty: of `directory` itself).
pub fn clone_tree(directory: impl AsFd, path: &str, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    } else {
        flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(directory.as_fd(), path, flags)?)
}

/// Attaches a detached mount on the directory or file that `target` is.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount.as_fd(), "", target.as_fd(), "", flags)?)
}

/// Sets mount attributes (`RDONLY` …) on the mount that `mount` is the root of.
pub fn set(mount: impl AsFd, attributes: u64, recursive: bool) -> io::Result<()> {
    setattr(mount.as_fd(), attributes, None, recursive)
}

/// Makes the file system itself that `mount` is the root of read-only, whoever mounts it where. `EBUSY` while a file of it
/// is open for writing.
pub fn close(mount: impl AsFd) -> io::Result<()> {
    let context = fspick(mount.as_fd(), "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    fsconfig_set_flag(context.as_fd(), "ro")?;
    Ok(fsconfig_reconfigure(context.as_fd())?)
}

/// Takes mount attributes from the mount that `mount` is the root of.
pub fn clear(mount: impl AsFd, attributes: u64) -> io::Result<()> {
    let mut taken = self::attributes(0, 0, 0);
    taken.attr_clr = attributes;
    call(mount.as_fd(), &taken, false)
}

/// Shifts owners by a user namespace's mapping: what is id 0 on disk appears as the namespace's 0. The mount must be
/// detached and not be shifted already; file systems that cannot answer `EINVAL`.
pub fn idmap(mount: impl AsFd, user: impl AsFd, attributes: u64) -> io::Result<()> {
    setattr(mount.as_fd(), attributes, Some(user.as_fd()), false)
}

/// The mount's changes come from nobody and go to nobody.
pub fn make_private(mount: impl AsFd, recursive: bool) -> io::Result<()> {
    call(mount.as_fd(), &attributes(0, libc::MS_PRIVATE, 0), recursive)
}

fn setattr(mount: BorrowedFd<'_>, set: u64, user: Option<BorrowedFd<'_>>, recursive: bool) -> io::Result<()> {
    let set = if user.is_some() { set | libc::MOUNT_ATTR_IDMAP } else { set };
    let user = user.map_or(0, |user| user.as_raw_fd() as u64);
    call(mount, &attributes(set, 0, user), recursive)
}

fn attributes(attr_set: u64, propagation: u64, userns_fd: u64) -> libc::mount_attr {
    // SAFETY: mount_attr is four integers, for which zero is a value; new fields are zero by the kernel's rule.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = attr_set;
    attributes.propagation = propagation;
    attributes.userns_fd = userns_fd;
    attributes
}

fn call(mount: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a terminated empty string, `attributes` is a valid mount_attr of the size passed; the kernel
    // only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
