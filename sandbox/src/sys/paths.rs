//! Paths inside a root that somebody hostile may control.
//!
//! Every lookup is one `openat2` with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`: symbolic links, also absolute ones and
//! those that somebody swaps meanwhile, stay inside the root. What the lookup opened is used by descriptor from there on.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

use super::owner::as_owner;

/// Most components of a path; longer ones are refused rather than walked.
const MAX_COMPONENTS: usize = 256;

/// What a target should be when it has to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// Opens `path` below `root` with `flags`.
pub fn open_in(root: impl AsFd, path: impl AsRef<Path>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = path.as_ref();
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // The kernel answers EAGAIN when a rename elsewhere raced with `..`; that is not an answer.
    for _ in 0..64 {
        match openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens the directory `path` below `root` without following any symbolic link.
pub fn open_plain(root: impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(root.as_fd(), path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)
}

/// Opens `path` below `root` as a mount target (`O_PATH`), making what is missing of it as `owner` (uid and gid).
pub fn target_in(root: impl AsFd, path: &Path, kind: Kind, owner: u32) -> rustix::io::Result<OwnedFd> {
    match open_in(root.as_fd(), path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let names: Vec<&OsStr> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    if names.len() > MAX_COMPONENTS || path.components().any(|component| component == Component::ParentDir) {
        return Err(Errno::INVAL);
    }
    let mut walked = std::path::PathBuf::new();
    let mut parent = open_in(root.as_fd(), "", OFlags::PATH | OFlags::DIRECTORY)?;
    for (index, name) in names.iter().enumerate() {
        walked.push(name);
        let last = index + 1 == names.len();
        let wanted = if last { kind } else { Kind::Directory };
        let flags = if last { OFlags::PATH } else { OFlags::PATH | OFlags::DIRECTORY };
        parent = match open_in(root.as_fd(), &walked, flags) {
            Err(Errno::NOENT) => make(&parent, name, wanted, owner)?,
            other => other?,
        };
    }
    Ok(parent)
}

/// Makes `name` with its owner from the start: a container may be renaming there, and what is given away by name afterwards
/// might be another file by then.
fn make(parent: &OwnedFd, name: &OsStr, kind: Kind, owner: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind {
        Kind::Directory => {
            // A link that leads nowhere makes this EEXIST: an error, and nothing was made elsewhere.
            as_owner(owner, || mkdirat(parent, name, Mode::from_raw_mode(0o755)))?;
            openat(parent, name, flags | OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
        }
        Kind::File => {
            let create = flags | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            as_owner(owner, || openat(parent, name, create, Mode::from_raw_mode(0o644)))?;
            openat(parent, name, flags | OFlags::PATH, Mode::empty())
        }
    }
}

/// Whether `fd` is a directory or something else.
pub fn kind_of(fd: impl AsFd) -> rustix::io::Result<Kind> {
    let stat = fstat(fd)?;
    Ok(if FileType::from_raw_mode(stat.st_mode) == FileType::Directory { Kind::Directory } else { Kind::File })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn root(dir: &Path) -> OwnedFd {
        std::fs::File::open(dir).unwrap().into()
    }

    fn owner() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn links_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("r/inside/etc")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("../../../../outside", dir.path().join("r/up")).unwrap();
        symlink("/inside", dir.path().join("r/absolute")).unwrap();
        let fd = root(&dir.path().join("r"));
        assert_eq!(open_in(&fd, "up", OFlags::PATH).unwrap_err(), Errno::NOENT);
        let found = open_in(&fd, "/absolute/etc", OFlags::PATH).unwrap();
        let there = std::fs::metadata(dir.path().join("r/inside/etc")).unwrap();
        assert_eq!(fstat(&found).unwrap().st_ino, there.ino());
    }

    #[test]
    fn missing_targets_are_made_inside_only() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("r")).unwrap();
        symlink("/../outside", dir.path().join("r/dangling")).unwrap();
        let fd = root(&dir.path().join("r"));
        target_in(&fd, Path::new("/a/b/c"), Kind::Directory, owner()).unwrap();
        target_in(&fd, Path::new("/a/b/file"), Kind::File, owner()).unwrap();
        assert!(dir.path().join("r/a/b/c").is_dir());
        assert!(dir.path().join("r/a/b/file").is_file());
        assert_eq!(target_in(&fd, Path::new("/dangling/x"), Kind::Directory, owner()).unwrap_err(), Errno::EXIST);
        assert!(!dir.path().join("outside").exists());
    }

    #[test]
    fn targets_through_links_are_made_where_the_link_leads() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("r/run")).unwrap();
        std::fs::create_dir_all(dir.path().join("r/var")).unwrap();
        symlink("/run", dir.path().join("r/var/run")).unwrap();
        let fd = root(&dir.path().join("r"));
        target_in(&fd, Path::new("/var/run/secrets/token"), Kind::Directory, owner()).unwrap();
        assert!(dir.path().join("r/run/secrets/token").is_dir());
    }

    #[test]
    fn parent_components_cannot_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let fd = root(dir.path());
        assert_eq!(target_in(&fd, Path::new("/x/../y"), Kind::Directory, owner()).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn magic_links_are_not_followed() {
        let fd = root(Path::new("/proc"));
        assert_eq!(open_in(&fd, "self/cwd", OFlags::PATH).unwrap_err(), Errno::LOOP);
    }
}
