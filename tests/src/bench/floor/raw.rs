//! Children that have their parent's memory.
#![allow(unsafe_code)] // clone

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, WaitOptions, waitpid};

/// A child process, not waited for yet.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
}

/// What a child with its parent's memory runs on: as long as the child lives.
#[derive(Debug)]
pub(super) struct Stack(Vec<u8>);

/// Holds what a stub, or an exec's child, calls.
const STACK: usize = 128 << 10;

impl Stack {
    pub(super) fn new() -> Self {
        Self(vec![0; STACK])
    }
}

/// What such a child does.
pub(super) trait Run {
    /// It exits with 1 after an error, which it tells on standard error, and otherwise with 0.
    fn run(&mut self) -> Result<()>;
}

/// Runs `body` in a child that shares the caller's memory and takes turns with it: neither goes on but when the other waits.
/// The body and the stack have to live for as long as the child does.
pub(super) fn share<T: Run>(flags: i32, stack: &mut Stack, body: &mut T) -> Result<Child> {
    extern "C" fn enter<T: Run>(body: *mut libc::c_void) -> libc::c_int {
        // SAFETY: what `share` passed; it is the caller's for as long as the child lives.
        let body = unsafe { &mut *body.cast::<T>() };
        code(&body.run())
    }
    let mut pidfd: RawFd = -1;
    let top = stack.0.as_mut_ptr_range().end;
    let flags = flags | libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
    let body: *mut T = body;
    // SAFETY: the stack is as long as `STACK` and lives with the caller, as `body` does; parent and child take turns.
    let pid = unsafe { libc::clone(enter::<T>, top.cast(), flags, body.cast(), &raw mut pidfd) };
    child(pid, pidfd).context("clone")
}

/// Runs `body` in a child with a copy of the memory, from a process of one thread.
pub(super) fn fork(body: impl FnOnce() -> Result<()>) -> Result<Child> {
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and a stack this is a fork, of a process of one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    if pid == 0 {
        let code = code(&body());
        // SAFETY: ends the process, and runs nothing of the parent's.
        unsafe { libc::_exit(code) }
    }
    child(i32::try_from(pid)?, pidfd).context("fork")
}

fn code(result: &Result<()>) -> libc::c_int {
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("floor: {error:#}");
            1
        }
    }
}

fn child(pid: i32, pidfd: RawFd) -> io::Result<Child> {
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: CLONE_PIDFD stored a descriptor there that nobody else owns.
    Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Waits for a child's good end.
pub(super) fn reap(child: Child) -> Result<()> {
    let (_, status) = waitpid(Some(child.pid), WaitOptions::empty())?.context("a child to wait for")?;
    ensure!(status.exit_status() == Some(0), "a child has ended with {status:?}");
    Ok(())
}
