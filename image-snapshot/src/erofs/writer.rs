//! Builds an image front to back: data first, inodes in segments, directories last.

use std::{fs::File, io};

use crate::convert::ConvertError;

use super::{
    dirent::Layout,
    format::{BLOCK, INODE_EXTENDED, NLINK_OFFSET, ROOT_NID, ROOT_OFFSET, RawInode, SB_OFFSET, SLOT, superblock},
    sink::{FileDigest, Sink},
    xattr,
};

/// A segment of inodes is written out when it grows to this.
const SEGMENT: usize = 32 << 20;
const SLOTS: usize = BLOCK / SLOT;

/// What `stat` tells, but for size and links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Type and permission bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) xattrs: xattr::Xattrs,
}

/// An inode that was laid out; its number is known once its segment has a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct InodeRef {
    segment: u32,
    slot: u32,
}

/// Where the content of a leaf is.
pub(crate) enum Body<'a> {
    /// Nothing, or a device number.
    None { rdev: u32 },
    /// All of it, here.
    Small(&'a [u8]),
    /// `size` bytes, whose whole blocks begin at `start` in the output, and whose rest is `tail`.
    Streamed { start: u64, size: u64, tail: &'a [u8] },
}

/// A directory to be written: entries sorted by name, `.` and `..` among them.
pub(crate) struct DirPlan<'a> {
    pub(crate) meta: &'a Meta,
    pub(crate) nlink: u32,
    /// Name, who it is, `d_type`.
    pub(crate) entries: Vec<(&'a [u8], Target, u8)>,
}

/// Whom a directory entry means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    Leaf(InodeRef),
    /// Index among the plans; the root is 0.
    Dir(u32),
}

/// Inodes that wait for a place in the file.
#[derive(Debug, Default)]
struct Segment {
    blocks: Vec<u8>,
    /// Block numbers by free slots at their end.
    room: Vec<Vec<u32>>,
    /// Of no use to later inodes: this is where the file's offset goes once known.
    base: Option<u64>,
}

impl Segment {
    fn new() -> Self {
        Self { room: vec![Vec::new(); SLOTS + 1], ..Self::default() }
    }

    /// Finds `len` bytes: within one block if they fit there, else from the start of fresh ones. Best fit, so that little is wasted.
    fn allocate(&mut self, len: usize) -> usize {
        let need = len.div_ceil(SLOT);
        let (at, left) = match (need..=SLOTS).find_map(|free| Some((free, self.room[free].pop()?))) {
            Some((free, block)) => ((block as usize + 1) * BLOCK - free * SLOT, free - need),
            None => {
                let at = self.blocks.len();
                self.blocks.resize(at + len.next_multiple_of(BLOCK), 0);
                (at, len.next_multiple_of(BLOCK) / SLOT - need)
            }
        };
        if left > 1 {
            let last_block = (at + len - 1) / BLOCK;
            self.room[left].push(last_block as u32);
        }
        at
    }
}

/// Writes one image. Order of calls: [`Writer::stream_with`] and [`Writer::leaf`] as often as wanted, then [`Writer::finish`].
#[derive(Debug)]
pub(crate) struct Writer {
    sink: Sink,
    segments: Vec<Segment>,
    inodes: u64,
    /// Bytes of file content, for the record.
    content: u64,
}

