//! Paths that are hidden or made read-only.
//!
//! A directory is covered by one empty read-only tmpfs that all of the sandbox shares, a file by the null device of the
//! container's own /dev, which was made a moment ago and is checked to be 1:3 (CVE-2025-31133).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags, fstat, major, minor};
use rustix::io::Errno;

use super::super::own_root;
use super::report::Step;
use crate::protocol::Refusal;
use crate::sys::mount;
use crate::sys::paths::{self, Kind};

/// Hides each path that exists.
pub(crate) fn hide(root: &OwnedFd, dev: &OwnedFd, masked: &[String]) -> Result<(), Refusal> {
    if masked.is_empty() {
        return Ok(());
    }
    let null = null_device(dev)?;
    let empty = own_root::directory(own_root::EMPTY)?;
    for path in masked {
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
