//! Namespaces made and held by a process that does nothing else.
//!
//! It has the caller's memory, not a copy: copying it takes longer than making the namespaces of some. So it makes system calls with
//! what it has on its own stack, by rustix, which keeps no `errno`: the C library's is the caller's too. (The standard library closes
//! descriptors by the C library, which leaves `errno` alone as long as that succeeds.)
#![allow(unsafe_code)] // clone with a stack of one's own

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, pidfd_send_signal, set_parent_process_death_signal, waitpid,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::clone::{Child, NEWUSER, Stack};
use super::link;

/// What it runs on: the kernel needs none of it; an unoptimised build's frames do.
const STACK: usize = 32 << 10;

/// The process; it ends when this is dropped.
#[derive(Debug)]
pub struct Holder {
    /// The process.
    pub child: Child,
    /// What it runs on and reads.
    _lent: (Stack, Box<Errand>),
    /// Somebody has waited for it.
    collected: bool,
}

/// A process in a user namespace of its own, which makes the others of a sandbox in there when it is told to.
#[derive(Debug)]
pub struct Maker {
    holder: Holder,
    channel: OwnedFd,
}

/// What the process does first.
#[derive(Debug, Clone, Copy)]
struct Errand {
    /// Its parent, without which it ends.
    parent: Pid,
    /// When it hears a byte from there it makes these, and says there what became of it.
    inner: Option<(UnshareFlags, RawFd)>,
}

/// What it does when it is told to, by the number that it says when that failed.
const STEPS: [&str; 2] = ["network, IPC and UTS namespaces", "loopback interface"];

impl Holder {
    /// Has it end, without waiting for that: it may take as long as whatever else its processor does.
    pub fn kill(&self) {
        // Of what is a child of ours and not waited for yet it cannot fail.
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
    }

    /// Lets go of it, where all of the caller's children are waited for together and this one has ended.
    pub fn collected(mut self) {
        self.collected = true;
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if !self.collected {
            self.kill();
            let _ = waitpid(Some(self.child.pid), WaitOptions::empty());
        }
    }
}

impl Maker {
    /// The process, in its user namespace.
    #[must_use]
    pub fn child(&self) -> &Child {
        &self.holder.child
    }

    /// Has it begin. What it makes belongs to whom its user namespace's ids stand for now: those are to be mapped before.
    pub fn go(&self) -> io::Result<()> {
        rustix::io::write(&self.channel, &[0]).map(drop).map_err(io::Error::from)
    }

    /// Waits until all is there; or says what could not be made.
    pub fn made(self) -> Result<Holder, (&'static str, io::Error)> {
        let failed = |error: io::Error| (STEPS[0], error);
        let mut ends =
            [PollFd::new(&self.channel, PollFlags::IN), PollFd::new(&self.holder.child.pidfd, PollFlags::IN)];
        poll(&mut ends, None).map_err(|errno| failed(errno.into()))?;
        let mut word = [[0; 4]; 2];
        let room = word.as_flattened_mut();
        let length = room.len();
        if !ends[0].revents().contains(PollFlags::IN)
            || rustix::io::read(&self.channel, room).map_err(|errno| failed(errno.into()))? != length
        {
            return Err(failed(io::Error::other("the process that was to make them has ended")));
        }
        match word.map(i32::from_ne_bytes) {
            [_, 0] => Ok(self.holder),
            [step, errno] => {
                let step = usize::try_from(step).ok().and_then(|step| STEPS.get(step)).unwrap_or(&STEPS[0]);
                Err((step, io::Error::from_raw_os_error(errno)))
            }
        }
    }
}

/// Makes namespaces (`flags`, as of `clone`, but `CLONE_NEWPID`: who holds them must see its parent).
pub fn hold(flags: u64) -> io::Result<Holder> {
    start(flags, None)
}

/// Makes a user namespace, and who will make in it, while the caller goes on, network (its loopback interface up), IPC and UTS
/// namespaces.
pub fn maker() -> io::Result<Maker> {
    make_maker(NEWUSER, UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)
}

