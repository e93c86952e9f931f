//! Removing cgroups: bounded waiting for the processes in them to be gone, then directories, the deepest first.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::driver::Dirs;
use super::{CgroupError, files};

/// How often a busy directory is tried again where the kernel has no event for it.
const RETRY: Duration = Duration::from_millis(1);

/// Opens a child directory; `None` when it does not exist.
pub(super) fn open_child(dir: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>, CgroupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(CgroupError::Open { name: name.to_owned(), source: errno.into() }),
    }
}

/// Names of the directories in a cgroup's directory.
pub(super) fn subdirectories(dir: BorrowedFd<'_>) -> Result<Vec<String>, CgroupError> {
    let failed = |errno: Errno| CgroupError::List { name: "children".to_owned(), source: errno.into() };
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Processes live in it or below it (v1: by its member lists).
pub(super) fn has_members(dir: BorrowedFd<'_>) -> Result<bool, CgroupError> {
    if !files::read(dir, "cgroup.procs")?.trim().is_empty() {
        return Ok(true);
    }
    for child in subdirectories(dir)? {
        if let Some(child) = open_child(dir, &child)?
            && has_members(child.as_fd())?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes `name` below every directory of `dirs`, trying until `deadline` after `started`.
pub(super) fn remove(dirs: &Dirs, name: &str, started: Instant, deadline: Duration) -> Result<(), CgroupError> {
    if let Some(unified) = dirs.of_leaves()
        && let Some(child) = open_child(unified, name)?
    {
        wait_until_empty(child.as_fd(), name, started, deadline)?;
    }
    // The unified directory goes last: while it is there, what is left is found and killed again by it.
    for dir in dirs.v1.iter().map(|dir| dir.fd.as_fd()).chain(dirs.of_leaves()) {
        while !try_remove(dir, name)? {
            if started.elapsed() >= deadline {
                return Err(still_in_use(name, started));
            }
            pause(RETRY.min(deadline.saturating_sub(started.elapsed())));
        }
    }
    Ok(())
}

/// Waits for `populated 0` by the event that the kernel gives for it.
fn wait_until_empty(dir: BorrowedFd<'_>, name: &str, started: Instant, deadline: Duration) -> Result<(), CgroupError> {
    const EVENTS: &str = "cgroup.events";
    let events = files::open(dir, EVENTS)?;
    let failed = |errno: Errno| CgroupError::Read { file: EVENTS.to_owned(), source: errno.into() };
    let mut content = [0u8; 256];
    loop {
        // Reading arms the event: a change from here on ends the poll below.
        let got = rustix::io::pread(&events, &mut content, 0).map_err(failed)?;
        let text = String::from_utf8_lossy(&content[..got]);
        if files::keyed(&text, "populated") != Ok(Some(1)) {
            return Ok(());
        }
        let left = deadline.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(still_in_use(name, started));
        }
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// One try, children first. `false` when it is busy.
fn try_remove(dir: BorrowedFd<'_>, name: &str) -> Result<bool, CgroupError> {
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        // Busy with processes or with children; a temporary directory says ENOTEMPTY.
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(CgroupError::Remove { name: name.to_owned(), source: errno.into() }),
    }
    let Some(child) = open_child(dir, name)? else { return Ok(true) };
    for grandchild in subdirectories(child.as_fd())? {
        if !try_remove(child.as_fd(), &grandchild)? {
            return Ok(false);
        }
    }
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(false),
        Err(errno) => Err(CgroupError::Remove { name: name.to_owned(), source: errno.into() }),
    }
}

fn still_in_use(name: &str, started: Instant) -> CgroupError {
    let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    CgroupError::StillInUse { name: name.to_owned(), waited_ms }
}

fn pause(time: Duration) {
    // An interrupted pause only tries again sooner.
    let _ = poll(&mut [], Some(&timespec(time)));
}

pub(super) fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}
