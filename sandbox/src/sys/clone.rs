//! `clone3` as a fork into namespaces and a cgroup.
#![allow(unsafe_code)] // neither rustix nor nix has clone3

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::Pid;

/// `CLONE_NEWNS`.
pub const NEWNS: u64 = libc::CLONE_NEWNS as u64;
/// `CLONE_NEWPID`.
pub const NEWPID: u64 = libc::CLONE_NEWPID as u64;
/// `CLONE_NEWUSER`.
pub const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
/// `CLONE_NEWNET`.
pub const NEWNET: u64 = libc::CLONE_NEWNET as u64;
/// `CLONE_NEWIPC`.
pub const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
/// `CLONE_NEWUTS`.
pub const NEWUTS: u64 = libc::CLONE_NEWUTS as u64;

const CLONE_PIDFD: u64 = libc::CLONE_PIDFD as u64;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child process.
#[derive(Debug)]
pub struct Child {
    /// Its number in the caller's PID namespace.
    pub pid: Pid,
    /// Its descriptor.
    pub pidfd: OwnedFd,
}

/// Forks a child with `flags` (namespaces), into `cgroup` (a v2 directory) where given, which runs `body` and exits
/// with what it returns. It has none of the parent's signal handlers; what the parent ignores it ignores.
///
/// Only for single-threaded processes: the child has the memory of the parent as it is, and no other thread to unlock
/// what was locked. The shim and the keeper are such; anything else gets [`io::ErrorKind::Unsupported`].
pub fn fork_with(flags: u64, cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce() -> i32) -> io::Result<Child> {
    if !single_threaded() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "fork from a process with several threads"));
    }
    let mut pidfd: RawFd = -1;
    let mut args = libc::clone_args {
        flags: flags | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid, zero-padded clone_args of the size passed, and `pidfd` outlives the call. Without
    // CLONE_VM and with no stack given this is a fork: the child goes on here on its own copy of the stack. The process
    // has one thread (checked above), so no lock is held by a thread that the child lacks.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    after(result, &pidfd, body)
}

/// As [`fork_with`], but the child is the caller's sibling: its parent is the caller's. The caller has no signal handlers.
/// By `clone`, as the default seccomp filter allows no `clone3`.
pub fn fork_beside(body: impl FnOnce() -> i32) -> io::Result<Child> {
    if !single_threaded() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "fork from a process with several threads"));
    }
    let mut pidfd: RawFd = -1;
    // The signal at the child's end is the one at the caller's own.
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD;
    // SAFETY: without CLONE_VM and with no stack given this is a fork, as in `fork_with`; CLONE_PIDFD stores the descriptor
    // where the third argument points, and `pidfd` outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    after(result, &pidfd, body)
}

/// Namespaces that a process holds which does nothing else; it ends when this is dropped.
#[derive(Debug)]
pub struct Holder {
    /// The process.
    pub child: Child,
    /// What it runs on.
    _stack: Box<[u8]>,
}

impl Drop for Holder {
    fn drop(&mut self) {
        use rustix::process::{Signal, WaitOptions, pidfd_send_signal, waitpid};
        // Of what is a child of ours and not waited for yet neither can fail.
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
        let _ = waitpid(Some(self.child.pid), WaitOptions::empty());
    }
}

/// Makes namespaces (`flags`) by a process that has the caller's memory, not a copy, as copying it takes longer than making
/// the namespaces of some.
pub fn hold(flags: u64) -> io::Result<Holder> {
    /// The kernel needs none of it; a page for the C library's frames, and one to spare.
    const STACK: usize = 16 << 10;
    extern "C" fn wait(_: *mut libc::c_void) -> libc::c_int {
        loop {
            // SAFETY: no argument, and it comes back after a signal only: the process has no handlers.
            unsafe { libc::pause() };
        }
    }
    let mut stack = vec![0u8; STACK].into_boxed_slice();
    let mut pidfd: RawFd = -1;
    let flags = flags | libc::CLONE_VM as u64 | CLONE_PIDFD;
    let flags = libc::c_int::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)? | libc::SIGCHLD;
    let top = stack.as_mut_ptr_range().end;
    // SAFETY: the stack is `STACK` bytes that live until the process has ended (`Holder`'s drop waits for it), aligned by the C
    // library; `wait` touches nothing but it; CLONE_PIDFD stores the descriptor in `pidfd`, which outlives the call.
    let result = unsafe { libc::clone(wait, top.cast(), flags, std::ptr::null_mut(), &raw mut pidfd) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as it succeeded, this is a fresh descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(result).ok_or_else(|| io::Error::other("clone returned no process id"))?;
    Ok(Holder { child: Child { pid, pidfd }, _stack: stack })
}

/// What a fork goes on with, in either process. `pidfd`: where the kernel has stored the child's descriptor.
fn after(result: libc::c_long, pidfd: &RawFd, body: impl FnOnce() -> i32) -> io::Result<Child> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // Never unwind into the parent's frames.
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(70);
            // SAFETY: _exit takes any status, runs no handlers, and does not return.
            unsafe { libc::_exit(code) }
        }
        pid => {
            // SAFETY: CLONE_PIDFD made the kernel store a descriptor here that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(*pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or_else(|| io::Error::other("clone3 returned no process id"))?;
            Ok(Child { pid, pidfd })
        }
    }
}

fn single_threaded() -> bool {
    // `Threads:` needs /proc, which an almost empty mount namespace may lack; the link count of the task directory is
    // the same number plus two. Where neither can be asked, the process is a shim before it has mounted /proc.
    match rustix::fs::stat("/proc/self/task") {
        Ok(stat) => stat.st_nlink == 3,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_refused() {
        // The test harness itself has more than one.
        let other = std::thread::spawn(std::thread::park);
        assert_eq!(fork_with(0, None, || 0).unwrap_err().kind(), io::ErrorKind::Unsupported);
        other.thread().unpark();
        other.join().unwrap();
    }
}
