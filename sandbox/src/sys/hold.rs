//! Namespaces made and held by a process that does nothing else.
//!
//! It has the caller's memory, not a copy: copying it takes longer than making the namespaces of some. So it makes system calls with
//! what it has on its own stack, by rustix, which keeps no `errno`: the C library's is the caller's too. (The standard library closes
//! descriptors by the C library, which leaves `errno` alone as long as that succeeds.)
#![allow(unsafe_code)] // clone with a stack of one's own

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::poll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socketpair};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, pidfd_send_signal, set_parent_process_death_signal, waitpid,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::clone::{Child, NEWUSER, Stack};
use super::{link, process};

/// What it runs on: the kernel needs none of it; an unoptimised build's frames do.
const STACK: usize = 32 << 10;

/// The process; it ends when this is dropped.
#[derive(Debug)]
pub struct Holder {
    /// The process.
    pub child: Child,
    /// There until somebody has waited for it.
    room: Option<Room>,
}

/// What such a process runs on and reads; another one may when it has ended.
#[derive(Debug)]
pub struct Room {
    stack: Stack,
    errand: Box<Errand>,
}

/// What one speaks to a process by that has a user namespace of its own and makes the others of a sandbox in there when it is told
/// to. It ends with the last copy of this.
#[derive(Debug)]
pub struct Maker {
    /// Its descriptor, by which others can enter what it has made.
    pidfd: OwnedFd,
    channel: OwnedFd,
}

/// What the process is for.
#[derive(Debug, Clone, Copy)]
enum Errand {
    /// To be there, as long as this parent is.
    Hold { parent: Pid },
    /// When it hears a byte from there, to make these, and to say there what became of it. It has no other descriptor.
    Make { spaces: UnshareFlags, channel: RawFd },
}

/// Waits for children of which no signal tells, too (`__WALL`).
pub const ALL: WaitOptions = WaitOptions::from_bits_retain(libc::__WALL.cast_unsigned());

/// What it does when it is told to, by the number that it says when that failed.
const STEPS: [&str; 2] = ["network, IPC and UTS namespaces", "loopback interface"];

impl Holder {
    /// Has it end, without waiting for that: it may take as long as whatever else its processor does.
    pub fn kill(&self) {
        // Of what is a child of ours and not waited for yet it cannot fail.
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
    }

    /// Lets go of it, where all of the caller's children are waited for together and this one was: it has ended.
    #[must_use]
    pub fn collected(mut self) -> Option<Room> {
        self.room.take()
    }

    /// Leaves it, and what it runs on, to itself: for a caller that ends.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if self.room.is_some() {
            self.kill();
            let _ = waitpid(Some(self.child.pid), ALL);
        }
    }
}

impl Maker {
    /// How many descriptors it is.
    pub const FDS: usize = 2;

    /// Its descriptors, for another process to [adopt](Self::adopt).
    #[must_use]
    pub fn fds(&self) -> [BorrowedFd<'_>; Self::FDS] {
        [self.pidfd.as_fd(), self.channel.as_fd()]
    }

    /// From its descriptors.
    #[must_use]
    pub fn adopt([pidfd, channel]: [OwnedFd; Self::FDS]) -> Self {
        Self { pidfd, channel }
    }

    /// Has it begin. What it makes belongs to whom its user namespace's ids stand for now: those are to be mapped before.
    pub fn go(&self) -> io::Result<()> {
        rustix::io::write(&self.channel, &[0]).map(drop).map_err(io::Error::from)
    }

    /// Waits until all is there, or says what could not be made. It lives, with what it has made, until what it gives is dropped.
    pub fn made(self) -> Result<Made, (&'static str, io::Error)> {
        let failed = |error: io::Error| (STEPS[0], error);
        let made = Made { pidfd: self.pidfd, channel: self.channel };
        let mut word = [[0; 4]; 2];
        let room = word.as_flattened_mut();
        let length = room.len();
        // Its end ends the wait: nobody else has the other end.
        match rustix::io::retry_on_intr(|| rustix::io::read(&made.channel, &mut *room)) {
            Ok(read) if read == length => {}
            Ok(_) => return Err(failed(io::Error::other("the process that was to make them has ended"))),
            Err(errno) => return Err(failed(errno.into())),
        }
        match word.map(i32::from_ne_bytes) {
            [_, 0] => Ok(made),
            [step, errno] => {
                let step = usize::try_from(step).ok().and_then(|step| STEPS.get(step)).unwrap_or(&STEPS[0]);
                Err((step, io::Error::from_raw_os_error(errno)))
            }
        }
    }
}

