//! Archives and stacks for tests.

use std::{collections::BTreeMap, fs::File, io::Write as _, os::unix::fs::FileExt as _, sync::Arc};

use crate::{
    convert::{ConvertError, Limits, convert, open_below},
    erofs::format::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG},
    merged::{Leaf, Merged, Node},
};

/// Builds an archive entry by entry, whatever nonsense is asked for.
#[derive(Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
    pax: Vec<u8>,
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A PAX record for the next entry.
    pub(crate) fn pax(mut self, key: &str, value: &[u8]) -> Self {
        let body = key.len() + value.len() + 3;
        let mut len = body + 1;
        while len != body + len.to_string().len() {
            len = body + len.to_string().len();
        }
        self.pax.extend_from_slice(format!("{len} {key}=").as_bytes());
        self.pax.extend_from_slice(value);
        self.pax.push(b'\n');
        self
    }

    pub(crate) fn raw(mut self, header: &tar::Header, content: &[u8]) -> Self {
        if !self.pax.is_empty() {
            let body = std::mem::take(&mut self.pax);
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..3].copy_from_slice(b"pax");
            header.set_entry_type(tar::EntryType::XHeader);
            header.set_size(body.len() as u64);
            header.set_cksum();
            self = self.raw(&header, &body);
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn header(path: &[u8], kind: u8, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(size);
        header
    }

    fn entry(mut self, path: &str, kind: u8, content: &[u8], change: impl FnOnce(&mut tar::Header)) -> Self {
        let short = path.as_bytes();
        if short.len() > 100 {
            self = self.pax("path", short);
        }
        let mut header = Self::header(&short[..short.len().min(100)], kind, content.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.raw(&header, content)
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, b'0', content, |_| {})
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, b'5', b"", |h| h.set_mode(mode))
    }

    pub(crate) fn owned_dir(self, path: &str, uid: u64, gid: u64) -> Self {
        self.entry(path, b'5', b"", |h| {
            h.set_mode(0o750);
            h.set_uid(uid);
            h.set_gid(gid);
        })
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, b'2', b"", |h| h.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes()))
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(path, b'1', b"", |h| h.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes()))
    }

    pub(crate) fn device(self, path: &str, kind: u8, major: u32, minor: u32) -> Self {
        self.entry(path, kind, b"", |h| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
        })
    }

    pub(crate) fn with(self, path: &str, kind: u8, content: &[u8], change: impl FnOnce(&mut tar::Header)) -> Self {
        self.entry(path, kind, content, change)
    }

    /// The archive with its end marker.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    /// The archive as it is.
    pub(crate) fn cut(self) -> Vec<u8> {
        self.bytes
    }
}

/// Layers, lowest first, as files without names.
#[derive(Default, Clone)]
pub(crate) struct Stack {
    pub(crate) layers: Vec<Arc<File>>,
}

impl Stack {
    pub(crate) fn push(&mut self, tar: &[u8]) -> Result<(), ConvertError> {
        let out = tempfile::tempfile().unwrap();
        convert(tar, &self.layers, out.try_clone().unwrap(), &Limits::default())?;
        self.layers.push(Arc::new(out));
        Ok(())
    }

    pub(crate) fn of(tars: &[Vec<u8>]) -> Self {
        let mut stack = Self::default();
        for tar in tars {
            stack.push(tar).unwrap();
        }
        stack
    }

    pub(crate) fn merged(&self) -> Merged {
        open_below(&self.layers).unwrap()
    }

    /// The topmost layer alone, whiteouts and all.
    pub(crate) fn top_alone(&self) -> Merged {
        open_below(&self.layers[self.layers.len() - 1..]).unwrap()
    }

    pub(crate) fn bytes(&self, layer: usize) -> Vec<u8> {
        let file = &self.layers[layer];
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The layer as a named file, for other programs.
    pub(crate) fn save(&self, layer: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&self.bytes(layer)).unwrap();
        file
    }

    /// Every path, with what it is in one line.
    pub(crate) fn show(&self) -> BTreeMap<String, String> {
        show(&self.merged())
    }
}

pub(crate) fn show(merged: &Merged) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut todo = vec![(String::new(), merged.root().unwrap().unwrap())];
    while let Some((path, dir)) = todo.pop() {
        let i = dir.inode();
        out.insert(format!("{path}/"), format!("{:o} {}:{}", i.mode & 0o7777, i.uid, i.gid));
        for name in merged.names(&dir).unwrap() {
            let path = format!("{path}/{}", String::from_utf8_lossy(&name));
            match merged.lookup(&dir, &name).unwrap().unwrap() {
                Node::Dir(dir) => todo.push((path, dir)),
                Node::Leaf(leaf) => {
                    out.insert(path, line(merged, &leaf));
                }
            }
        }
    }
    out
}

fn line(merged: &Merged, leaf: &Leaf) -> String {
    let i = &leaf.inode;
    let content = || {
        let bytes = merged.layer(leaf.layer).read_all(i, 1 << 30).unwrap().unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    match i.mode & S_IFMT {
        S_IFREG => format!("file {:o} {}", i.mode & 0o7777, content()),
        S_IFLNK => format!("-> {}", content()),
        S_IFCHR => format!("char {:#x}", i.rdev),
        S_IFBLK => format!("block {:#x}", i.rdev),
        S_IFIFO => "fifo".to_owned(),
        S_IFDIR => "directory?".to_owned(),
        other => format!("? {other:o}"),
    }
}
