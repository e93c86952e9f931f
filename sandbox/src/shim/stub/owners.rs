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

use crate::shim::slot::IDS;

/// Where sandboxes' ranges begin; below are the host's own ids.
const RANGES: u32 = 1 << 29;
/// Deeper trees are refused: each level is an open descriptor.
const MOST_LEVELS: u32 = 128;

/// The id that `id` becomes in the sandbox whose root is `base`.
fn shifted(id: u32, base: u32) -> u32 {
    match id {
        _ if id < IDS => base + id,
        // Of an earlier sandbox of the same pod. Ranges begin at multiples of their size.
        _ if id >= RANGES => base + id % IDS,
        // Outside what a sandbox has: nobody there, as with a shifting mount.
        _ => id,
    }
}

/// Changes the owners of `root` and of everything in it; `proc` is a /proc that knows this process.
pub(crate) fn shift(root: &OwnedFd, proc: &OwnedFd, base: u32) -> io::Result<()> {
    let directory = own(root.as_fd(), proc, base)?;
    if directory {
        let root = openat(root, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        below(&root, proc, base, MOST_LEVELS)?;
    }
    Ok(())
}

fn below(directory: &OwnedFd, proc: &OwnedFd, base: u32, levels: u32) -> io::Result<()> {
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
                if own(found.as_fd(), proc, base)? {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    below(&openat(&found, c".", flags, Mode::empty())?, proc, base, levels - 1)?;
                }
            }
        }
    }
    Ok(())
}

/// Changes one owner; whether it is a directory.
fn own(what: impl AsFd, proc: &OwnedFd, base: u32) -> io::Result<bool> {
    let stat = fstat(what.as_fd())?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let (uid, gid) = (shifted(stat.st_uid, base), shifted(stat.st_gid, base));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_host_and_of_an_earlier_sandbox_become_the_sandboxs_and_others_stay() {
        let base = RANGES + 7 * IDS;
        assert_eq!(shifted(0, base), base);
        assert_eq!(shifted(65_535, base), base + 65_535);
        assert_eq!(shifted(base + 1000, base), base + 1000, "what the sandbox made stays");
        assert_eq!(shifted(RANGES + 3 * IDS + 5, base), base + 5);
        for outside in [65_536, 100_000, RANGES - 1] {
            assert_eq!(shifted(outside, base), outside);
        }
    }

    proptest::proptest! {
        #[test]
        fn shifting_again_changes_nothing(id in 0_u32..(1 << 31), slot in (RANGES / IDS)..(1_u32 << 15)) {
            let base = slot * IDS;
            let once = shifted(id, base);
            proptest::prop_assert_eq!(shifted(once, base), once);
        }
    }
}
