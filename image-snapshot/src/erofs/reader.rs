//! Reads the images that our writer makes (and anything else of plain and inline layout). Every offset is checked: a damaged file
//! gives an error, never a panic or an endless loop.

use std::{cmp::Ordering, fs::File, io, os::unix::fs::FileExt, sync::Arc};

use super::{
    format::{
        BLOCK, BLOCK_BITS, DIRENT, INODE_COMPACT, INODE_EXTENDED, LAYOUT_INLINE, LAYOUT_PLAIN, MAGIC, NAME_MAX,
        S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, SB_OFFSET, SB_SIZE, SLOT, get16, get32, get64,
    },
    xattr::{self, Xattrs},
};

/// Why an EROFS image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("could not read {len} bytes at {offset}")]
    Io {
        /// Byte offset.
        offset: u64,
        /// Bytes wanted.
        len: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bytes are not what our writer writes.
    #[error("damaged at inode {nid}: {problem}")]
    Damaged {
        /// Which inode; 0 for the superblock.
        nid: u64,
        /// What is wrong.
        problem: &'static str,
    },
}

/// A byte store with random access.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from `offset` on.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = usize::try_from(offset).ok().and_then(|start| Some((start, start.checked_add(buf.len())?)));
        let bytes = end.and_then(|(start, end)| self.get(start..end));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// An open image.
#[derive(Clone)]
pub struct ErofsFile {
    file: Arc<dyn ReadAt>,
    meta_base: u64,
    root: u64,
}

impl std::fmt::Debug for ErofsFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ErofsFile").field("root", &self.root).finish_non_exhaustive()
    }
}

/// An inode's fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub nid: u64,
    /// Type and permission bits.
    pub mode: u16,
    /// Bytes.
    pub size: u64,
    /// Device number in Linux' encoding, for devices.
    pub rdev: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// Nanoseconds.
    pub mtime_nsec: u32,
    /// Links.
    pub nlink: u32,
    layout: u16,
    unit: u32,
    /// Where the xattr body begins.
    xattr_at: u64,
    xattr_len: usize,
}

impl Inode {
    /// A directory?
    pub fn is_dir(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }

    /// A regular file?
    pub fn is_file(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }

    /// A symbolic link?
    pub fn is_symlink(&self) -> bool {
        self.mode & S_IFMT == S_IFLNK
    }

    /// An overlay whiteout: character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.mode & S_IFMT == S_IFCHR && self.rdev == 0
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Name.
    pub name: Vec<u8>,
    /// Inode number.
    pub nid: u64,
    /// `d_type` as EROFS writes it.
    pub kind: u8,
}

impl ErofsFile {
    /// Reads the superblock.
    pub fn open(file: Arc<dyn ReadAt>) -> Result<Self, ReadError> {
        let mut sb = [0; SB_SIZE];
        read(&*file, &mut sb, SB_OFFSET as u64)?;
        let damaged = |problem| Err(ReadError::Damaged { nid: 0, problem });
        if get32(&sb, 0) != MAGIC {
            return damaged("no EROFS magic");
        }
        if sb[12] != BLOCK_BITS {
            return damaged("block size is not 4096");
        }
        if get32(&sb, 80) != 0 {
            return damaged("has features that we never write");
        }
        Ok(Self { file, meta_base: u64::from(get32(&sb, 40)) << BLOCK_BITS, root: u64::from(get16(&sb, 14)) })
    }

    /// Number of the root directory's inode.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Reads an inode.
    pub fn inode(&self, nid: u64) -> Result<Inode, ReadError> {
        let damaged = |problem| ReadError::Damaged { nid, problem };
        let at = nid
            .checked_mul(SLOT as u64)
            .and_then(|n| n.checked_add(self.meta_base))
            .ok_or(damaged("number out of range"))?;
        let mut raw = [0; INODE_EXTENDED];
        read(&*self.file, &mut raw[..INODE_COMPACT], at)?;
        let format = get16(&raw, 0);
        let extended = format & 1 == 1;
        let layout = (format >> 1) & 7;
        if layout != LAYOUT_PLAIN && layout != LAYOUT_INLINE {
            return Err(damaged("data layout that we never write"));
        }
        let mode = get16(&raw, 4);
        let is_device = !matches!(mode & S_IFMT, S_IFREG | S_IFDIR | S_IFLNK);
        let xattr_len = xattr::body_len(get16(&raw, 2));
        let unit = get32(&raw, 16);
        let rdev = if is_device { unit } else { 0 };
        let head = if extended { INODE_EXTENDED } else { INODE_COMPACT };
        let xattr_at = at + head as u64;
        if extended {
            read(&*self.file, &mut raw[INODE_COMPACT..], at + INODE_COMPACT as u64)?;
            return Ok(Inode {
                nid,
                mode,
                size: get64(&raw, 8),
                rdev,
                uid: get32(&raw, 24),
                gid: get32(&raw, 28),
                mtime: get64(&raw, 32) as i64,
                mtime_nsec: get32(&raw, 40),
                nlink: get32(&raw, 44),
                layout,
                unit,
                xattr_at,
                xattr_len,
            });
        }
        Ok(Inode {
            nid,
            mode,
            size: u64::from(get32(&raw, 8)),
            rdev,
            uid: u32::from(get16(&raw, 24)),
            gid: u32::from(get16(&raw, 26)),
            mtime: 0,
            mtime_nsec: 0,
            nlink: u32::from(get16(&raw, 6)),
            layout,
            unit,
            xattr_at,
            xattr_len,
        })
    }

