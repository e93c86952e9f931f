//! Racers: they change what a name means while the other side is between looking and acting.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with};

use crate::report::Report;

/// How many exchanges go by between two words about them.
const WORD: u64 = 64;

/// Exchanges two names for ever.
pub(crate) fn exchange(a: &str, b: &str, counter: &str) -> io::Result<Report> {
    let counter = File::create(counter)?;
    let (first, a) = parent(a)?;
    let (second, b) = parent(b)?;
    let mut done: u64 = 0;
    loop {
        renameat_with(&first, a, &second, b, RenameFlags::EXCHANGE)?;
        done += 1;
        if done.is_multiple_of(WORD) {
            counter.write_all_at(format!("{done:020}").as_bytes(), 0)?;
        }
    }
}

/// Exchanges `prey` and `bait` whenever `prey` exists, for ever: what somebody has made a moment ago becomes another file
/// before its owner or mode is set.
pub(crate) fn steal(directory: &str, prey: &str, bait: &str, counter: &str) -> io::Result<Report> {
    let counter = File::create(counter)?;
    let directory = openat(CWD, directory, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mut done: u64 = 0;
    loop {
        if renameat_with(&directory, prey, &directory, bait, RenameFlags::EXCHANGE).is_ok() {
            done += 1;
            counter.write_all_at(format!("{done:020}").as_bytes(), 0)?;
        }
    }
}

/// Waits for ever, with nothing open.
pub(crate) fn idle() -> Report {
    loop {
        std::thread::park();
    }
}

fn parent(path: &str) -> io::Result<(rustix::fd::OwnedFd, &str)> {
    let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
    let directory = if directory.is_empty() { Path::new("/") } else { Path::new(directory) };
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    Ok((openat(CWD, directory, flags, Mode::empty())?, name))
}
