//! What the host has, before and after an attack: decoys that invite it, and files that it would be after.
//!
//! ```text
//! let decoys = Decoys::plant();        a directory that everybody may write, reached by its path alone
//! …                                    the attack, with decoys.secret() as its aim
//! decoys.untouched();                  every path, type, mode, owner, time and content is as before
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Files of the host's that attacks are after; those that exist are watched.
const PRIZES: [&str; 10] = [
    "/etc/passwd",
    "/etc/shadow",
    "/etc/group",
    "/etc/hostname",
    "/etc/crontab",
    "/etc/ld.so.preload",
    "/etc/nsswitch.conf",
    "/root/.bashrc",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
];

/// What there is at some paths: for each its type, mode, owner, size, times and content, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census(BTreeMap<PathBuf, String>);

impl Census {
    /// Counts what is at these paths and below; one that is missing is counted as missing.
    pub fn take(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut found = BTreeMap::new();
        for path in paths {
            walk(&path, &mut found);
        }
        Self(found)
    }

    /// What `later` has that is new, gone or different.
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (path, was) in &self.0 {
            match later.0.get(path) {
                None => differences.push(format!("{} is gone", path.display())),
                Some(is) if is != was => differences.push(format!("{}: {was} became {is}", path.display())),
                Some(_) => {}
            }
        }
        let new = later.0.keys().filter(|path| !self.0.contains_key(*path));
        differences.extend(new.map(|path| format!("{} is new", path.display())));
        differences
    }
}

fn walk(path: &Path, found: &mut BTreeMap<PathBuf, String>) {
    found.insert(path.to_owned(), describe(path));
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir()) {
        for entry in fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path(), found);
        }
    }
}

fn describe(path: &Path) -> String {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) => return error.kind().to_string(),
    };
    let kind = meta.file_type();
    let content = if kind.is_symlink() {
        fs::read_link(path).unwrap().display().to_string()
    } else if kind.is_file() {
        sha256(path)
    } else if kind.is_fifo() {
        "pipe".to_owned()
    } else {
        format!("{} entries", fs::read_dir(path).map_or(0, Iterator::count))
    };
    // The kernel's settings have no times: theirs is when they were last looked at.
    let time = if path.starts_with("/proc") { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
    let (mode, uid, gid, links) = (meta.mode(), meta.uid(), meta.gid(), meta.nlink());
    format!("{mode:o} {uid}:{gid} links {links} at {}.{:09} {content}", time.0, time.1)
}

/// A file's content as a number.
pub fn sha256(path: &Path) -> String {
    let mut hasher = Sha256::new();
    std::io::copy(&mut File::open(path).unwrap(), &mut Hashing(&mut hasher)).unwrap();
    hasher.finalize().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

struct Hashing<'a>(&'a mut Sha256);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Decoys on the host, and the census of them, of the prizes and of the shim.
///
/// Everybody may read and write them, and their directory lies in /tmp: nothing but the walls of the sandbox keeps a
/// container from them.
pub struct Decoys {
    dir: tempfile::TempDir,
    mark: String,
    before: Census,
}

impl Decoys {
    /// Plants them.
    pub fn plant() -> Self {
        let dir = tempfile::Builder::new().prefix("decoys-").tempdir().unwrap();
        let mark = format!("the host's own {}", dir.path().display());
        let root = dir.path();
        for directory in ["data/deep", "empty"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for file in ["secret", "data/secret", "data/deep/secret", "log", "resolv.conf"] {
            fs::write(root.join(file), format!("{mark}\n")).unwrap();
            fs::set_permissions(root.join(file), PermissionsExt::from_mode(0o666)).unwrap();
        }
        fs::write(root.join("program"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(root.join("program"), PermissionsExt::from_mode(0o6755)).unwrap();
        symlink("secret", root.join("link")).unwrap();
        for directory in ["", "data", "data/deep", "empty"] {
            fs::set_permissions(root.join(directory), PermissionsExt::from_mode(0o777)).unwrap();
        }
        let before = Census::take(watched(root));
        Self { dir, mark, before }
    }

    /// Their directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A file among them.
    pub fn secret(&self) -> String {
        self.path().join("secret").display().to_string()
    }

    /// What that file holds.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// Fails unless everything is as it was.
    #[track_caller]
    pub fn untouched(self) {
        let differences = self.before.differences(&Census::take(watched(self.path())));
        assert!(differences.is_empty(), "the host was reached: {differences:#?}");
    }
}

fn watched(decoys: &Path) -> impl Iterator<Item = PathBuf> {
    let shim = super::shim::program().unwrap();
    PRIZES.into_iter().map(PathBuf::from).chain([shim, decoys.to_owned()])
}
