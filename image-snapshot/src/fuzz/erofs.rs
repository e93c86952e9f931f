//! Targets of the file system's two halves.

use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc};

use super::{converted, open_below, seeds};
use crate::{
    erofs::{
        ErofsFile, Inode,
        format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, encode_dev},
    },
    merged::{Dir, Merged, Node},
};

/// More of a file than any seed has.
const MOST: u64 = 1 << 20;

/// All bytes of a layer.
pub(super) fn bytes(layer: &File) -> Vec<u8> {
    let mut out = vec![0; layer.metadata().map(|meta| meta.len()).unwrap_or_default() as usize];
    let read = layer.read_exact_at(&mut out, 0);
    assert!(read.is_ok(), "a layer that was just written cannot be read");
    out
}

/// The image of an archive, if it is accepted.
pub(super) fn image(archive: &[u8]) -> Option<Vec<u8>> {
    converted(archive, &[]).ok().map(|(_, layer)| bytes(&layer))
}

/// Any bytes as an image: errors, never a panic, and an end.
pub fn reader(data: &[u8]) {
    let Ok(image) = ErofsFile::open(Arc::new(data.to_vec())) else { return };
    let Ok(root) = image.inode(image.root()) else { return };
    // A damaged image may have a directory within itself.
    let (mut todo, mut left) = (vec![root], 300);
    while let Some(dir) = todo.pop() {
        let _ = image.xattrs(&dir);
        for entry in image.entries(&dir).unwrap_or_default() {
            left -= 1;
            if left == 0 {
                return;
            }
            let _ = image.lookup(&dir, &entry.name);
            let Ok(inode) = image.inode(entry.nid) else { continue };
            let _ = image.xattrs(&inode);
            if inode.is_dir() {
                todo.push(inode);
            } else if let Ok(Some(content)) = image.read_all(&inode, MOST) {
                assert_eq!(content.len() as u64, inode.size, "other bytes than the inode says");
            }
        }
    }
    let merged = Merged::new(vec![image]);
    for path in ["/", "/a", "/d/../d/l", "/lib/a.so", "/s"] {
        let _ = merged.read_file(path, MOST);
    }
}

/// Everything that a stack of our own layers shows can be read, and each name in it is one.
pub(super) fn walk_all(stack: &[Arc<File>]) {
    let Ok(merged) = open_below(stack) else { panic!("a layer that was just written does not open") };
    let Ok(Some(root)) = merged.root() else { panic!("a layer that was just written has no root") };
    let mut todo: Vec<Dir> = vec![root];
    while let Some(dir) = todo.pop() {
        let Ok(names) = merged.names(&dir) else { panic!("a directory cannot be read") };
        for name in names {
            assert!(!name.is_empty() && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0), "{name:?}");
            assert!(name != b"." && name != b"..", "{name:?}");
            match merged.lookup(&dir, &name) {
                Ok(Some(Node::Dir(dir))) => {
                    assert!(merged.meta(dir.layer(), dir.inode()).is_ok());
                    todo.push(dir);
                }
                Ok(Some(Node::Leaf(leaf))) => {
                    assert!(merged.meta(leaf.layer, &leaf.inode).is_ok());
                    let content = merged.layer(leaf.layer).read_all(&leaf.inode, MOST);
                    let wants = matches!(leaf.inode.mode & S_IFMT, S_IFREG | S_IFLNK) && leaf.inode.size <= MOST;
                    assert!(!wants || content.is_ok_and(|c| c.is_some_and(|c| c.len() as u64 == leaf.inode.size)));
                }
                other => panic!("{name:?} is listed and is {other:?}"),
            }
        }
    }
}

