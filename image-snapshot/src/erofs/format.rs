//! Constants and fixed structures of EROFS, little-endian.

pub(crate) const BLOCK_BITS: u8 = 12;
pub(crate) const BLOCK: usize = 1 << BLOCK_BITS;
pub(crate) const SLOT: usize = 32;
pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;
pub(crate) const SB_OFFSET: usize = 1024;
pub(crate) const SB_SIZE: usize = 128;
/// The root inode follows the superblock.
pub(crate) const ROOT_OFFSET: usize = SB_OFFSET + SB_SIZE;
pub(crate) const ROOT_NID: u64 = (ROOT_OFFSET / SLOT) as u64;
/// Times in inodes are modification times.
pub(crate) const COMPAT_MTIME: u32 = 0x2;

pub(crate) const INODE_COMPACT: usize = 32;
pub(crate) const INODE_EXTENDED: usize = 64;
/// Where an extended inode keeps its link count.
pub(crate) const NLINK_OFFSET: usize = 44;
pub(crate) const LAYOUT_PLAIN: u16 = 0;
pub(crate) const LAYOUT_INLINE: u16 = 2;

pub(crate) const NAME_MAX: usize = 255;
pub(crate) const DIRENT: usize = 12;

pub(crate) const S_IFMT: u16 = 0o170_000;
pub(crate) const S_IFIFO: u16 = 0o010_000;
pub(crate) const S_IFCHR: u16 = 0o020_000;
pub(crate) const S_IFDIR: u16 = 0o040_000;
pub(crate) const S_IFBLK: u16 = 0o060_000;
pub(crate) const S_IFREG: u16 = 0o100_000;
pub(crate) const S_IFLNK: u16 = 0o120_000;
pub(crate) const S_IFSOCK: u16 = 0o140_000;

/// The `d_type` of a mode.
pub(crate) fn file_type(mode: u16) -> u8 {
    match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFSOCK => 6,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// Linux' on-disk device number: 12 bits of major, 20 of minor. `None`: does not fit.
pub(crate) fn encode_dev(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The superblock, 128 bytes.
pub(crate) fn superblock(inodes: u64, blocks: u32) -> [u8; SB_SIZE] {
    let mut sb = [0; SB_SIZE];
    put32(&mut sb, 0, MAGIC);
    put32(&mut sb, 8, COMPAT_MTIME);
    sb[12] = BLOCK_BITS;
    put16(&mut sb, 14, ROOT_NID as u16);
    put64(&mut sb, 16, inodes);
    put32(&mut sb, 36, blocks);
    sb
}

/// An extended inode without its xattrs.
pub(crate) struct RawInode {
    pub(crate) inline: bool,
    pub(crate) xattr_icount: u16,
    pub(crate) mode: u16,
    pub(crate) size: u64,
    /// First block of the data, or device number.
    pub(crate) unit: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) nlink: u32,
}

impl RawInode {
    pub(crate) fn encode(&self, out: &mut [u8]) {
        let layout = if self.inline { LAYOUT_INLINE } else { LAYOUT_PLAIN };
        put16(out, 0, 1 | (layout << 1));
        put16(out, 2, self.xattr_icount);
        put16(out, 4, self.mode);
        put64(out, 8, self.size);
        put32(out, 16, self.unit);
        put32(out, 24, self.uid);
        put32(out, 28, self.gid);
        put64(out, 32, self.mtime as u64);
        put32(out, 40, self.mtime_nsec);
        put32(out, NLINK_OFFSET, self.nlink);
    }
}

pub(crate) fn put16(out: &mut [u8], at: usize, value: u16) {
    out[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from(get32(bytes, at)) | u64::from(get32(bytes, at + 4)) << 32
}
