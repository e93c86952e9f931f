//! Bytes that a directory takes on disk, as `du -x` counts them: blocks, hard links once, one file system, no link followed.
//!
//! Whoever owns the tree may change it meanwhile, nest it as deep as they like and fill it with names. So each directory is
//! opened below one that is held open, never by way of `..` or a link; only every eighth level is held open; and what is gone
//! when its turn comes is passed over.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat};
use rustix::io::Errno;

/// Levels from one directory that is held open to the next: so many names of 255 bytes make a path that is not too long.
const HOP: usize = 8;
const BLOCK: u64 = 512;

struct Level {
    name: CString,
    /// Directories in it that are still to be visited.
    todo: Vec<CString>,
    held: Option<OwnedFd>,
}

/// Bytes at and below `root`; 0 when there is nothing. Blocking.
pub fn bytes(root: &Path) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match openat(CWD, root, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(0),
        Err(errno) => return Err(errno.into()),
    };
    let device = rustix::fs::fstat(&top)?.st_dev;
    let mut linked = HashSet::new();
    let mut sum = 0;
    let todo = visit(top.as_fd(), device, &mut linked, &mut sum)?;
    let mut levels = vec![Level { name: CString::default(), todo, held: Some(top) }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.todo.pop() else {
            levels.pop();
            continue;
        };
        let Some(fd) = open_below(&levels, &name)? else { continue };
        let todo = visit(fd.as_fd(), device, &mut linked, &mut sum)?;
        let held = levels.len().is_multiple_of(HOP).then_some(fd);
        levels.push(Level { name, todo, held });
    }
    Ok(sum)
}

/// The directory `name` of the deepest level; `None` when it is gone, or has become something else.
fn open_below(levels: &[Level], name: &CStr) -> io::Result<Option<OwnedFd>> {
    let Some((from, held)) = levels.iter().enumerate().rev().find_map(|(i, level)| Some((i, level.held.as_ref()?)))
    else {
        return Ok(None);
    };
    let mut path = Vec::new();
    for level in &levels[from + 1..] {
        path.extend_from_slice(level.name.to_bytes());
        path.push(b'/');
    }
    path.extend_from_slice(name.to_bytes());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(held, path, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Adds a directory's own blocks and those of what is no directory in it; the names of its directories.
fn visit(dir: BorrowedFd<'_>, device: u64, linked: &mut HashSet<u64>, sum: &mut u64) -> io::Result<Vec<CString>> {
    *sum = sum.saturating_add(taken(&rustix::fs::fstat(dir)?));
    let mut directories = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if stat.st_dev != device {
            continue;
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            directories.push(name.to_owned());
        } else if stat.st_nlink < 2 || linked.insert(stat.st_ino) {
            *sum = sum.saturating_add(taken(&stat));
        }
    }
    Ok(directories)
}

fn taken(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// As `du` counts it.
    fn judge(path: &Path) -> u64 {
        let out = std::process::Command::new("du").args(["-sx", "-B1"]).arg(path).output().unwrap();
        String::from_utf8(out.stdout).unwrap().split('\t').next().unwrap().parse().unwrap()
    }

    #[test]
    fn a_tree_takes_what_du_says_holes_and_hard_links_included() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        assert_eq!(bytes(&root).unwrap(), 0, "nothing is there");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/data"), vec![1; 300_000]).unwrap();
        fs::hard_link(root.join("a/data"), root.join("a/b/again")).unwrap();
        fs::File::create(root.join("hole")).unwrap().set_len(1 << 30).unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("big"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        let found = bytes(&root).unwrap();
        assert_eq!(found, judge(&root));
        assert!((300_000..600_000).contains(&found), "{found}");
    }

    #[test]
    fn a_tree_that_is_deeper_than_a_path_can_name_is_counted_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let name = CString::new("n".repeat(200)).unwrap();
        let mut at = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        for _ in 0..100 {
            rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
            at = openat(&at, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let deepest = openat(&at, "data", OFlags::WRONLY | OFlags::CREATE, Mode::from_raw_mode(0o644)).unwrap();
        rustix::io::write(&deepest, &vec![1; 1 << 20]).unwrap();
        let found = bytes(dir.path()).unwrap();
        assert!(found >= 1 << 20, "{found}");
        assert_eq!(found, judge(dir.path()));
    }

    #[test]
    fn what_is_exchanged_for_a_link_meanwhile_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("big"), vec![1; 64 << 20]).unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join("link")).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(CWD, root.join("a"), CWD, dir.path().join("link"), flags).unwrap();
                }
            });
            for _ in 0..2_000 {
                assert!(bytes(&root).unwrap() < 1 << 20);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
