//! Our images before judges that are not ours: `fsck.erofs` and the `erofs-rs` reader; and random trees before all of them.

use std::{collections::BTreeMap, io::Read as _, process::Command};

use erofs_rs::{EroFS, backend::SliceImage};
use proptest::prelude::*;

use crate::{
    erofs::{ErofsFile, xattr::Xattrs},
    testing::{Stack, Tar},
};

/// All that both readers can tell about a path.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    permissions: u16,
    owner: (u32, u32),
    mtime: (i64, u32),
    nlink: u32,
    content: Vec<u8>,
    device: Option<(u32, u32)>,
    xattrs: Xattrs,
}

fn theirs(image: &[u8]) -> BTreeMap<Vec<u8>, Facts> {
    let fs = EroFS::new(SliceImage::new(image)).unwrap();
    let mut out = BTreeMap::new();
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let inode = entry.inode;
        let mut content = Vec::new();
        if inode.is_file() {
            fs.open_inode_file(inode).unwrap().read_to_end(&mut content).unwrap();
        } else if inode.is_symlink() {
            content = fs.read_link_inode(inode).unwrap().as_bytes().to_vec();
        }
        let facts = Facts {
            permissions: std::os::unix::fs::PermissionsExt::mode(&inode.permissions()) as u16 & 0o7777,
            owner: (inode.uid(), inode.gid()),
            mtime: inode.modified_unix(),
            nlink: inode.nlink(),
            content,
            device: inode.device(),
            xattrs: fs.xattrs_inode(inode).unwrap(),
        };
        out.insert(entry.dir_entry.path().as_bytes().to_vec(), facts);
    }
    out
}

fn ours(image: Vec<u8>) -> BTreeMap<Vec<u8>, Facts> {
    let fs = ErofsFile::open(std::sync::Arc::new(image)).unwrap();
    let mut out = BTreeMap::new();
    let mut todo = vec![(Vec::new(), fs.root())];
    while let Some((path, nid)) = todo.pop() {
        let inode = fs.inode(nid).unwrap();
        let is_device = matches!(inode.mode & 0o170_000, 0o020_000 | 0o060_000);
        let facts = Facts {
            permissions: inode.mode & 0o7777,
            owner: (inode.uid, inode.gid),
            mtime: (inode.mtime, inode.mtime_nsec),
            nlink: inode.nlink,
            content: if inode.is_dir() { Vec::new() } else { fs.read_all(&inode, 1 << 30).unwrap().unwrap() },
            device: is_device
                .then_some(((inode.rdev >> 8) & 0xfff, (inode.rdev & 0xff) | ((inode.rdev >> 12) & !0xff))),
            xattrs: fs.xattrs(&inode).unwrap(),
        };
        if inode.is_dir() {
            for entry in fs.entries(&inode).unwrap() {
                let found = fs.lookup(&inode, &entry.name).unwrap();
                assert_eq!(found.as_ref(), Some(&entry), "lookup finds what the listing has");
                todo.push(([&path[..], b"/", &entry.name].concat(), entry.nid));
            }
        }
        if !path.is_empty() {
            out.insert(path, facts);
        }
    }
    out
}

