//! A child on memory that another child lends it.
//!
//! A process that executes a program first gives the memory back that it had, page by page: of a child that is a copy of its
//! parent a tenth of a millisecond and more. One that borrowed the memory leaves it to its lender, which may take its time.
//!
//! ```text
//!  caller ── fork ──> lender ── clone, CLONE_VM | CLONE_PARENT ──> borrower, a child of the caller's
//!     │ <── the borrower's number ──┘ from then on still, with no descriptor   │
//!     │ <──────────────────── what it is there for, its end ───────────────────┘
//! ```
#![allow(unsafe_code)] // clone with a stack of one's own

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::clone::{Child, Stack, fork_with};

/// What a borrower runs on: as deep as reading JSON and making mounts goes in an unoptimised build. Pages that nobody touches do
/// not exist.
const STACK: usize = 1 << 20;

/// Who lends: it does nothing and has nothing but the memory; killed when this is dropped. The caller collects it as any child.
#[derive(Debug)]
pub struct Lender(Child);

impl Lender {
    /// Its number in the caller's PID namespace.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.0.pid
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        // Of what has ended already it fails, and that is well.
        let _ = pidfd_send_signal(&self.0.pidfd, Signal::KILL);
    }
}

/// As [`fork_with`]; but the child that runs `body` gives no memory back when it executes a program, as that is its lender's.
/// Both are children of the caller, and both in `cgroup` where that is given; only the borrower is in the namespaces that
/// `flags` ask for.
pub fn fork_lent(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> i32,
) -> io::Result<(Child, Lender)> {
    let (heard, told) = pipe_with(PipeFlags::CLOEXEC)?;
    let lender = Lender(fork_with(0, cgroup, || lend(flags, body, &told))?);
    drop(told);
    // The borrower has the pipe's other end too, so that the lender's own end is to be listened for.
    let mut number = [0; 4];
    let mut ends = [PollFd::new(&heard, PollFlags::IN), PollFd::new(&lender.0.pidfd, PollFlags::IN)];
    poll(&mut ends, None)?;
    if !ends[0].revents().contains(PollFlags::IN) || rustix::io::read(&heard, &mut number)? != number.len() {
        return Err(io::Error::other("a child that was to lend its memory has ended"));
    }
    let number = i32::from_ne_bytes(number);
    let pid = match Pid::from_raw(number) {
        Some(pid) if number > 0 => pid,
        _ => return Err(io::Error::from_raw_os_error(number.saturating_neg())),
    };
    // The number is the borrower's until the caller has waited for it.
    Ok((Child { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? }, lender))
}

/// The whole of a lender. Tells the borrower's number, or a negative errno.
fn lend<F: FnOnce() -> i32>(flags: u64, body: F, told: &OwnedFd) -> i32 {
    extern "C" fn run<F: FnOnce() -> i32>(body: *mut libc::c_void) -> libc::c_int {
        // SAFETY: what is passed below; its owner does not touch it again.
        let body = unsafe { (*body.cast::<Option<F>>()).take() };
        // A panic cannot leave an extern "C" function.
        body.and_then(|body| catch_unwind(AssertUnwindSafe(body)).ok()).unwrap_or(70)
    }
    // Where the caller is not the first process of a PID namespace the kernel would not end its children with it.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let Ok(mut stack) = Stack::of(STACK) else { return 1 };
    let Ok(flags) = i32::try_from(flags | libc::CLONE_VM as u64 | libc::CLONE_PARENT as u64) else { return 1 };
    let mut body = Some(body);
    let top = stack.top();
    // SAFETY: the stack is the child's alone and lives as long as this process, which only ends by a signal; so does `body`.
    // From here on all other memory is the child's: this process makes system calls with what it has on its own stack.
    let number = unsafe { libc::clone(run::<F>, top, flags, std::ptr::from_mut(&mut body).cast()) };
    if number < 0 {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN);
        let _ = rustix::io::write(told, &errno.saturating_neg().to_ne_bytes());
        return 1;
    }
    let word = number.to_ne_bytes();
    // What the child closes is to be closed, also where the other end listens for that.
    close_all_but(told.as_fd());
    let _ = rustix::io::write(told, &word);
    let last = told.as_raw_fd().unsigned_abs();
    close_range(last, last);
    loop {
        // Only a signal ends it.
        let _ = poll(&mut [], None);
    }
}

fn close_all_but(kept: BorrowedFd<'_>) {
    let kept = kept.as_raw_fd().unsigned_abs();
    if let Some(below) = kept.checked_sub(1) {
        close_range(0, below);
    }
    close_range(kept.saturating_add(1), u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: three integers; whoever owned a descriptor of these never uses or drops it again, as this process returns to
    // nobody.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) };
}

#[cfg(test)]
mod tests {
    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    #[test]
    fn a_process_with_threads_lends_nothing() {
        // The test harness has more than one.
        let other = std::thread::spawn(std::thread::park);
        assert_eq!(fork_lent(0, None, || 0).unwrap_err().kind(), io::ErrorKind::Unsupported);
        other.thread().unpark();
        other.join().unwrap();
    }

    #[test]
    fn a_lender_ends_with_its_handle() {
        let mut spawned = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&spawned);
        drop(Lender(Child { pid, pidfd: pidfd_open(pid, PidfdFlags::empty()).unwrap() }));
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
        let _ = spawned.try_wait();
    }
}
