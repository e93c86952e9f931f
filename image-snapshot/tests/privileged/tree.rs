//! What a process can see of a directory tree.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, llistxattr, lsetxattr, makedev, mknodat};

#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Facts {
    pub(crate) mode: u32,
    owner: (u32, u32),
    mtime: Option<(i64, i64)>,
    pub(crate) length: u64,
    content: Vec<u8>,
    rdev: u64,
    links: Option<u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// First name, in order, of the inode's names.
    same_as: PathBuf,
}

impl Facts {
    pub(crate) fn has_attributes(&self) -> bool {
        !self.xattrs.is_empty()
    }

    pub(crate) fn is_device(&self) -> bool {
        self.rdev != 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirTimes {
    Compared,
    Ignored,
}

/// Everything below `root`, by path within it.
pub(crate) fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut out = BTreeMap::new();
    let mut first_names: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut todo = std::collections::BTreeSet::from([PathBuf::new()]);
    while let Some(inside) = todo.pop_first() {
        let path = if inside.as_os_str().is_empty() { root.to_owned() } else { root.join(&inside) };
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let content = if kind.is_file() {
            small(std::fs::read(&path).unwrap())
        } else if kind.is_symlink() {
            std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let is_device = kind.is_block_device() || kind.is_char_device();
        let same_as = if kind.is_dir() {
            inside.clone()
        } else {
            first_names.entry((meta.dev(), meta.ino())).or_insert_with(|| inside.clone()).clone()
        };
        let facts = Facts {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: Some((meta.mtime(), meta.mtime_nsec())),
            length: if kind.is_file() { meta.len() } else { 0 },
            content,
            rdev: if is_device { meta.rdev() } else { 0 },
            links: (!kind.is_dir()).then(|| meta.nlink()),
            xattrs: xattrs(&path),
            same_as,
        };
        if kind.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| inside.join(e.unwrap().file_name())));
        }
        out.insert(inside, facts);
    }
    out
}

/// A big file's content is known by its digest.
fn small(content: Vec<u8>) -> Vec<u8> {
    if content.len() < 64 << 10 { content } else { image_snapshot::Digest::sha256(&content).to_string().into_bytes() }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    let len = llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut out = BTreeMap::new();
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0_u8; 64 << 10];
        let n = lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(n);
        out.insert(name.to_vec(), value);
    }
    out
}

/// Panics with what differs.
pub(crate) fn compare(have: &BTreeMap<PathBuf, Facts>, want: &BTreeMap<PathBuf, Facts>, times: DirTimes) {
    let paths = |m: &BTreeMap<PathBuf, Facts>| m.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    let (ours, theirs) = (paths(have), paths(want));
    let extra: Vec<_> = ours.difference(&theirs).collect();
    let missing: Vec<_> = theirs.difference(&ours).collect();
    assert!(extra.is_empty() && missing.is_empty(), "only ours: {extra:?}; only tar's: {missing:?}");
    for (path, want) in want {
        let (mut have, mut want) = (have[path].clone(), want.clone());
        if times == DirTimes::Ignored && want.mode & 0o170_000 == 0o040_000 {
            (have.mtime, want.mtime) = (None, None);
        }
        assert!(have == want, "{path:?}\nours  {}\ntar's {}", short(&have), short(&want));
    }
}

fn short(facts: &Facts) -> String {
    let mut facts = facts.clone();
    facts.content.truncate(60);
    format!("{facts:?}")
}

/// `u::rwx,u:1234:rw-,g::r-x,m::rwx,o::r-x` as Linux keeps it (`linux/posix_acl_xattr.h`).
fn acl() -> Vec<u8> {
    let none = u32::MAX;
    let entries: [(u16, u16, u32); 5] = [(1, 7, none), (2, 6, 1234), (4, 5, none), (0x10, 7, none), (0x20, 5, none)];
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(permissions.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

/// A tree with every kind of thing that an archive can hold.
pub(crate) fn make_one_of_everything(root: &Path) {
    std::fs::create_dir_all(root.join("dir/sub")).unwrap();
    std::fs::write(root.join("empty"), b"").unwrap();
    std::fs::write(root.join("dir/small"), b"small").unwrap();
    std::fs::write(root.join("dir/block"), [1; 4096]).unwrap();
    std::fs::write(root.join("dir/odd"), [2; 10_001]).unwrap();
    std::fs::write(root.join("dir/big"), vec![3; 5 << 20]).unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"dir/odd \n\xff name")), b"x").unwrap();
    let long = "n".repeat(250);
    std::fs::create_dir_all(root.join(&long).join(&long)).unwrap();
    std::fs::write(root.join(&long).join(&long).join(&long), b"deep").unwrap();
    std::fs::hard_link(root.join("dir/odd"), root.join("dir/sub/hard")).unwrap();
    symlink("../small", root.join("dir/sub/link")).unwrap();
    symlink("l".repeat(4000), root.join("dir/longlink")).unwrap();
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2755), ("none", 0)] {
        std::fs::write(root.join(name), name).unwrap();
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    std::fs::set_permissions(root.join("dir/sub"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(root.join("dir/small"), Some(12_345), Some(4_000_000)).unwrap();
    let node = |name: &str, kind, dev| mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o640), dev).unwrap();
    node("fifo", FileType::Fifo, 0);
    node("char", FileType::CharacterDevice, makedev(1, 7));
    node("block", FileType::BlockDevice, makedev(259, 70_000));
    let set =
        |name: &str, key: &str, value: &[u8]| lsetxattr(root.join(name), key, value, XattrFlags::empty()).unwrap();
    // VFS_CAP_REVISION_2 with CAP_NET_RAW; binary, with a newline in it.
    set("setuid", "security.capability", &[1, 0, 0, 2, 0, 0x20, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    set("dir/odd", "trusted.thing", b"for root only");
    set("dir", "user.note", &[b'v'; 900]);
    for name in ["system.posix_acl_access", "system.posix_acl_default"] {
        set("dir", name, &acl());
    }
    let times = |name: &str, at: &str| {
        let status = Command::new("touch").args(["-h", "-d", at]).arg(root.join(name)).status().unwrap();
        assert!(status.success());
    };
    times("empty", "2040-01-02 03:04:05.123456789 UTC");
    times("dir/small", "1960-05-06 07:08:09 UTC");
}
