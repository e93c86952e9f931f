//! What a layer's archive asks for, in its order: leaves are already laid out, places are not resolved yet.
//!
//! Kept as bytes, since a layer may have a million entries: each path as what it adds to the one before, as archives go directory by
//! directory. Read once, and given back while it is read.

use std::collections::BTreeMap;

use crate::erofs::{InodeRef, Meta, xattr::Xattrs};

/// Bytes of a piece; a request is never cut in two.
const PIECE: usize = 256 << 10;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What<'a> {
    /// A file, device or fifo, with its `d_type`.
    Leaf(InodeRef, u8),
    /// A symbolic link and its target.
    Symlink(InodeRef, &'a [u8]),
    /// A directory.
    Dir(Described),
    /// A hard link to that name.
    Link(&'a [u8]),
    /// The name is gone from the layers below.
    Whiteout,
    /// All that the layers below have in the directory is gone.
    Opaque,
}

/// A directory's metadata, small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_nsec: u32,
    pub(super) xattrs: SetId,
}

/// Extended attributes that were seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SetId(u32);

/// Sets of extended attributes: few differ.
#[derive(Debug, Default)]
pub(super) struct Sets {
    known: BTreeMap<Xattrs, u32>,
    all: Vec<Xattrs>,
}

impl Sets {
    /// The set's number, and how many bytes more are kept for it.
    pub(super) fn keep(&mut self, xattrs: &Xattrs) -> (SetId, usize) {
        if let Some(id) = self.known.get(xattrs) {
            return (SetId(*id), 0);
        }
        let id = self.all.len() as u32;
        self.all.push(xattrs.clone());
        self.known.insert(xattrs.clone(), id);
        (SetId(id), 2 * xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>())
    }

    pub(super) fn get(&self, id: SetId) -> &Xattrs {
        &self.all[id.0 as usize]
    }
}

/// The requests.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pieces: Vec<Vec<u8>>,
    len: u64,
    sets: Sets,
    /// The path of the last request.
    last: Vec<u8>,
    /// Bytes of all paths, targets and attributes, as if nothing was shared.
    names: usize,
    scratch: Vec<u8>,
}

