//! Paths that are hidden or made read-only.
//!
//! A directory is covered by one empty read-only directory that all of the host's sandboxes share, a file by the null device of the
//! container's own /dev, which was made a moment ago and is checked to be 1:3 (CVE-2025-31133).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Dir, FileType, OFlags, fstat, major, minor};
use rustix::io::Errno;

use super::super::own_root;
use super::report::Step;
use crate::protocol::Refusal;
use crate::sys::mount;
use crate::sys::paths::{self, Kind};

/// Hides each path that exists. One component may hold a `*`, which stands for any part of a name.
/// `empty`: where this mount namespace has the empty directory.
pub(crate) fn hide(root: &OwnedFd, dev: &OwnedFd, masked: &[String], empty: &str) -> Result<(), Refusal> {
    if masked.is_empty() {
        return Ok(());
    }
    let null = null_device(dev)?;
    let empty = own_root::directory(empty)?;
    for path in masked.iter().map(|path| meant(root, path)).collect::<Result<Vec<_>, _>>()?.iter().flatten() {
        let Some(target) = existing(root, path)? else { continue };
        let directory = paths::kind_of(&target).step(format!("kind of masked path {path}"))? == Kind::Directory;
        let cover = if directory { empty.as_fd() } else { null.as_fd() };
        let cover = mount::clone_tree(cover, "", false).step(format!("cover for {path}"))?;
        mount::attach(&cover, &target).step(format!("masking of {path}"))?;
    }
    Ok(())
}

/// Makes each path that exists read-only, with all that is mounted below it.
pub(crate) fn protect(root: &OwnedFd, read_only: &[String]) -> Result<(), Refusal> {
    for path in read_only {
        let Some(target) = existing(root, path)? else { continue };
        let copy = mount::clone_tree(&target, "", true).step(format!("copy of {path}"))?;
        mount::set(&copy, mount::RDONLY, true).step(format!("read-only {path}"))?;
        mount::attach(&copy, &target).step(format!("mount of read-only {path}"))?;
    }
    Ok(())
}

/// A path with a `*`: the directory that is searched, what a name begins and ends with, and the rest of the path.
fn pattern(path: &str) -> Option<(&str, &str, &str, &str)> {
    let (before, after) = path.split_once('*')?;
    let (directory, start) = before.rsplit_once('/')?;
    let (end, rest) = after.split_at(after.find('/').unwrap_or(after.len()));
    Some((directory, start, end, rest))
}

/// The paths that are meant: the path itself, or those that a `*` stands for.
fn meant(root: &OwnedFd, path: &str) -> Result<Vec<String>, Refusal> {
    let Some((directory, start, end, rest)) = pattern(path) else { return Ok(vec![path.to_owned()]) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = match paths::open_in(root, directory, flags) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        other => other.step(format!("search for {path}"))?,
    };
    let mut found = Vec::new();
    for entry in Dir::read_from(opened).step(format!("search for {path}"))? {
        let entry = entry.step(format!("search for {path}"))?;
        if let Ok(name) = entry.file_name().to_str()
            && name.len() >= start.len() + end.len()
            && name.starts_with(start)
            && name.ends_with(end)
            && !matches!(name, "." | "..")
        {
            found.push(format!("{directory}/{name}{rest}"));
        }
    }
    Ok(found)
}

fn existing(root: &OwnedFd, path: &str) -> Result<Option<OwnedFd>, Refusal> {
    match paths::open_in(root, path, OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Refusal::failed(format!("open of {path}"), &errno.into())),
    }
}

fn null_device(dev: &OwnedFd) -> Result<OwnedFd, Refusal> {
    let null = paths::open_plain(dev, "null", OFlags::PATH).step("open of /dev/null")?;
    let stat = fstat(&null).step("check of /dev/null")?;
    let genuine = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3);
    if genuine { Ok(null) } else { Err(Refusal::Invalid { message: "/dev/null is not the null device".into() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_of_one_name_may_be_anything() {
        assert_eq!(pattern("/proc/keys"), None);
        assert_eq!(pattern("/sys/cpu/cpu*/throttle"), Some(("/sys/cpu", "cpu", "", "/throttle")));
        assert_eq!(pattern("/a/*.b"), Some(("/a", "", ".b", "")));
        let directory = tempfile::tempdir().unwrap();
        for name in ["cpu0", "cpu1", "cpuidle", "other"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let root = rustix::fs::open(directory.path(), OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let mut found = meant(&root, "/cpu*/x").unwrap();
        found.sort();
        assert_eq!(found, ["/cpu0/x", "/cpu1/x", "/cpuidle/x"]);
        assert_eq!(meant(&root, "/absent/cpu*").unwrap(), Vec::<String>::new());
        assert_eq!(meant(&root, "/plain").unwrap(), ["/plain"]);
    }
}