impl Writer {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        Ok(Self { sink: Sink::new(file)?, segments: vec![Segment::new()], inodes: 0, content: 0 })
    }

    /// Where the next streamed content will begin. The position is always at a block's start between calls.
    pub(crate) fn position(&self) -> u64 {
        self.sink.position()
    }

    /// Appends `len` bytes of content, a multiple of a block, which `read` fills in piece by piece.
    pub(crate) fn stream_with(
        &mut self,
        len: u64,
        read: impl FnMut(&mut [u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        self.sink.fill(len, read)
    }

    /// Lays out a leaf.
    pub(crate) fn leaf(&mut self, meta: &Meta, body: &Body<'_>) -> io::Result<InodeRef> {
        let (start, size, tail, rdev) = match *body {
            Body::None { rdev } => (None, 0, &[][..], rdev),
            Body::Small(bytes) => (None, bytes.len() as u64, bytes, 0),
            Body::Streamed { start, size, tail } => (Some(start), size, tail, 0),
        };
        self.content += size;
        let xattrs = xattr::encode(&meta.xattrs);
        let head = INODE_EXTENDED + xattrs.len();
        let inline = !tail.is_empty() && tail.len() < BLOCK && head + tail.len() <= BLOCK;
        let start = start.unwrap_or_else(|| self.sink.position());
        if !inline && !tail.is_empty() {
            self.sink.write(tail)?;
            self.sink.pad()?;
        }
        let raw = RawInode {
            inline,
            xattr_icount: xattr::icount(&xattrs),
            mode: meta.mode,
            size,
            unit: match body {
                Body::None { rdev: _ } => rdev,
                _ if size == 0 => 0,
                _ => block_number(start)?,
            },
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            mtime_nsec: meta.mtime_nsec,
            nlink: 1,
        };
        let id = self.segments.len() as u32 - 1;
        let segment = &mut self.segments[id as usize];
        let tail = if inline { tail } else { &[] };
        let at = segment.allocate(head + tail.len());
        let place = &mut segment.blocks[at..at + head + tail.len()];
        raw.encode(&mut place[..INODE_EXTENDED]);
        place[INODE_EXTENDED..head].copy_from_slice(&xattrs);
        place[head..].copy_from_slice(tail);
        self.inodes += 1;
        if segment.blocks.len() >= SEGMENT {
            self.flush_segment()?;
        }
        Ok(InodeRef { segment: id, slot: (at / SLOT) as u32 })
    }

    /// Gives the inodes so far their place and forgets their bytes; what follows begins a new segment.
    pub(crate) fn flush_segment(&mut self) -> io::Result<()> {
        let base = self.sink.position();
        if let Some(segment) = self.segments.last_mut() {
            self.sink.write(&segment.blocks)?;
            segment.base = Some(base);
            segment.blocks = Vec::new();
            segment.room = Vec::new();
        }
        self.segments.push(Segment::new());
        Ok(())
    }

    fn offset(&self, inode: InodeRef) -> u64 {
        let base = self.segments[inode.segment as usize].base.unwrap_or(0);
        base + u64::from(inode.slot) * SLOT as u64
    }

    /// Changes a leaf's link count (1 unless said).
    fn set_links(&mut self, inode: InodeRef, links: u32) -> io::Result<()> {
        let at = self.offset(inode) + NLINK_OFFSET as u64;
        self.sink.patch(at, &links.to_le_bytes())
    }

    /// Bytes of file content laid out so far.
    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    /// Writes the directories (the first is the root) and link counts above one, and closes the image. Its size and digest.
    pub(crate) fn finish(mut self, dirs: &[DirPlan<'_>], links: &[(InodeRef, u32)]) -> io::Result<(u64, FileDigest)> {
        self.flush_segment()?;
        for (inode, count) in links {
            self.set_links(*inode, *count)?;
        }
        let mut segment = Segment::new();
        let placed: Vec<PlacedDir> =
            dirs.iter().enumerate().map(|(i, dir)| PlacedDir::plan(dir, (i > 0).then_some(&mut segment))).collect();
        let data_base = self.sink.position();
        let data_blocks: u64 = placed.iter().map(PlacedDir::blocks).sum();
        let base = data_base + data_blocks * BLOCK as u64;
        let nid = |target: Target| match target {
            Target::Leaf(inode) => self.offset(inode) / SLOT as u64,
            Target::Dir(0) => ROOT_NID,
            Target::Dir(i) => (base + placed[i as usize].at as u64) / SLOT as u64,
        };
        let mut block0 = vec![0; BLOCK];
        let mut data = Vec::new();
        let mut start = data_base;
        for (i, (dir, place)) in dirs.iter().zip(&placed).enumerate() {
            let bytes =
                place.layout.encode(dir.entries.iter().map(|(name, target, kind)| (*name, nid(*target), *kind)));
            let out = if i == 0 { &mut block0[ROOT_OFFSET..] } else { &mut segment.blocks[place.at..] };
            place.write(dir, &bytes, block_number(start)?, out);
            data.extend_from_slice(&bytes[..place.whole]);
            if !place.inline {
                data.extend_from_slice(&bytes[place.whole..]);
                data.resize(data.len().next_multiple_of(BLOCK), 0);
            }
            start += place.blocks() * BLOCK as u64;
        }
        self.sink.write(&data)?;
        self.sink.write(&segment.blocks)?;
        let blocks = block_number(self.sink.position())?;
        let inodes = self.inodes + dirs.len() as u64;
        block0[SB_OFFSET..ROOT_OFFSET].copy_from_slice(&superblock(inodes, blocks));
        self.sink.patch(0, &block0)?;
        self.sink.finish()
    }
}

/// A directory with its bytes counted.
struct PlacedDir {
    layout: Layout,
    xattrs: Vec<u8>,
    inline: bool,
    /// Bytes in whole blocks.
    whole: usize,
    /// Offset of the inode in its segment.
    at: usize,
}

impl PlacedDir {
    /// Without a segment it is the root, behind the superblock.
    fn plan(dir: &DirPlan<'_>, segment: Option<&mut Segment>) -> Self {
        let layout = Layout::new(dir.entries.iter().map(|(name, _, _)| name.len()));
        let xattrs = xattr::encode(&dir.meta.xattrs);
        let size = layout.size() as usize;
        let tail = size % BLOCK;
        let head = INODE_EXTENDED + xattrs.len();
        let limit = if segment.is_some() { BLOCK } else { BLOCK - ROOT_OFFSET };
        let inline = tail > 0 && head + tail <= limit;
        let at = segment.map_or(0, |s| s.allocate(head + if inline { tail } else { 0 }));
        Self { layout, xattrs, inline, whole: size - tail, at }
    }

    fn blocks(&self) -> u64 {
        let size = self.layout.size();
        if self.inline { size / BLOCK as u64 } else { size.div_ceil(BLOCK as u64) }
    }

    fn write(&self, dir: &DirPlan<'_>, bytes: &[u8], start: u32, out: &mut [u8]) {
        let raw = RawInode {
            inline: self.inline,
            xattr_icount: xattr::icount(&self.xattrs),
            mode: dir.meta.mode,
            size: self.layout.size(),
            unit: start,
            uid: dir.meta.uid,
            gid: dir.meta.gid,
            mtime: dir.meta.mtime,
            mtime_nsec: dir.meta.mtime_nsec,
            nlink: dir.nlink,
        };
        raw.encode(&mut out[..INODE_EXTENDED]);
        let head = INODE_EXTENDED + self.xattrs.len();
        out[INODE_EXTENDED..head].copy_from_slice(&self.xattrs);
        if self.inline {
            let tail = &bytes[self.whole..];
            out[head..head + tail.len()].copy_from_slice(tail);
        }
    }
}

fn block_number(at: u64) -> io::Result<u32> {
    u32::try_from(at / BLOCK as u64).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
}

const _: () = assert!(ROOT_OFFSET.is_multiple_of(SLOT));