impl Journal {
    pub(super) fn name_bytes(&self) -> usize {
        self.names
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn describe(&mut self, meta: &Meta) -> Described {
        let (xattrs, bytes) = self.sets.keep(&meta.xattrs);
        self.names += bytes;
        let Meta { mode, uid, gid, mtime, mtime_nsec, .. } = *meta;
        Described { mode, uid, gid, mtime, mtime_nsec, xattrs }
    }

    /// Takes a request for that path.
    pub(super) fn push(&mut self, components: &[&[u8]], what: What<'_>) {
        let path = components.join(&b'/');
        let shared = self.last.iter().zip(&path).take_while(|(a, b)| a == b).count();
        let mut out = std::mem::take(&mut self.scratch);
        put(&mut out, shared as u64);
        put_bytes(&mut out, &path[shared..]);
        match what {
            What::Leaf(inode, kind) => {
                out.push(0);
                put(&mut out, inode.to_bits().into());
                out.push(kind);
            }
            What::Symlink(inode, target) => {
                out.push(1);
                put(&mut out, inode.to_bits().into());
                put_bytes(&mut out, target);
                self.names += target.len();
            }
            What::Dir(Described { mode, uid, gid, mtime, mtime_nsec, xattrs }) => {
                out.push(2);
                for number in [mode.into(), uid, gid, mtime_nsec, xattrs.0] {
                    put(&mut out, number.into());
                }
                out.extend_from_slice(&mtime.to_le_bytes());
            }
            What::Link(target) => {
                out.push(3);
                put_bytes(&mut out, target);
                self.names += target.len();
            }
            What::Whiteout => out.push(4),
            What::Opaque => out.push(5),
        }
        self.names += path.len();
        self.last = path;
        self.len += 1;
        if self.pieces.last().is_none_or(|piece| piece.len() + out.len() > PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        if let Some(piece) = self.pieces.last_mut() {
            piece.extend_from_slice(&out);
        }
        out.clear();
        self.scratch = out;
    }

    /// To be read, with the sets that [`Described::xattrs`] means.
    pub(super) fn replay(self) -> (Replay, Sets) {
        let replay =
            Replay { pieces: self.pieces.into_iter(), piece: Vec::new(), at: 0, path: Vec::new(), left: self.len };
        (replay, self.sets)
    }
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The requests, one after the other.
#[derive(Debug)]
pub(super) struct Replay {
    pieces: std::vec::IntoIter<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    path: Vec<u8>,
    left: u64,
}

impl Replay {
    /// The next one and its path.
    pub(super) fn next(&mut self) -> Option<(&[u8], What<'_>)> {
        self.left = self.left.checked_sub(1)?;
        if self.at == self.piece.len() {
            // What was read is given back here.
            self.piece = self.pieces.next()?;
            self.at = 0;
        }
        let mut rest = Rest { bytes: &self.piece[self.at..] };
        self.path.truncate(rest.number() as usize);
        self.path.extend_from_slice(rest.string());
        let what = match rest.byte() {
            0 => What::Leaf(InodeRef::from_bits(rest.number() as u32), rest.byte()),
            1 => What::Symlink(InodeRef::from_bits(rest.number() as u32), rest.string()),
            2 => What::Dir(Described {
                mode: rest.number() as u16,
                uid: rest.number() as u32,
                gid: rest.number() as u32,
                mtime_nsec: rest.number() as u32,
                xattrs: SetId(rest.number() as u32),
                mtime: i64::from_le_bytes(std::array::from_fn(|_| rest.byte())),
            }),
            3 => What::Link(rest.string()),
            4 => What::Whiteout,
            _ => What::Opaque,
        };
        self.at = self.piece.len() - rest.bytes.len();
        Some((&self.path, what))
    }
}

/// Bytes that [`Journal::push`] wrote.
struct Rest<'a> {
    bytes: &'a [u8],
}

impl<'a> Rest<'a> {
    fn byte(&mut self) -> u8 {
        let byte = self.bytes[0];
        self.bytes = &self.bytes[1..];
        byte
    }

    fn number(&mut self) -> u64 {
        let (mut out, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            out |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return out;
            }
        }
    }

    fn string(&mut self) -> &'a [u8] {
        let len = self.number() as usize;
        let (bytes, rest) = self.bytes.split_at(len);
        self.bytes = rest;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_back_as_they_were_pushed() {
        let mut journal = Journal::default();
        let attributes = Xattrs::from([(b"user.a".to_vec(), vec![1; 300])]);
        let meta = |mode, xattrs| Meta { mode, uid: u32::MAX - 1, gid: 7, mtime: -5, mtime_nsec: 999_999_999, xattrs };
        let plain = journal.describe(&meta(0o40755, Xattrs::new()));
        let rich = journal.describe(&meta(0o41777, attributes.clone()));
        assert_eq!(journal.describe(&meta(0o41777, attributes.clone())), rich, "kept once");
        let long = vec![b'l'; 4095];
        let inode = InodeRef::from_bits;
        let wanted: Vec<(String, What<'_>)> = (0..20_000_u32)
            .map(|i| {
                let what = match i % 6 {
                    0 => What::Leaf(inode(i * 1000), 1),
                    1 => What::Symlink(inode(u32::MAX - i), &long),
                    2 => What::Dir(if i % 4 == 0 { plain } else { rich }),
                    3 => What::Link(b"some/where"),
                    4 => What::Whiteout,
                    _ => What::Opaque,
                };
                (format!("dir{}/{}/{i}", i / 100, "n".repeat(i as usize % 240)), what)
            })
            .collect();
        journal.push(&[], What::Opaque);
        for (path, what) in &wanted {
            let components: Vec<&[u8]> = path.as_bytes().split(|b| *b == b'/').collect();
            let components: Vec<&[u8]> = components.into_iter().filter(|c| !c.is_empty()).collect();
            journal.push(&components, *what);
        }
        assert_eq!(journal.len(), 20_001);
        let (mut replay, sets) = journal.replay();
        assert_eq!(sets.get(rich.xattrs), &attributes);
        assert_eq!(replay.next(), Some((&b""[..], What::Opaque)));
        for (path, what) in &wanted {
            assert_eq!(replay.next(), Some((path.replace("//", "/").as_bytes(), *what)));
        }
        assert_eq!(replay.next(), None);
    }
}
