//! `clone3` as a fork into namespaces and a cgroup.
#![allow(unsafe_code)] // neither rustix nor nix has clone3

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};
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

/// What a child runs on that borrows its parent's memory: one at a time. Below it is a page that nobody may touch.
#[derive(Debug)]
pub struct Stack {
    start: std::ptr::NonNull<libc::c_void>,
    /// Without the guard.
    bytes: usize,
}

impl Stack {
    /// The deepest calls are those of a system call's wrapper with a path on the stack; pages that nobody touches do not exist.
    const BYTES: usize = 64 << 10;
    const GUARD: usize = 4 << 10;

    /// Maps one for [`vfork_beside`].
    pub fn new() -> io::Result<Self> {
        Self::of(Self::BYTES)
    }

    /// Maps one of `bytes`, a multiple of a page.
    pub(crate) fn of(bytes: usize) -> io::Result<Self> {
        // SAFETY: new memory at a place of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), Self::GUARD + bytes, ProtFlags::empty(), MapFlags::PRIVATE)
        }?;
        let stack = Self { start: std::ptr::NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?, bytes };
        // SAFETY: all but the first page of what was just mapped, and nobody uses it yet.
        unsafe { mprotect(start.byte_add(Self::GUARD), bytes, MprotectFlags::READ | MprotectFlags::WRITE) }?;
        Ok(stack)
    }

    /// Keeps it from what its process's owner forks: a fork would have who runs on it wait, and copy each page that it writes on.
    pub(crate) fn keep_from_forks(&self) -> io::Result<()> {
        // SAFETY: of what was mapped by `new`; a fork has no use for it.
        unsafe { madvise(self.start.as_ptr(), Self::GUARD + self.bytes, Advice::LinuxDontFork) }
            .map_err(io::Error::from)
    }

    /// Its end, where it begins.
    pub(crate) fn top(&mut self) -> *mut libc::c_void {
        // SAFETY: the end of the mapping.
        unsafe { self.start.as_ptr().byte_add(Self::GUARD + self.bytes) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no child runs on it: `vfork_beside` waits for each, and so does `hold`.
        let _ = unsafe { munmap(self.start.as_ptr(), Self::GUARD + self.bytes) };
    }
}

/// Runs `body` in a child that is the caller's sibling (its parent is the caller's) and borrows the caller's memory, until it has
/// executed a program or ended; for as long the caller waits. To copy the memory would take longer than all of that. The child
/// exits with 1 when `body` returns.
///
/// What `body` allocates and has not dropped when it executes is lost to the caller. The caller has no signal handlers.
/// By `clone`, as the default seccomp filter allows no `clone3`.
pub fn vfork_beside<F: FnMut()>(stack: &mut Stack, body: &mut F) -> io::Result<Child> {
    extern "C" fn run<F: FnMut()>(body: *mut libc::c_void) -> libc::c_int {
        // SAFETY: what is passed below, borrowed for the whole call; the caller does not touch it until the child is done. A
        // panic ends the child: it cannot leave an extern "C" function.
        unsafe { (*body.cast::<F>())() };
        1
    }
    let mut pidfd: RawFd = -1;
    let top = stack.top();
    let body = std::ptr::from_mut(body).cast();
    // The signal at the child's end is the one at the caller's own.
    let flags = i32::try_from(BESIDE).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the stack is the child's alone, aligned to a page, and outlives it: CLONE_VFORK has the caller wait until
    // the child has left this memory. CLONE_PIDFD stores the descriptor in `pidfd`, which outlives the call.
    let result = unsafe { libc::clone(run::<F>, top, flags, body, &raw mut pidfd) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as it succeeded, this is a fresh descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(result).ok_or_else(|| io::Error::other("clone returned no process id"))?;
    Ok(Child { pid, pidfd })
}

/// What [`vfork_beside`] asks of `clone`.
pub(crate) const BESIDE: u64 =
    libc::CLONE_VM as u64 | libc::CLONE_VFORK as u64 | libc::CLONE_PARENT as u64 | libc::CLONE_PIDFD as u64;

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