/// Who has made namespaces, and holds them until this is dropped, whoever else has copies of it.
#[derive(Debug)]
pub struct Made {
    /// Its descriptor.
    pub pidfd: OwnedFd,
    channel: OwnedFd,
}

impl Drop for Made {
    fn drop(&mut self) {
        // What has ended already has been told so.
        let _ = rustix::net::shutdown(&self.channel, Shutdown::Both);
    }
}

/// Makes namespaces (`flags`, as of `clone`, but `CLONE_NEWPID`: who holds them must see its parent).
pub fn hold(flags: u64) -> io::Result<Holder> {
    start(Room::new()?, flags | libc::SIGCHLD as u64, Errand::Hold { parent: getpid() })
}

/// Makes a user namespace, and who will make in it, while the caller goes on, network (its loopback interface up), IPC and UTS
/// namespaces. It has the caller's memory and is in that user namespace, so the caller must not be dumpable. No signal tells of its end: the caller collects it some time afterwards ([`ALL`]), when there is nothing else to do.
/// `room`: an earlier one's.
pub fn maker(room: Option<Room>) -> io::Result<(Holder, Maker)> {
    make_maker(room, NEWUSER, UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)
}

fn make_maker(room: Option<Room>, flags: u64, spaces: UnshareFlags) -> io::Result<(Holder, Maker)> {
    let (channel, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let room = room.map_or_else(Room::new, Ok)?;
    let holder = start(room, flags, Errand::Make { spaces, channel: its.as_raw_fd() })?;
    let pidfd = holder.child.pidfd.try_clone()?;
    Ok((holder, Maker { pidfd, channel }))
}

impl Room {
    fn new() -> io::Result<Self> {
        let stack = Stack::of(STACK)?;
        stack.keep_from_forks()?;
        Ok(Self { stack, errand: Box::new(Errand::Hold { parent: getpid() }) })
    }
}

fn start(mut room: Room, flags: u64, errand: Errand) -> io::Result<Holder> {
    *room.errand = errand;
    let mut pidfd: RawFd = -1;
    let flags = flags | libc::CLONE_VM as u64 | libc::CLONE_PIDFD as u64;
    let flags = libc::c_int::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (top, lent) = (room.stack.top(), std::ptr::from_ref(&*room.errand).cast_mut());
    // SAFETY: the stack, aligned to a page, is the process's alone, and lives until it has ended (`Holder`'s drop waits for it,
    // `collected` is told of it, `leave` never frees it); so does `lent`, which nobody writes to; `run` touches nothing else. CLONE_PIDFD stores the descriptor in `pidfd`, which
    // outlives the call.
    let result = unsafe { libc::clone(run, top, flags, lent.cast(), &raw mut pidfd) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as it succeeded, this is a fresh descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(result).ok_or_else(|| io::Error::other("clone returned no process id"))?;
    Ok(Holder { child: Child { pid, pidfd }, room: Some(room) })
}

/// The whole of the process; its exit status.
extern "C" fn run(errand: *mut libc::c_void) -> libc::c_int {
    // SAFETY: what is passed above; it lives as long as this process, and nobody writes to it.
    match unsafe { *errand.cast::<Errand>() } {
        Errand::Hold { parent } => {
            // Nobody else may know of it yet: neither a PID namespace nor a control group need be its parent's own.
            if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || getppid() != Some(parent) {
                return 1;
            }
            loop {
                // Only a signal ends it.
                let _ = poll(&mut [], None);
            }
        }
        Errand::Make { spaces, channel } => {
            // Among them is a copy of the channel's other end, without which it would never hear of its end.
            if process::close_but(channel).is_err() {
                return 1;
            }
            // SAFETY: the number is open in this process's copy of the table, which is as the caller's was.
            let channel = unsafe { BorrowedFd::borrow_raw(channel) };
            if matches!(heard(channel), Ok(1)) {
                let (step, errno) = match make(spaces) {
                    Ok(()) => (0, 0),
                    Err((step, errno)) => (step, errno.raw_os_error()),
                };
                let word = [i32::to_ne_bytes(step), errno.to_ne_bytes()];
                if rustix::io::write(channel, word.as_flattened()).is_ok() {
                    let _ = heard(channel);
                }
            }
            0
        }
    }
}

/// Waits for a byte, or the end.
fn heard(channel: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    rustix::io::retry_on_intr(|| rustix::io::read(channel, &mut [0]))
}

/// A failed step's number in [`STEPS`].
fn make(inner: UnshareFlags) -> Result<(), (i32, Errno)> {
    // SAFETY: neither its memory, its descriptors nor its directory are given up.
    unsafe { unshare_unsafe(inner) }.map_err(|errno| (0, errno))?;
    link::loopback_up().map_err(|errno| (1, errno))
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags};

    use super::*;

    /// Memory that others have too cannot be given up.
    fn impossible() -> (Holder, Maker) {
        make_maker(None, 0, UnshareFlags::from_bits_retain(libc::CLONE_VM as u32)).unwrap()
    }

    fn ended(holder: &Holder) {
        let mut end = [PollFd::new(&holder.child.pidfd, PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut end, Some(&patience)).unwrap(), 1, "it lives on");
    }

    #[test]
    fn who_was_to_make_namespaces_and_has_ended_is_not_waited_for() {
        let (holder, maker) = make_maker(None, 0, UnshareFlags::empty()).unwrap();
        holder.kill();
        let (step, error) = maker.made().unwrap_err();
        assert_eq!((step, error.kind()), (STEPS[0], io::ErrorKind::Other));
    }

    #[test]
    fn what_cannot_be_made_is_told_by_its_name_and_number() {
        let (_holder, maker) = impossible();
        maker.go().unwrap();
        let (step, error) = maker.made().unwrap_err();
        assert_eq!((step, error.raw_os_error()), (STEPS[0], Some(libc::EINVAL)));
    }

    #[test]
    fn nothing_is_made_before_it_is_told_to() {
        let (_holder, maker) = impossible();
        let mut ends = [PollFd::new(&maker.channel, PollFlags::IN)];
        let soon = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        assert_eq!(poll(&mut ends, Some(&soon)).unwrap(), 0);
        maker.go().unwrap();
        assert_eq!(poll(&mut ends, None).unwrap(), 1);
    }

    #[test]
    fn who_makes_namespaces_ends_when_nobody_speaks_to_it_any_more() {
        let (untold, maker) = make_maker(None, 0, UnshareFlags::empty()).unwrap();
        drop(maker);
        ended(&untold);
        let (done, maker) = impossible();
        maker.go().unwrap();
        drop(maker.made());
        ended(&done);
    }

    #[test]
    fn what_one_ran_on_is_for_another_when_it_has_ended() {
        let (first, maker) = impossible();
        drop(maker);
        ended(&first);
        waitpid(Some(first.child.pid), ALL).unwrap();
        let room = first.collected();
        assert!(room.is_some());
        let (_second, maker) = make_maker(room, NEWUSER, UnshareFlags::NEWNET).unwrap();
        maker.go().unwrap();
        maker.made().unwrap();
    }

    #[test]
    fn who_has_made_namespaces_holds_them_until_that_is_dropped_whoever_has_a_copy() {
        let (holder, maker) = make_maker(None, NEWUSER, UnshareFlags::NEWNET).unwrap();
        let copy = maker.channel.try_clone().unwrap();
        maker.go().unwrap();
        let made = maker.made().unwrap();
        let mut end = [PollFd::new(&holder.child.pidfd, PollFlags::IN)];
        let soon = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        assert_eq!(poll(&mut end, Some(&soon)).unwrap(), 0);
        drop(made);
        ended(&holder);
        drop(copy);
    }
}
