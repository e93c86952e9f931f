//! Builds an image front to back: data first, inodes in segments, directories last.

use std::{fs::File, io};

use crate::convert::ConvertError;

use super::{
    dirent::{self, Packer},
    format::{BLOCK, INODE_EXTENDED, NLINK_OFFSET, ROOT_NID, ROOT_OFFSET, RawInode, SB_OFFSET, SLOT, superblock},
    sink::{FileDigest, Sink},
    xattr,
};

/// A segment of inodes is written out when it grows to this.
const SEGMENT: usize = 4 << 20;
/// Bits of an [`InodeRef`] that say where in its segment it is: the largest inode begins below [`SEGMENT`] and ends well below twice that.
const SLOT_BITS: u32 = 18;
/// More than the largest inode, attributes and tail included.
const LARGEST: usize = 128 << 10;
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
pub(crate) struct InodeRef(u32);

impl InodeRef {
    fn new(segment: usize, slot: usize) -> io::Result<Self> {
        let too_many = || io::Error::from(io::ErrorKind::FileTooLarge);
        let segment = u32::try_from(segment).ok().filter(|s| *s < 1 << (32 - SLOT_BITS)).ok_or_else(too_many)?;
        let slot = u32::try_from(slot).ok().filter(|s| *s < 1 << SLOT_BITS).ok_or_else(too_many)?;
        Ok(Self(segment << SLOT_BITS | slot))
    }

    /// To be kept somewhere.
    pub(crate) fn to_bits(self) -> u32 {
        self.0
    }

    /// The reverse of [`InodeRef::to_bits`].
    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Offset in the file, given where the segments begin.
    fn offset(self, bases: &[u64]) -> u64 {
        let base = bases.get((self.0 >> SLOT_BITS) as usize).copied().unwrap_or(0);
        base + u64::from(self.0 & ((1 << SLOT_BITS) - 1)) * SLOT as u64
    }
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

/// A directory to be written.
pub(crate) struct DirPlan<'a> {
    pub(crate) meta: Meta,
    pub(crate) nlink: u32,
    /// Sorted by name, `.` and `..` among them: name, who it is, `d_type`.
    pub(crate) entries: Box<dyn Iterator<Item = (&'a [u8], Target, u8)> + 'a>,
}

/// Whom a directory entry means.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    Leaf(InodeRef),
    /// Index among the plans; the root is 0.
    Dir(u32),
}

/// Where inodes go in a segment.
#[derive(Debug)]
struct Room {
    len: usize,
    /// Block numbers by free slots at their end.
    free: Vec<Vec<u32>>,
}

impl Room {
    fn new() -> Self {
        Self { len: 0, free: vec![Vec::new(); SLOTS + 1] }
    }

    /// Finds `len` bytes: within one block if they fit there, else from the start of fresh ones. Best fit, so that little is wasted.
    fn allocate(&mut self, len: usize) -> usize {
        let need = len.div_ceil(SLOT);
        let (at, left) = match (need..=SLOTS).find_map(|free| Some((free, self.free[free].pop()?))) {
            Some((free, block)) => ((block as usize + 1) * BLOCK - free * SLOT, free - need),
            None => {
                let at = self.len;
                self.len += len.next_multiple_of(BLOCK);
                (at, len.next_multiple_of(BLOCK) / SLOT - need)
            }
        };
        if left > 1 {
            let last_block = (at + len - 1) / BLOCK;
            self.free[left].push(last_block as u32);
        }
        at
    }
}

/// Writes one image. Order of calls: [`Writer::stream_with`] and [`Writer::leaf`] as often as wanted, then [`Writer::finish`].
#[derive(Debug)]
pub(crate) struct Writer {
    sink: Sink,
    /// Where the segments that are written begin.
    bases: Vec<u64>,
    /// Inodes that wait for a place in the file, and where there is room among them.
    waiting: Vec<u8>,
    room: Room,
    inodes: u64,
    /// Bytes of file content, for the record.
    content: u64,
}

