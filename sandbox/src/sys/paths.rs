//! Paths inside a root that somebody hostile may control.
//!
//! Every lookup is one `openat2` with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`: symbolic links, also absolute ones and
//! those that somebody swaps meanwhile, stay inside the root. What the lookup opened is used by descriptor from there on.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

use super::owner::as_owner;

/// Most components of a path; longer ones are refused rather than walked.
const MAX_COMPONENTS: usize = 256;
/// Most links that lead nowhere on one way, and most names that somebody else makes meanwhile: as many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// File systems in which nothing is made, and on which nothing may be mounted by a pod: what the container's programs trust
/// (CVE-2025-52881).
pub const KERNEL_FILE_SYSTEMS: [i64; 4] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270];

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

/// Opens `path` below `root` as a mount target (`O_PATH`), making what is missing of it as `owner` (uid and gid). A symbolic
/// link that leads nowhere yet has what it leads to made, as runc does: in the root, wherever it points.
pub fn target_in(root: impl AsFd, path: &Path, kind: Kind, owner: u32) -> rustix::io::Result<OwnedFd> {
    match open_in(root.as_fd(), path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(Errno::INVAL);
    }
    Target { root: root.as_fd(), kind, owner, todo: names(path)?, walked: PathBuf::new(), links: 0 }.make_all()
}

/// The way to a target, of which some is missing.
struct Target<'a> {
    root: BorrowedFd<'a>,
    kind: Kind,
    owner: u32,
    /// Names that are still to be walked.
    todo: VecDeque<OsString>,
    /// Those that have been, for a lookup that begins at the root: the kernel follows the links in it, inside.
    walked: PathBuf,
    links: usize,
}

impl Target<'_> {
    fn make_all(&mut self) -> rustix::io::Result<OwnedFd> {
        let mut parent = self.open(OFlags::DIRECTORY)?;
        while let Some(name) = self.todo.pop_front() {
            self.walked.push(&name);
            let last = self.todo.is_empty();
            let flags = if last { OFlags::empty() } else { OFlags::DIRECTORY };
            parent = match self.open(flags) {
                Err(Errno::NOENT) => {
                    match make(&parent, &name, if last { self.kind } else { Kind::Directory }, self.owner) {
                        Err(Errno::EXIST) => self.follow(&parent, &name)?,
                        other => other?,
                    }
                }
                other => other?,
            };
        }
        Ok(parent)
    }

    fn open(&self, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        open_in(self.root, &self.walked, OFlags::PATH | flags)
    }

    /// What could neither be opened nor made is a link that leads nowhere, or somebody was quicker: the name is walked again,
    /// or what the link says instead of it. Gives the directory from which the way goes on.
    fn follow(&mut self, parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        self.walked.pop();
        match readlinkat(parent, name, Vec::new()) {
            Ok(aim) => {
                let aim = PathBuf::from(OsString::from_vec(aim.into_bytes()));
                if aim.is_absolute() {
                    self.walked.clear();
                }
                for name in names(&aim)?.into_iter().rev() {
                    self.todo.push_front(name);
                }
                if self.todo.len() > MAX_COMPONENTS {
                    return Err(Errno::NAMETOOLONG);
                }
            }
            Err(Errno::INVAL | Errno::NOENT) => self.todo.push_front(name.to_owned()),
            Err(errno) => return Err(errno),
        }
        self.open(OFlags::DIRECTORY)
    }
}

fn names(path: &Path) -> rustix::io::Result<VecDeque<OsString>> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    let names: VecDeque<OsString> = names.collect();
    if names.len() > MAX_COMPONENTS { Err(Errno::INVAL) } else { Ok(names) }
}

/// Makes `name` with its owner from the start: a container may be renaming there, and what is given away by name afterwards
/// might be another file by then. Nothing is made among the kernel's own files, wherever a link leads.
fn make(parent: &OwnedFd, name: &OsStr, kind: Kind, owner: u32) -> rustix::io::Result<OwnedFd> {
    if KERNEL_FILE_SYSTEMS.contains(&fstatfs(parent)?.f_type) {
        return Err(Errno::PERM);
    }
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind {
        Kind::Directory => {
            // Whatever has the name, a link too, makes this EEXIST: nothing was made elsewhere.
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
        let fd = root(&dir.path().join("r"));
        target_in(&fd, Path::new("/a/b/c"), Kind::Directory, owner()).unwrap();
        target_in(&fd, Path::new("/a/b/file"), Kind::File, owner()).unwrap();
        assert!(dir.path().join("r/a/b/c").is_dir());
        assert!(dir.path().join("r/a/b/file").is_file());
    }

    /// As runc makes them.
    #[test]
    fn what_a_dangling_link_leads_to_is_made_inside() {
        let dir = tempfile::tempdir().unwrap();
        let r = dir.path().join("r");
        std::fs::create_dir_all(r.join("a/real")).unwrap();
        symlink("a/real", r.join("place")).unwrap();
        for (link, aim) in [
            ("up", "/../outside"),
            ("far", "../../../../outside/deep"),
            ("chain", "/chained"),
            ("chained", "a/end"),
            ("place/beside", "../next"),
            ("loop", "loop"),
            ("one", "other"),
            ("other", "one"),
        ] {
            symlink(aim, r.join(link)).unwrap();
        }
        let fd = root(&r);
        let make = |path: &str, kind| target_in(&fd, Path::new(path), kind, owner());
        for (path, kind, made) in [
            ("/up/x", Kind::Directory, "outside/x"),
            ("/far", Kind::File, "outside/deep"),
            ("/chain/d", Kind::Directory, "a/end/d"),
            ("/place/beside", Kind::File, "a/next"),
        ] {
            let target = fstat(make(path, kind).unwrap()).unwrap();
            assert_eq!(target.st_ino, std::fs::symlink_metadata(r.join(made)).unwrap().ino(), "{path}");
            assert_eq!(kind_of(open_in(&fd, made, OFlags::PATH).unwrap()).unwrap(), kind, "{path}");
        }
        assert_eq!(make("/loop/x", Kind::Directory).unwrap_err(), Errno::LOOP);
        assert_eq!(make("/one", Kind::File).unwrap_err(), Errno::LOOP);
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 1, "nothing was made outside");
    }

    #[test]
    fn nothing_is_made_among_the_kernels_files() {
        let fd = root(Path::new("/"));
        for path in ["/proc/made-up", "/sys/made-up/x"] {
            assert_eq!(target_in(&fd, Path::new(path), Kind::Directory, owner()).unwrap_err(), Errno::PERM, "{path}");
        }
    }

    /// Somebody exchanges a directory for a link that leads nowhere, or out, while targets are made below it.
    #[test]
    fn racing_links_have_nothing_made_outside() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let r = dir.path().join("r");
        std::fs::create_dir_all(r.join("real")).unwrap();
        symlink("../../../../../../../outside/new", r.join("link")).unwrap();
        let fd = root(&r);
        let (stop, made) = (AtomicBool::new(false), std::cell::Cell::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                while !stop.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(&fd, "real", &fd, "link", exchange).unwrap();
                    let _ = std::fs::remove_dir_all(r.join("outside"));
                }
            });
            for round in 0..1_000 {
                let path = format!("/link/deep{round}/x");
                match target_in(&fd, Path::new(&path), Kind::Directory, owner()) {
                    Ok(_) => made.set(made.get() + 1),
                    Err(Errno::NOENT | Errno::EXIST | Errno::LOOP | Errno::NOTDIR) => {}
                    Err(errno) => panic!("{errno}"),
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(made.get() > 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was made outside");
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
