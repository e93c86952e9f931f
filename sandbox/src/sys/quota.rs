//! Project quotas: how many bytes all files may take together that were made in one directory.
//!
//! A directory has a project's number, and whatever is made below it has the same one. The file system counts for each number.
//! `quotactl_fd` is from Linux 5.14; ext4 has such quotas with its features `project` and `quota`, XFS with its mount option
//! `pquota`.
#![allow(unsafe_code)] // neither rustix nor nix knows these calls

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `PRJQUOTA` of linux/quota.h.
const OF_PROJECTS: u32 = 2;
/// `Q_GETQUOTA`, `Q_SETQUOTA` and `Q_XGETQSTATV`.
const GET: u32 = 0x80_0007;
const SET: u32 = 0x80_0008;
const STATE: u32 = (b'X' as u32) << 8 | 8;
/// `FS_QUOTA_PDQ_ENFD`: limits of projects are held.
const HELD: u16 = 1 << 5;
/// `QIF_BLIMITS` and `QIF_ILIMITS`: limits of blocks and of inodes are set.
const BOTH_LIMITS: u32 = 1 | 4;
/// Inodes that a project has beside one for each of so many bytes.
const INODES: u64 = 1024;
const INODE_EACH: u64 = 4096;
/// Limits are in units of this (`QIF_DQBLKSIZE`).
const UNIT: u64 = 1024;

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801C_581F_u32 as libc::Ioctl;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401C_5820_u32 as libc::Ioctl;
/// `FS_XFLAG_PROJINHERIT`: what is made in a directory has its project.
const INHERITED: u32 = 0x200;

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Limits {
    hard: u64,
    soft: u64,
    used: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// The beginning of `struct fs_quota_statv`, and more room than any kernel has needed for the rest.
#[repr(C, align(8))]
struct State {
    version: i8,
    pad: u8,
    flags: u16,
    rest: [u8; 508],
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    pad: [u8; 8],
}

/// Whether the file system of this directory holds limits of projects. A file system or a kernel that knows nothing of them
/// does not.
pub(crate) fn are_held(directory: impl AsFd) -> io::Result<bool> {
    let mut state = State { version: 1, pad: 0, flags: 0, rest: [0; 508] };
    // SAFETY: `State` is at least as large as the kernel's structure of version 1, and lives over the call.
    match unsafe { call(directory.as_fd(), STATE, 0, &raw mut state) } {
        Ok(()) => Ok(state.flags & HELD != 0),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EINVAL | libc::ESRCH | libc::EOPNOTSUPP | libc::ENOTTY) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Whether any file has this project.
pub(crate) fn is_used(directory: impl AsFd, project: u32) -> io::Result<bool> {
    let mut limits = Limits::default();
    // SAFETY: `Limits` has the layout of the kernel's struct if_dqblk (checked by a test) and lives over the call.
    match unsafe { call(directory.as_fd(), GET, project, &raw mut limits) } {
        Ok(()) => Ok(limits.used != 0 || limits.inodes != 0),
        // XFS has nothing about a number that was never given.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has all files of this project take no more than so many bytes together, rounded up to a KiB, and be no more than would be with
/// 4 KiB each, and 1024 beside: the file system has no inodes without end either.
pub(crate) fn limit(directory: impl AsFd, project: u32, bytes: u64) -> io::Result<()> {
    let hard = bytes.div_ceil(UNIT);
    let mut limits = Limits { hard, hard_inodes: bytes / INODE_EACH + INODES, valid: BOTH_LIMITS, ..Limits::default() };
    // SAFETY: as in `is_used`; the kernel only reads it.
    unsafe { call(directory.as_fd(), SET, project, &raw mut limits) }
}

/// The directory's project; 0 when it has none.
pub(crate) fn project(directory: impl AsFd) -> io::Result<u32> {
    Ok(attributes(directory.as_fd())?.project)
}

/// Gives the directory a project, which what is made in it from now on has too.
pub(crate) fn set_project(directory: impl AsFd, project: u32) -> io::Result<()> {
    let directory = directory.as_fd();
    let mut attributes = attributes(directory)?;
    attributes.project = project;
    attributes.flags |= INHERITED;
    // SAFETY: `attributes` has the layout of the kernel's struct fsxattr (checked by a test), lives over the call and is only
    // read; the descriptor is open for the borrow's time.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn attributes(directory: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes no more than the struct fsxattr that `attributes` is, while it is alive; the descriptor is open
    // for the borrow's time.
    let result = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

/// `quotactl_fd`.
///
/// # Safety
/// `argument` must be what the command reads or writes, and live over the call.
unsafe fn call<T>(directory: BorrowedFd<'_>, command: u32, project: u32, argument: *mut T) -> io::Result<()> {
    let command = command << 8 | OF_PROJECTS;
    // SAFETY: the caller's promise; the descriptor is open for the borrow's time.
    let result = unsafe { libc::syscall(libc::SYS_quotactl_fd, directory.as_raw_fd(), command, project, argument) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn structures_have_the_kernel_s_sizes() {
        assert_eq!(size_of::<Limits>(), 72);
        assert_eq!(std::mem::offset_of!(Limits, valid), 64);
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(std::mem::offset_of!(Attributes, project), 12);
        assert_eq!(std::mem::offset_of!(State, flags), 2);
    }

    #[test]
    fn a_file_system_without_quotas_holds_no_limits() {
        assert!(!are_held(File::open("/proc/self").unwrap()).unwrap());
    }
}