/// What one step of [`writer`] takes from the input.
struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    fn number(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A file that was asked for.
struct Made {
    path: Vec<u8>,
    mode: u16,
    owner: (u32, u32),
    mtime: u32,
    content: Vec<u8>,
    rdev: u32,
    xattr: Option<Vec<u8>>,
}

/// An archive of files that do not touch each other, made from any bytes: each comes out as it was.
pub fn writer(data: &[u8]) {
    let mut source = Source(data);
    let mut archive = seeds::Archive::default();
    let mut made = Vec::new();
    while !source.0.is_empty() && made.len() < 60 {
        let one = take(&mut source, made.len());
        if let Some(value) = &one.xattr {
            archive = archive.pax(&[("SCHILY.xattr.user.fuzz", value)]);
        }
        let kind = match one.mode & S_IFMT {
            S_IFLNK => b'2',
            S_IFCHR => b'3',
            S_IFBLK => b'4',
            S_IFDIR => b'5',
            S_IFIFO => b'6',
            _ => b'0',
        };
        let link = if kind == b'2' { &one.content[..] } else { b"" };
        archive = archive.entry(&seeds::Entry {
            path: &one.path,
            kind,
            mode: one.mode & 0o7777,
            uid: one.owner.0,
            gid: one.owner.1,
            mtime: one.mtime,
            link,
            content: if kind == b'0' { &one.content } else { b"" },
            device: device(one.rdev),
        });
        made.push(one);
    }
    let Ok((_, layer)) = converted(&archive.end(), &[]) else { panic!("a good archive was refused") };
    let stack = [layer];
    walk_all(&stack);
    let Ok(merged) = open_below(&stack) else { panic!("the layer does not open") };
    for one in &made {
        compare(&merged, one);
    }
}

fn device(rdev: u32) -> (u16, u16) {
    ((rdev >> 8) as u16 & 0xff, (rdev & 0xff) as u16)
}

fn take(source: &mut Source<'_>, index: usize) -> Made {
    let kinds = [S_IFREG, S_IFREG, S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO];
    let kind = kinds[usize::from(source.byte()) % kinds.len()];
    let mode = if kind == S_IFLNK { 0o777 } else { source.number() & 0o7777 };
    let (parent, name_len) = (source.byte() % 3, source.byte() % 60);
    // Some directories are there only because of what is in them.
    let mut path = format!("{}{index}-", ["", "in/", "far/away/"][usize::from(parent)]).into_bytes();
    path.extend(source.take(name_len.into()).iter().filter(|byte| !matches!(byte, 0 | b'/')));
    let owner = (u32::from(source.number()) * 7, u32::from(source.number()) * 5);
    let mtime = u32::from(source.number()) << 15;
    let xattr = source.byte().is_multiple_of(4).then(|| {
        let len = usize::from(source.byte());
        source.take(len).to_vec()
    });
    let content = match kind {
        S_IFREG => {
            // Around a block's size, and its multiples.
            let len = usize::from(source.number()) % 13_000;
            let pattern = source.byte();
            (0..len).map(|i| (i as u8) ^ pattern).collect()
        }
        S_IFLNK => {
            let target: Vec<u8> = source.take(20).iter().copied().filter(|byte| *byte != 0).collect();
            if target.is_empty() { b"x".to_vec() } else { target }
        }
        _ => Vec::new(),
    };
    // Character device 0:0 is a whiteout.
    let rdev = if matches!(kind, S_IFCHR | S_IFBLK) { u32::from(source.byte()) | 0x100 } else { 0 };
    Made { path, mode: kind | mode, owner, mtime, content, rdev, xattr }
}

fn compare(merged: &Merged, one: &Made) {
    let path = String::from_utf8_lossy(&one.path).into_owned();
    let Ok(Some(mut dir)) = merged.root() else { panic!("no root") };
    let mut components = one.path.split(|byte| *byte == b'/').peekable();
    let (layer, inode) = loop {
        let Some(name) = components.next() else { panic!("{path}: no last component") };
        match (merged.lookup(&dir, name), components.peek()) {
            (Ok(Some(Node::Dir(next))), Some(_)) => dir = next,
            (Ok(Some(Node::Dir(found))), None) => break (found.layer(), found.inode().clone()),
            (Ok(Some(Node::Leaf(leaf))), None) => break (leaf.layer, leaf.inode),
            (other, _) => panic!("{path}: {other:?}"),
        }
    };
    let Inode { mode, uid, gid, mtime, rdev, .. } = inode;
    assert_eq!((mode, (uid, gid), mtime), (one.mode, one.owner, i64::from(one.mtime)), "{path}");
    let (major, minor) = device(one.rdev);
    let wanted = if one.rdev == 0 { Some(0) } else { encode_dev(major.into(), minor.into()) };
    assert_eq!(Some(rdev), wanted, "{path}");
    let Ok(meta) = merged.meta(layer, &inode) else { panic!("{path}: no attributes") };
    assert_eq!(meta.xattrs.get(&b"user.fuzz"[..]), one.xattr.as_ref(), "{path}");
    if matches!(one.mode & S_IFMT, S_IFREG | S_IFLNK) {
        let content = merged.layer(layer).read_all(&inode, MOST).ok().flatten();
        assert!(content.as_deref() == Some(&one.content[..]), "{path}: other content");
    }
}
