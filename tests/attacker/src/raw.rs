//! System calls that no crate makes safe.
#![allow(unsafe_code)] // ptrace, unshare, handles; a descriptor by its number

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Attaches to a process, stops it, looks, and lets go again.
pub(crate) fn seized<T>(pid: i32, look: impl FnOnce() -> T) -> io::Result<T> {
    let nothing: *mut libc::c_void = std::ptr::null_mut();
    // SAFETY: PTRACE_SEIZE takes a process id and two null pointers; it touches no memory of this process.
    checked(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, nothing, nothing) })?;
    // SAFETY: as above. One that has ended meanwhile is reaped by the wait.
    unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, pid, nothing, nothing) };
    // SAFETY: waitpid may be given no place for the status.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
    let seen = look();
    // SAFETY: as above.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, nothing, nothing) };
    Ok(seen)
}

/// Leaves namespaces for new ones.
pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: unshare takes an integer; CLONE_VM and CLONE_FILES are never among the flags here.
    checked(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Opens what a handle (`struct file_handle`, as its bytes) names on the file system that `mount` is of.
pub(crate) fn open_by_handle(mount: BorrowedFd<'_>, handle: &[u8; 16]) -> io::Result<OwnedFd> {
    // SAFETY: the bytes begin with their own count (8) and hold as many after the eight bytes of the head, so the kernel
    // reads within them; it writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), handle.as_ptr(), libc::O_PATH) };
    let number = RawFd::try_from(checked(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel made this descriptor a moment ago for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Names a descriptor by its number, which may not be open: then its first use answers `EBADF`. Never closed.
pub(crate) fn descriptor(number: RawFd) -> ManuallyDrop<OwnedFd> {
    // SAFETY: no negative number is passed, and it is not dropped, so nothing that another value owns is closed.
    ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number.max(0)) })
}
