//! One attempt in a process of its own: what it breaks, it breaks there.
#![allow(unsafe_code)] // raw system calls, with arguments that no crate lets through

use std::fmt;
use std::io;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It went through.
    Done,
    /// Refused with this errno.
    Refused(i32),
    /// Ended by this signal; SIGALRM: it went through and waits for ever.
    Killed(i32),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Refused(libc::EPERM) => f.write_str("EPERM"),
            Self::Refused(libc::ENOSYS) => f.write_str("ENOSYS"),
            Self::Refused(libc::EACCES) => f.write_str("EACCES"),
            Self::Refused(libc::EROFS) => f.write_str("EROFS"),
            Self::Refused(libc::ENOENT) => f.write_str("ENOENT"),
            Self::Refused(libc::EINVAL) => f.write_str("EINVAL"),
            Self::Refused(errno) => write!(f, "errno{errno}"),
            Self::Killed(libc::SIGSYS) => f.write_str("SIGSYS"),
            Self::Killed(libc::SIGALRM) => f.write_str("waits"),
            Self::Killed(signal) => write!(f, "signal{signal}"),
        }
    }
}

/// The answer of a raw system call.
pub(crate) fn answer(result: libc::c_long) -> Result<(), i32> {
    if result == -1 { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)) } else { Ok(()) }
}

/// Runs `attempt` in a child that is killed after `milliseconds`.
pub(crate) fn isolated(milliseconds: i64, attempt: impl FnOnce() -> Result<(), i32>) -> Outcome {
    // SAFETY: this program has one thread, so its child may do anything.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", io::Error::last_os_error());
    if child == 0 {
        let limit = libc::timeval { tv_sec: milliseconds / 1000, tv_usec: milliseconds % 1000 * 1000 };
        let timer = libc::itimerval { it_interval: limit, it_value: limit };
        // SAFETY: the timer lives during the call; _exit takes any number.
        unsafe {
            libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &raw const timer, 0);
            libc::_exit(attempt().err().unwrap_or(0))
        }
    }
    let mut status = 0;
    // SAFETY: the status lives during the call.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } == -1 {}
    if libc::WIFSIGNALED(status) {
        return Outcome::Killed(libc::WTERMSIG(status));
    }
    match libc::WEXITSTATUS(status) {
        0 => Outcome::Done,
        errno => Outcome::Refused(errno),
    }
}
