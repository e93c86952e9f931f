//! What a process must undo of its parent before it becomes somebody else's program.
#![allow(unsafe_code)] // close_range and signal dispositions have no safe wrapper

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

/// The first number above the standard streams.
const FIRST: i32 = 3;

/// Closes every descriptor but the standard streams and these, which get the numbers from 3 on, in their order. Whoever owned one of
/// those must not use or drop it any more: only for a child that never returns to where that would happen.
pub fn keep_only(fds: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    let end =
        i32::try_from(fds.len()).ok().and_then(|count| FIRST.checked_add(count)).ok_or(io::ErrorKind::InvalidInput)?;
    // First above everything that will be in use, so that no target number is another's source.
    let raised = fds.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, end)).collect::<Result<Vec<_>, _>>()?;
    let mut kept = Vec::with_capacity(raised.len());
    for (number, source) in (FIRST..).zip(&raised) {
        let mut target = adopt(number);
        rustix::io::dup3(source, &mut target, rustix::io::DupFlags::CLOEXEC)?;
        kept.push(target);
    }
    // Closed with the others: nothing may drop them.
    std::mem::forget(raised);
    close_from(end.unsigned_abs())?;
    Ok(kept)
}

/// Closes every descriptor from `first` on. Whoever owned one of them must not use or drop it any more: only for a
/// process that executes or exits next.
pub fn close_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX)
}

/// Closes every descriptor but one, as [`close_from`]. Allocates nothing, and leaves `errno` alone where it succeeds.
pub(crate) fn close_but(kept: i32) -> io::Result<()> {
    let kept = kept.unsigned_abs();
    if let Some(last) = kept.checked_sub(1) {
        close_range(0, last)?;
    }
    close_range(kept + 1, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: close_range takes three integers. Descriptors that Rust values own are closed behind their backs; the
    // callers' contract is that none of them is used or dropped again.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Undoes, in a forked child, what this program does to signals: SIGPIPE, which Rust's runtime ignores, and the mask.
pub fn restore_signals() -> io::Result<()> {
    // SAFETY: SIG_DFL is always a valid disposition; sigset_t is plain data, initialised by sigemptyset before use.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Has a write that nobody reads fail instead of ending the process, as Rust's runtime does at a program's start.
pub fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is always a valid disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Default disposition for every signal but SIGPIPE, none blocked: whatever whoever started this program did to them.
/// SIGPIPE stays as Rust's runtime has it: ignored, so that a standard error that nobody hears ends nobody.
pub fn reset_signals() -> io::Result<()> {
    // SAFETY: sigset_t is plain data; sigemptyset initialises it before use, and SIG_DFL is always a valid disposition.
    // KILL and STOP, and numbers that libc keeps for itself, answer EINVAL, which is of no consequence.
    unsafe {
        for signal in (1..=64).filter(|signal| *signal != libc::SIGPIPE) {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Ends the process at once: no destructors, no handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any status, runs no handlers, and does not return.
    unsafe { libc::_exit(code) }
}

/// Takes ownership of a descriptor number that this process was given or keeps for itself.
///
/// For the numbers that a shim inherits (3, 4 …) and for a stub on its way to `execve`: nothing else owns them there. A
/// number that is not open answers `EBADF` at its first use.
pub(crate) fn adopt(number: i32) -> OwnedFd {
    // SAFETY: the caller is the only owner by the contract above, and no negative number is ever passed.
    unsafe { OwnedFd::from_raw_fd(number.max(3)) }
}

/// A real-time signal by its number; `None` outside their range.
pub(crate) fn real_time_signal(number: i32) -> Option<rustix::process::Signal> {
    if !(libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number) {
        return None;
    }
    // SAFETY: the number is one of the real-time signals that libc leaves to programs (checked above).
    Some(unsafe { rustix::process::Signal::from_raw_unchecked(number) })
}

/// Sleeps until a child changes state.
pub(crate) fn wait_for_child() {
    let mut mask = nix::sys::signal::SigSet::empty();
    mask.add(nix::sys::signal::Signal::SIGCHLD);
    // Blocked first, so that a signal between the caller's last look and the wait is not lost for ever.
    if mask.thread_block().is_ok() {
        let _ = mask.wait();
    }
}
