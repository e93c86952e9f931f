//! Bytes that a directory takes on disk, as `du -x` counts them: blocks, hard links once, one file system, no link followed.
//!
//! Whoever owns the tree may change it meanwhile, nest it as deep as they like and fill it with names. So each directory is
//! opened below one that is held open, never by way of a link, and what is gone when its turn comes is passed over. Only the
//! first directory and the deepest few are held open, however deep the tree: the way back up leads over `..` where that is
//! still the directory that was left there, and else down again from the first one by names.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat};
use rustix::io::Errno;

/// Levels that are held open beside the first.
const HELD: usize = 16;
/// Directories opened on ways down again, at most: somebody who moves a deep tree about all the time would have the walk go
/// down for ever. What is not found after that is passed over.
const WAYS_DOWN: usize = 200_000;
const BLOCK: u64 = 512;

struct Level {
    name: CString,
    inode: u64,
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
    let top_stat = rustix::fs::fstat(&top)?;
    let device = top_stat.st_dev;
    let mut linked = HashSet::new();
    let mut sum = 0;
    let mut ways_down = WAYS_DOWN;
    let todo = visit(top.as_fd(), device, &mut linked, &mut sum)?;
    let mut levels = vec![Level { name: CString::default(), inode: top_stat.st_ino, todo, held: Some(top) }];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.todo.pop() else {
            let left = levels.pop();
            reopen_last(&mut levels, left.and_then(|left| left.held), device, &mut ways_down)?;
            continue;
        };
        // What cannot be found again is passed over.
        let Some(parent) = &level.held else { continue };
        let Some(fd) = open_below(parent, &name, OFlags::RDONLY)? else { continue };
        let todo = visit(fd.as_fd(), device, &mut linked, &mut sum)?;
        if todo.is_empty() {
            continue;
        }
        let inode = rustix::fs::fstat(&fd)?.st_ino;
        if let Some(far) = levels.len().checked_sub(HELD).filter(|far| *far > 0) {
            levels[far].held = None;
        }
        levels.push(Level { name, inode, todo, held: Some(fd) });
    }
    Ok(sum)
}

/// Opens the deepest level again if it is not open and there is something left to visit in it; `below`: a directory that was in it.
fn reopen_last(levels: &mut [Level], below: Option<OwnedFd>, device: u64, ways_down: &mut usize) -> io::Result<()> {
    let Some((last, above)) = levels.split_last_mut() else { return Ok(()) };
    if last.held.is_some() {
        return Ok(());
    }
    let is_it = |fd: &OwnedFd| rustix::fs::fstat(fd).is_ok_and(|s| s.st_dev == device && s.st_ino == last.inode);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let up = below.and_then(|below| openat(&below, "..", flags, Mode::empty()).ok()).filter(is_it);
    last.held = match up {
        Some(up) => Some(up),
        None if last.todo.is_empty() => None,
        None => way_down(above, &last.name, ways_down)?.filter(is_it),
    };
    Ok(())
}

/// From the deepest open directory of `levels` to `name` below the last of them.
fn way_down(levels: &[Level], name: &CStr, ways_down: &mut usize) -> io::Result<Option<OwnedFd>> {
    let Some((from, held)) = levels.iter().enumerate().rev().find_map(|(i, level)| Some((i, level.held.as_ref()?)))
    else {
        return Ok(None);
    };
    let mut at: Option<OwnedFd> = None;
    for name in levels[from + 1..].iter().map(|level| level.name.as_c_str()).chain([name]) {
        if *ways_down == 0 {
            return Ok(None);
        }
        *ways_down -= 1;
        at = open_below(at.as_ref().unwrap_or(held), name, OFlags::PATH)?;
        if at.is_none() {
            return Ok(None);
        }
    }
    Ok(at)
}

/// The directory `name` of `parent`; `None` when it is gone, or has become something else.
fn open_below(parent: &OwnedFd, name: &CStr, how: OFlags) -> io::Result<Option<OwnedFd>> {
    let flags = how | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(parent, name, flags, Mode::empty(), resolve) {
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

    /// Tells this test that it runs in a process of its own, and in which tree.
    const TREE: &str = "NODELESS_TEST_TREE";

    #[test]
    fn the_deepest_tree_is_counted_with_few_descriptors() {
        const DEEP: usize = 30_000;
        if let Some(tree) = std::env::var_os(TREE) {
            let few = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
            let found = bytes(Path::new(&tree)).unwrap();
            assert_eq!(found, (DEEP as u64 / 1000) << 16, "each side is found on the way up");
            return;
        }
        // In memory: a disk takes its time for so many directories, and they take nothing there.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut at = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        let open = |at: &OwnedFd, name| openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let make = |at: &OwnedFd, name| rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755)).unwrap();
        for level in 0..DEEP {
            if level.is_multiple_of(1000) {
                make(&at, c"side");
                let flags = OFlags::WRONLY | OFlags::CREATE;
                let file = openat(open(&at, c"side"), c"data", flags, Mode::from_raw_mode(0o644)).unwrap();
                rustix::io::write(&file, &[1; 1 << 16]).unwrap();
            }
            make(&at, c"d");
            at = open(&at, c"d");
        }
        let name = format!("{}::the_deepest_tree_is_counted_with_few_descriptors", module_path!());
        let name = name.split_once("::").unwrap().1;
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(TREE, dir.path())
            .output()
            .unwrap();
        crate::pod::volumes::removal::remove_tree(&dir.path().join("d")).unwrap();
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(alone.status.success() && said.contains("1 passed"), "{said}");
    }

    /// Moved about below the levels that are held open, a directory is found by its name or passed over; nothing outside is counted.
    #[test]
    fn a_tree_that_is_moved_about_is_walked_to_its_end() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (root, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        let deep = |name: &str| root.join("d/".repeat(4)).join(name);
        for name in ["a", "b"] {
            fs::create_dir_all(deep(name)).unwrap();
            fs::write(deep(name).join("data"), [1; 1 << 16]).unwrap();
        }
        fs::create_dir_all(deep("a/moved").join("d/".repeat(3 * HELD))).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("big"), vec![1; 4 << 20]).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let places = [deep("a/moved"), deep("b/moved"), outside.join("moved")];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    fs::rename(&places[turn % 3], &places[(turn + 1) % 3]).unwrap();
                }
            });
            for _ in 0..1_000 {
                assert_eq!(bytes(&root).unwrap(), 2 << 16, "what stays in its place is counted once, whatever moves");
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
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
