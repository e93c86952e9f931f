//! Changes owners in a volume, where the kernel cannot shift them in the mount (tmpfs before Linux 6.3, ramfs).
//!
//! What the host's side wrote as id N becomes the sandbox's id N; what the sandbox itself made is left alone; so doing it
//! again changes nothing. Everything is by descriptor and no link is followed: a container that runs already may be
//! writing there.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, chmodat, chownat, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::ids::Ids;

/// Deeper trees are refused: each level is an open descriptor.
const MOST_LEVELS: u32 = 128;

/// Changes the owners of `root` and of everything in it; `proc` is a /proc that knows this process.
pub(crate) fn shift(root: &OwnedFd, proc: &OwnedFd, ids: &Ids) -> io::Result<()> {
    let directory = own(root.as_fd(), proc, ids)?;
    if directory {
        let root = openat(root, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        below(&root, proc, ids, MOST_LEVELS)?;
    }
    Ok(())
}

fn below(directory: &OwnedFd, proc: &OwnedFd, ids: &Ids, levels: u32) -> io::Result<()> {
    if levels == 0 {
        return Err(io::Error::other(format!("more than {MOST_LEVELS} directories in one another")));
    }
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        match openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            // It went meanwhile.
            Err(Errno::NOENT) => continue,
            found => {
                let found = found?;
                if own(found.as_fd(), proc, ids)? {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    below(&openat(&found, c".", flags, Mode::empty())?, proc, ids, levels - 1)?;
                }
            }
        }
    }
    Ok(())
}

/// Changes one owner; whether it is a directory.
fn own(what: impl AsFd, proc: &OwnedFd, ids: &Ids) -> io::Result<bool> {
    let stat = fstat(what.as_fd())?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let (uid, gid) = (ids.shifted(stat.st_uid), ids.shifted(stat.st_gid));
    if (uid, gid) != (stat.st_uid, stat.st_gid) {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        chownat(what.as_fd(), c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
        // The kernel takes a program's set-id bits away with its owner.
        if kind == FileType::RegularFile && stat.st_mode & 0o6000 != 0 {
            let path = format!("self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&what.as_fd()));
            chmodat(proc, path, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
        }
    }
    Ok(kind == FileType::Directory)
}