impl Writer {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let sink = Sink::new(file)?;
        Ok(Self {
            sink,
            bases: Vec::new(),
            waiting: Vec::with_capacity(SEGMENT + 2 * LARGEST),
            room: Room::new(),
            inodes: 0,
            content: 0,
        })
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
        let tail = if inline { tail } else { &[] };
        let at = self.room.allocate(head + tail.len());
        let inode = InodeRef::new(self.bases.len(), at / SLOT)?;
        self.waiting.resize(self.room.len, 0);
        let place = &mut self.waiting[at..at + head + tail.len()];
        raw.encode(&mut place[..INODE_EXTENDED]);
        place[INODE_EXTENDED..head].copy_from_slice(&xattrs);
        place[head..].copy_from_slice(tail);
        self.inodes += 1;
        if self.waiting.len() >= SEGMENT {
            self.flush_segment()?;
        }
        Ok(inode)
    }

    /// Gives the inodes so far their place and forgets their bytes; what follows begins a new segment.
    pub(crate) fn flush_segment(&mut self) -> io::Result<()> {
        self.bases.push(self.sink.position());
        self.sink.write(&self.waiting)?;
        self.waiting.clear();
        self.room = Room::new();
        Ok(())
    }

    /// Changes a leaf's link count (1 unless said).
    fn set_links(&mut self, inode: InodeRef, links: u32) -> io::Result<()> {
        let at = inode.offset(&self.bases) + NLINK_OFFSET as u64;
        self.sink.patch(at, &links.to_le_bytes())
    }

    /// Bytes of file content laid out so far.
    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    /// Writes link counts above one and `count` directories (the first is the root; `dir` is asked for each twice, in order), and closes
    /// the image. Its size and digest.
    pub(crate) fn finish<'a>(
        mut self,
        count: u32,
        dir: impl Fn(u32) -> DirPlan<'a>,
        links: impl Iterator<Item = (InodeRef, u32)>,
    ) -> io::Result<(u64, FileDigest)> {
        self.flush_segment()?;
        for (inode, count) in links {
            self.set_links(inode, count)?;
        }
        let plan = Directories::plan(count, &dir, self.sink.position());
        let mut block0 = vec![0; BLOCK];
        for group in &plan.groups {
            self.waiting.clear();
            self.waiting.resize(group.inodes, 0);
            for i in group.dirs.clone() {
                self.directory(dir(i), i, &plan, group, &mut block0)?;
            }
            self.sink.write(&self.waiting)?;
        }
        let blocks = block_number(self.sink.position())?;
        let inodes = self.inodes + u64::from(count);
        block0[SB_OFFSET..ROOT_OFFSET].copy_from_slice(&superblock(inodes, blocks));
        self.sink.patch(0, &block0)?;
        self.sink.finish()
    }

    /// Whole blocks of its entries go to the file, the rest and the inode to where inodes wait, or into the first block.
    fn directory(
        &mut self,
        dir: DirPlan<'_>,
        index: u32,
        plan: &Directories,
        group: &Group,
        block0: &mut [u8],
    ) -> io::Result<()> {
        let placed = &plan.placed[index as usize];
        let start = self.sink.position();
        let mut packer = Packer::default();
        for (name, target, kind) in dir.entries {
            let nid = match target {
                Target::Leaf(inode) => inode.offset(&self.bases) / SLOT as u64,
                Target::Dir(0) => ROOT_NID,
                Target::Dir(i) => plan.placed[i as usize].at / SLOT as u64,
            };
            if let Some(block) = packer.push(name, nid, kind) {
                self.sink.write(&block)?;
            }
        }
        let rest = packer.take();
        let xattrs = xattr::encode(&dir.meta.xattrs);
        let raw = RawInode {
            inline: placed.inline,
            xattr_icount: xattr::icount(&xattrs),
            mode: dir.meta.mode,
            size: placed.size,
            unit: block_number(start)?,
            uid: dir.meta.uid,
            gid: dir.meta.gid,
            mtime: dir.meta.mtime,
            mtime_nsec: dir.meta.mtime_nsec,
            nlink: dir.nlink,
        };
        let out = match index {
            0 => &mut block0[ROOT_OFFSET..],
            _ => &mut self.waiting[(placed.at - group.base) as usize..],
        };
        raw.encode(&mut out[..INODE_EXTENDED]);
        let head = INODE_EXTENDED + xattrs.len();
        out[INODE_EXTENDED..head].copy_from_slice(&xattrs);
        if placed.inline {
            out[head..head + rest.len()].copy_from_slice(&rest);
            return Ok(());
        }
        self.sink.write(&rest)?;
        self.sink.pad()
    }
}

/// Where the directories will be.
struct Directories {
    placed: Vec<PlacedDir>,
    groups: Vec<Group>,
}

/// Directories that are written together: their blocks of entries, then their inodes.
struct Group {
    dirs: std::ops::Range<u32>,
    /// Where the inodes begin, and how many bytes they are.
    base: u64,
    inodes: usize,
}

/// A directory with its bytes counted.
struct PlacedDir {
    size: u64,
    /// What lies behind the size's whole blocks is behind the inode.
    inline: bool,
    /// Offset of the inode.
    at: u64,
}

impl Directories {
    fn plan<'a>(count: u32, dir: impl Fn(u32) -> DirPlan<'a>, mut position: u64) -> Self {
        let mut out = Self { placed: Vec::with_capacity(count as usize), groups: Vec::new() };
        let (mut room, mut data, mut first) = (Room::new(), 0, 0);
        for i in 0..count {
            let dir = dir(i);
            let size = dirent::size(dir.entries.map(|(name, _, _)| name.len()));
            let tail = (size % BLOCK as u64) as usize;
            let head = INODE_EXTENDED + xattr::encode(&dir.meta.xattrs).len();
            // The root is behind the superblock.
            let inline = tail > 0 && head + tail <= if i == 0 { BLOCK - ROOT_OFFSET } else { BLOCK };
            let at = if i == 0 { 0 } else { room.allocate(head + if inline { tail } else { 0 }) as u64 };
            out.placed.push(PlacedDir { size, inline, at });
            data += if inline { size - tail as u64 } else { size.next_multiple_of(BLOCK as u64) };
            if room.len >= SEGMENT || i + 1 == count {
                let base = position + data;
                let dirs = first..i + 1;
                for placed in &mut out.placed[first.max(1) as usize..] {
                    placed.at += base;
                }
                out.groups.push(Group { dirs, base, inodes: room.len });
                position = base + room.len as u64;
                (room, data, first) = (Room::new(), 0, i + 1);
            }
        }
        out
    }
}

fn block_number(at: u64) -> io::Result<u32> {
    u32::try_from(at / BLOCK as u64).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
}

const _: () = assert!(ROOT_OFFSET.is_multiple_of(SLOT));
