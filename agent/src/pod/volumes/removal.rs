//! Removal of trees that a pod has written.
//!
//! What a pod leaves behind is hostile: links to the host's files, and directories in one another by the hundred thousand,
//! which would take as many descriptors, or as deep a stack, of whoever follows them down. So nothing is resolved by path and
//! nobody goes down: a directory that is not empty is moved up, next to the first ones, and emptied there. Two descriptors
//! and no recursion, whatever the tree.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::Errno;

/// Removes what is at `path` and everything in it; what is not there is removed already. No link is followed below `path`'s
/// own parent.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        // A directory, in the words of different file systems.
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return Ok(other?),
    }
    let top = match directory(CWD, path.as_os_str()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut moved = 0;
    while let Some(names) = names(&top)? {
        for name in names {
            remove_entry(&top, &name, &mut moved)?;
        }
    }
    match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Removes one entry of `top`; the directories in it that are not empty become entries of `top`.
fn remove_entry(top: &OwnedFd, name: &OsStr, moved: &mut u64) -> io::Result<()> {
    if !is_directory_left(top, name)? {
        return Ok(());
    }
    let found = match directory(top, name) {
        // Gone, or something else by now: the next round sees.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        other => other?,
    };
    while let Some(names) = names(&found)? {
        for inner in names {
            if is_directory_left(&found, &inner)? {
                move_up(&found, &inner, top, moved)?;
            }
        }
    }
    match unlinkat(top, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes a file or an empty directory; true when it is a directory with something in it.
fn is_directory_left(parent: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(false),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(false),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

fn move_up(from: &OwnedFd, name: &OsStr, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        let free = format!(".removed-{moved}");
        match renameat_with(from, name, top, free.as_str(), RenameFlags::NOREPLACE) {
            // The pod has used the name, or it was there after a crash.
            Err(Errno::EXIST) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn directory(parent: impl rustix::fd::AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Some of a directory's names; `None` when it is empty.
fn names(directory: &OwnedFd) -> io::Result<Option<Vec<std::ffi::OsString>>> {
    /// At once, so that a directory of millions is not held in memory.
    const MOST: usize = 4096;
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
        if names.len() == MOST {
            break;
        }
    }
    Ok((!names.is_empty()).then_some(names))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// Directories in one another, made as a program would that changes into each.
    fn nest(place: &Path, depth: usize) {
        let mut inner = directory(CWD, place.as_os_str()).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&inner, "d", Mode::from_raw_mode(0o700)).unwrap();
            inner = directory(&inner, OsStr::new("d")).unwrap();
        }
        rustix::fs::symlinkat("/", &inner, "link").unwrap();
    }

    #[test]
    fn a_tree_of_any_depth_is_removed() {
        // In memory: a disk takes its time for so many directories.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let tree = dir.path().join("tree");
        for name in ["a", "b/c/d", ".removed-1/x/y", ".removed-2"] {
            fs::create_dir_all(tree.join(name)).unwrap();
        }
        nest(&tree.join("a"), 20_000);
        fs::write(tree.join("b/file"), "x").unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn more_files_than_are_looked_at_at_once_are_removed_too() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        for directory in 0..3 {
            fs::create_dir_all(tree.join(directory.to_string())).unwrap();
            for file in 0..5000 {
                fs::write(tree.join(format!("{directory}/{file}")), "").unwrap();
            }
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, decoy) = (dir.path().join("tree"), dir.path().join("decoy"));
        fs::create_dir_all(decoy.join("inner")).unwrap();
        fs::write(decoy.join("inner/file"), "mine").unwrap();
        fs::create_dir_all(tree.join("a/b")).unwrap();
        for link in ["decoy", "a/decoy", "a/b/decoy", ".removed-1"] {
            symlink(&decoy, tree.join(link)).unwrap();
        }
        let link = dir.path().join("link");
        symlink(&decoy, &link).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&link).unwrap();
        assert!(!tree.exists() && fs::symlink_metadata(&link).is_err());
        assert_eq!(fs::read_to_string(decoy.join("inner/file")).unwrap(), "mine");
    }

    /// CVE-2024-23652, CVE-2018-15664: somebody who still runs exchanges directories for links meanwhile.
    #[test]
    fn a_racing_link_is_not_followed_by_a_removal() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, decoy) = (dir.path().join("tree"), dir.path().join("decoy"));
        fs::create_dir_all(&decoy).unwrap();
        for number in 0..50 {
            fs::write(decoy.join(format!("file{number}")), "mine").unwrap();
        }
        let (over, exchanged) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for (a, b) in [("a/b", "a/link"), ("a", "link")] {
                        let done = renameat_with(CWD, tree.join(a), CWD, tree.join(b), RenameFlags::EXCHANGE);
                        exchanged.fetch_add(u32::from(done.is_ok()), Ordering::Relaxed);
                    }
                }
            });
            let mut removed = 0;
            let deadline = Instant::now() + Duration::from_secs(60);
            while (removed < 200 || exchanged.load(Ordering::Relaxed) < 20) && Instant::now() < deadline {
                // Made where nobody races: through an exchanged link, making it would itself write into the decoy.
                let fresh = dir.path().join("fresh");
                fs::create_dir_all(fresh.join("a/b")).unwrap();
                fs::write(fresh.join("a/b/file0"), "").unwrap();
                symlink(&decoy, fresh.join("a/link")).unwrap();
                symlink(&decoy, fresh.join("link")).unwrap();
                fs::rename(&fresh, &tree).unwrap();
                // The racer may put things back between two looks.
                while remove_tree(&tree).is_err() && Instant::now() < deadline {}
                removed += 1;
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(exchanged.into_inner() >= 20, "nothing raced");
        for number in 0..50 {
            assert_eq!(fs::read_to_string(decoy.join(format!("file{number}"))).unwrap(), "mine");
        }
        assert_eq!(fs::read_dir(&decoy).unwrap().count(), 50);
    }
}