    /// All extended attributes.
    pub(crate) fn xattrs(&self, inode: &Inode) -> Result<Xattrs, ReadError> {
        let mut body = vec![0; inode.xattr_len];
        read(&*self.file, &mut body, inode.xattr_at)?;
        xattr::decode(&body).ok_or(ReadError::Damaged { nid: inode.nid, problem: "extended attributes do not parse" })
    }

    /// Reads content from `offset` on; short only at the end of the file.
    pub fn read_at(&self, inode: &Inode, buf: &mut [u8], offset: u64) -> Result<usize, ReadError> {
        let damaged = |problem| ReadError::Damaged { nid: inode.nid, problem };
        let want = inode.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let tail_at = if inode.layout == LAYOUT_INLINE { inode.size - inode.size % BLOCK as u64 } else { u64::MAX };
        let data = u64::from(inode.unit) << BLOCK_BITS;
        let mut done = 0;
        while done < want {
            let at = offset + done as u64;
            let (from, len) = if at < tail_at {
                let len = (tail_at - at).min((want - done) as u64) as usize;
                (data.checked_add(at).ok_or(damaged("data out of range"))?, len)
            } else {
                (inode.xattr_at + inode.xattr_len as u64 + (at - tail_at), want - done)
            };
            read(&*self.file, &mut buf[done..done + len], from)?;
            done += len;
        }
        Ok(want)
    }

    /// All content, if it has at most `limit` bytes; `None` if it has more.
    pub fn read_all(&self, inode: &Inode, limit: u64) -> Result<Option<Vec<u8>>, ReadError> {
        if inode.size > limit {
            return Ok(None);
        }
        let mut out = vec![0; inode.size as usize];
        self.read_at(inode, &mut out, 0)?;
        Ok(Some(out))
    }

    fn dir_block(&self, dir: &Inode, index: u64) -> Result<Vec<u8>, ReadError> {
        let start = index * BLOCK as u64;
        let len = dir.size.saturating_sub(start).min(BLOCK as u64) as usize;
        let mut block = vec![0; len];
        self.read_at(dir, &mut block, start)?;
        Ok(block)
    }

    /// Finds a name in a directory: binary search over blocks, then within one.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<DirEntry>, ReadError> {
        let damaged = |problem| ReadError::Damaged { nid: dir.nid, problem };
        if !dir.is_dir() {
            return Err(damaged("not a directory"));
        }
        let (mut low, mut high) = (0, dir.size.div_ceil(BLOCK as u64));
        while low < high {
            let middle = low + (high - low) / 2;
            let bytes = self.dir_block(dir, middle)?;
            let block = Block::parse(&bytes).ok_or(damaged("directory block does not parse"))?;
            if name < block.name(0).ok_or(damaged("directory block is empty"))? {
                high = middle;
                continue;
            }
            let (mut first, mut after) = (0, block.count);
            while first < after {
                let i = first + (after - first) / 2;
                match block.name(i).ok_or(damaged("directory entry out of range"))?.cmp(name) {
                    Ordering::Equal => return Ok(block.entry(i)),
                    Ordering::Less => first = i + 1,
                    Ordering::Greater => after = i,
                }
            }
            if first < block.count {
                return Ok(None);
            }
            low = middle + 1;
        }
        Ok(None)
    }

    /// All entries but `.` and `..`, sorted by name.
    pub fn entries(&self, dir: &Inode) -> Result<Vec<DirEntry>, ReadError> {
        let damaged = |problem| ReadError::Damaged { nid: dir.nid, problem };
        if !dir.is_dir() {
            return Err(damaged("not a directory"));
        }
        let mut out = Vec::new();
        for index in 0..dir.size.div_ceil(BLOCK as u64) {
            let bytes = self.dir_block(dir, index)?;
            let block = Block::parse(&bytes).ok_or(damaged("directory block does not parse"))?;
            for i in 0..block.count {
                let entry = block.entry(i).ok_or(damaged("directory entry out of range"))?;
                if entry.name != b"." && entry.name != b".." {
                    out.push(entry);
                }
            }
        }
        Ok(out)
    }
}

/// One directory block.
struct Block<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Block<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < DIRENT {
            return None;
        }
        let names_at = usize::from(get16(bytes, 8));
        let sane = names_at >= DIRENT && names_at % DIRENT == 0 && names_at <= bytes.len();
        sane.then_some(Self { bytes, count: names_at / DIRENT })
    }

    fn name_at(&self, i: usize) -> usize {
        usize::from(get16(self.bytes, i * DIRENT + 8))
    }

    fn name(&self, i: usize) -> Option<&'a [u8]> {
        let start = self.name_at(i);
        let end = if i + 1 < self.count { self.name_at(i + 1) } else { self.bytes.len() };
        let name = self.bytes.get(start..end)?;
        let name = name.split(|b| *b == 0).next()?;
        (!name.is_empty() && name.len() <= NAME_MAX && !name.contains(&b'/')).then_some(name)
    }

    fn entry(&self, i: usize) -> Option<DirEntry> {
        Some(DirEntry {
            name: self.name(i)?.to_vec(),
            nid: get64(self.bytes, i * DIRENT),
            kind: self.bytes[i * DIRENT + 10],
        })
    }
}

fn read(file: &dyn ReadAt, buf: &mut [u8], offset: u64) -> Result<(), ReadError> {
    if buf.is_empty() {
        return Ok(());
    }
    let len = buf.len();
    file.read_exact_at(buf, offset).map_err(|source| ReadError::Io { offset, len, source })
}