fn fsck(stack: &Stack, layer: usize) {
    if Command::new("fsck.erofs").arg("-V").output().is_err() {
        eprintln!("SKIPPED fsck.erofs: not installed");
        return;
    }
    let file = stack.save(layer);
    let output = Command::new("fsck.erofs").arg("--extract").arg(file.path()).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn judge(stack: &Stack) {
    for layer in 0..stack.layers.len() {
        let image = stack.bytes(layer);
        assert_eq!(ours(image.clone()), theirs(&image));
        fsck(stack, layer);
    }
}

/// One of everything.
fn rich() -> Vec<u8> {
    let mut tar = Tar::new()
        .pax("mtime", b"-12.000000001")
        .dir("./", 0o755)
        .file("empty", b"")
        .file("small", b"hello")
        .file("block", &[1; 4096])
        .file("tail", &[2; 4097])
        .file("nofit", &[3; 4090])
        .file("big", &vec![4; 3 << 20])
        .pax("mtime", b"4000000000.123456789")
        .pax("uid", b"4000000000")
        .with("bin/su", b'0', b"#!", |h| h.set_mode(0o4755))
        .pax("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\n")
        .pax("SCHILY.xattr.user.note", b"x")
        .pax("SCHILY.xattr.trusted.overlay.opaque", b"y")
        .pax("SCHILY.xattr.system.nfs4_acl", b"z")
        .file("bin/ping", b"ping")
        .pax("SCHILY.xattr.user.huge", &vec![7; 60_000])
        .file("attrs", &[5; 5000])
        .hardlink("bin/ping2", "bin/ping")
        .symlink("link", "bin/ping")
        .device("null", b'3', 1, 3)
        .device("disk", b'4', 259, 70_000)
        .device("fifo", b'6', 0, 0)
        .pax("linkpath", &[b'l'; 4095])
        .symlink("longlink", "x");
    for i in 0..900 {
        tar = tar.file(&format!("many/{}-{i}", "n".repeat(i % 240)), &vec![i as u8; i * 7 % 5000]);
    }
    tar.end()
}

#[test]
fn all_judges_read_what_we_wrote() {
    let stack = Stack::of(&[
        rich(),
        Tar::new()
            .file(".wh.small", b"")
            .file("bin/.wh..wh..opq", b"")
            .file("bin/new", b"")
            .hardlink("hard", "big")
            .end(),
    ]);
    judge(&stack);
    let facts = ours(stack.bytes(0));
    assert_eq!(facts[&b"/bin/su"[..]].mtime, (4_000_000_000, 123_456_789));
    assert_eq!(facts[&b"/bin/su"[..]].permissions, 0o4755);
    assert_eq!(facts[&b"/bin/su"[..]].owner.0, 4_000_000_000);
    let names: Vec<_> =
        facts[&b"/bin/ping"[..]].xattrs.keys().map(|k| String::from_utf8_lossy(k).into_owned()).collect();
    assert_eq!(names, ["security.capability", "user.note"], "the overlay's own names are not the archive's to set");
    assert_eq!(facts[&b"/attrs"[..]].xattrs[&b"user.huge"[..]].len(), 60_000);
    assert_eq!(facts[&b"/disk"[..]].device, Some((259, 70_000)));
}

#[test]
fn the_same_archive_gives_the_same_bytes() {
    let (a, b) = (Stack::of(&[rich()]), Stack::of(&[rich()]));
    assert!(a.bytes(0) == b.bytes(0));
    let digest = crate::Digest::sha256(&a.bytes(0)).to_string();
    // Changes only when the format of our images changes: then existing stores hold other bytes than new ones.
    insta::assert_snapshot!(digest);
}

#[test]
fn more_inodes_than_a_segment_holds() {
    // 12 000 tails of 4 000 bytes: 48 MB of inodes, so a dozen segments, and a link count to change in the first.
    let mut tar = Tar::new();
    for i in 0..12_000 {
        tar = tar.file(&format!("d{}/f{i}", i % 7), &[i as u8; 4000]);
    }
    let stack = Stack::of(&[tar.hardlink("again", "d0/f0").end()]);
    let facts = ours(stack.bytes(0));
    assert_eq!(facts.len(), 12_000 + 7 + 1);
    assert_eq!(facts[&b"/again"[..]].nlink, 2);
    assert_eq!(facts[&b"/d6/f11990"[..]].content, [(11_990 % 256) as u8; 4000]);
}

#[derive(Debug, Clone)]
enum Op {
    File(Vec<u8>),
    Dir(u32),
    Symlink(String),
    HardLink(String),
    Fifo,
    Whiteout,
    Opaque,
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[abc]", 1..4).prop_map(|parts| parts.join("/"))
}

fn op() -> impl Strategy<Value = (String, Op)> {
    let what = prop_oneof![
        4 => prop_oneof![Just(0_usize), 1..40_usize, 4000..9000_usize].prop_map(|n| Op::File(vec![b'x'; n])),
        3 => (0..0o7777_u32).prop_map(Op::Dir),
        1 => prop_oneof![path(), path().prop_map(|p| format!("/{p}")), path().prop_map(|p| format!("../{p}"))].prop_map(Op::Symlink),
        1 => path().prop_map(Op::HardLink),
        1 => Just(Op::Fifo),
        1 => Just(Op::Whiteout),
        1 => Just(Op::Opaque),
    ];
    (path(), what)
}

fn archive(ops: &[(String, Op)]) -> Vec<u8> {
    let mut tar = Tar::new();
    for (path, op) in ops {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let prefix = if parent.is_empty() { String::new() } else { format!("{parent}/") };
        tar = match op {
            Op::File(bytes) => tar.file(path, bytes),
            Op::Dir(mode) => tar.dir(path, *mode),
            Op::Symlink(target) => tar.symlink(path, target),
            Op::HardLink(target) => tar.hardlink(path, target),
            Op::Fifo => tar.device(path, b'6', 0, 0),
            Op::Whiteout => tar.file(&format!("{prefix}.wh.{name}"), b""),
            Op::Opaque => tar.file(&format!("{path}/.wh..wh..opq"), b""),
        };
    }
    tar.end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever an archive asks for, the result is an image that all readers agree on, or a refusal; never a panic.
    #[test]
    fn random_stacks_convert_or_are_refused(layers in prop::collection::vec(prop::collection::vec(op(), 0..12), 1..4)) {
        let mut stack = Stack::default();
        for ops in &layers {
            if stack.push(&archive(ops)).is_err() {
                continue;
            }
            let image = stack.bytes(stack.layers.len() - 1);
            prop_assert_eq!(ours(image.clone()), theirs(&image));
        }
        if !stack.layers.is_empty() {
            stack.show();
        }
    }

    #[test]
    fn a_damaged_archive_never_panics(flips in prop::collection::vec((0..4096_usize, any::<u8>()), 1..6)) {
        let mut tar = Tar::new().dir("d", 0o755).file("d/f", b"x").symlink("l", "d").pax("mtime", b"1.5").hardlink("h", "d/f").end();
        for (at, byte) in flips {
            let at = at % tar.len();
            tar[at] = byte;
        }
        let _ = Stack::default().push(&tar);
    }

    /// A torn or rotten image gives errors, not panics or endless walks.
    #[test]
    fn a_damaged_image_never_panics(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let stack = Stack::of(&[Tar::new().file("a/b/c", b"x").symlink("l", "a").pax("SCHILY.xattr.user.a", b"b").file("x", &[1; 5000]).end()]);
        let mut image = stack.bytes(0);
        for (at, byte) in flips {
            let at = at.index(image.len());
            image[at] = byte;
        }
        if let Ok(fs) = ErofsFile::open(std::sync::Arc::new(image)) {
            let merged = crate::merged::Merged::new(vec![fs]);
            let _ = merged.read_file("l/b/c", 1 << 20);
            let _ = merged.read_file("x", 1 << 20);
        }
    }
}