fn make_maker(flags: u64, inner: UnshareFlags) -> io::Result<Maker> {
    // The process has a copy of the other end, so that this one hears its end.
    let (channel, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok(Maker { holder: start(flags, Some((inner, its.as_raw_fd())))?, channel })
}

fn start(flags: u64, inner: Option<(UnshareFlags, RawFd)>) -> io::Result<Holder> {
    let (mut stack, errand) = (Stack::of(STACK)?, Box::new(Errand { parent: getpid(), inner }));
    stack.keep_from_forks()?;
    let mut pidfd: RawFd = -1;
    let flags = flags | libc::CLONE_VM as u64 | libc::CLONE_PIDFD as u64;
    let flags = libc::c_int::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)? | libc::SIGCHLD;
    let (top, lent) = (stack.top(), std::ptr::from_ref(&*errand).cast_mut());
    // SAFETY: the stack, aligned to a page, is the process's alone, and lives until it has ended (`Holder`'s drop waits for it);
    // so does `lent`, which nobody writes to; `run` touches nothing else. CLONE_PIDFD stores the descriptor in `pidfd`, which
    // outlives the call.
    let result = unsafe { libc::clone(run, top, flags, lent.cast(), &raw mut pidfd) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as it succeeded, this is a fresh descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(result).ok_or_else(|| io::Error::other("clone returned no process id"))?;
    Ok(Holder { child: Child { pid, pidfd }, _lent: (stack, errand), collected: false })
}

/// The whole of the process.
extern "C" fn run(errand: *mut libc::c_void) -> libc::c_int {
    // SAFETY: what is passed above; it lives as long as this process, and nobody writes to it.
    let errand = unsafe { *errand.cast::<Errand>() };
    // Nobody else may know of it yet: neither a PID namespace nor a control group need be its parent's own.
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || getppid() != Some(errand.parent) {
        return 1;
    }
    if let Some((inner, channel)) = errand.inner {
        // SAFETY: the number is open in this process's copy of the table, which is as the caller's was.
        let channel = unsafe { BorrowedFd::borrow_raw(channel) };
        if matches!(rustix::io::read(channel, &mut [0]), Ok(1)) {
            let (step, errno) = match make(inner) {
                Ok(()) => (0, 0),
                Err((step, errno)) => (step, errno.raw_os_error()),
            };
            let word = [i32::to_ne_bytes(step), errno.to_ne_bytes()];
            let _ = rustix::io::write(channel, word.as_flattened());
        }
    }
    loop {
        // Only a signal ends it.
        let _ = poll(&mut [], None);
    }
}

/// A failed step's number in [`STEPS`].
fn make(inner: UnshareFlags) -> Result<(), (i32, Errno)> {
    // SAFETY: neither its memory, its descriptors nor its directory are given up.
    unsafe { unshare_unsafe(inner) }.map_err(|errno| (0, errno))?;
    link::loopback_up().map_err(|errno| (1, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_to_make_namespaces_and_has_ended_is_not_waited_for() {
        let maker = make_maker(0, UnshareFlags::empty()).unwrap();
        maker.holder.kill();
        let (step, error) = maker.made().unwrap_err();
        assert_eq!((step, error.kind()), (STEPS[0], io::ErrorKind::Other));
    }

    #[test]
    fn what_cannot_be_made_is_told_by_its_name_and_number() {
        // Memory that others have too cannot be given up.
        let maker = make_maker(0, UnshareFlags::from_bits_retain(libc::CLONE_VM as u32)).unwrap();
        maker.go().unwrap();
        let (step, error) = maker.made().unwrap_err();
        assert_eq!((step, error.raw_os_error()), (STEPS[0], Some(libc::EINVAL)));
    }

    #[test]
    fn nothing_is_made_before_it_is_told_to() {
        let maker = make_maker(0, UnshareFlags::from_bits_retain(libc::CLONE_VM as u32)).unwrap();
        let mut ends = [PollFd::new(&maker.channel, PollFlags::IN)];
        let soon = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        assert_eq!(poll(&mut ends, Some(&soon)).unwrap(), 0);
        maker.go().unwrap();
        assert_eq!(poll(&mut ends, None).unwrap(), 1);
    }
}
