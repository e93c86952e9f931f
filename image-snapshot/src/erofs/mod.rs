//! The on-disk format: our writer's and our reader's half.
//!
//! ```text
//! block 0   1024: superblock   1152: root inode [+ xattrs] [+ tail of its entries]
//! block 1…  file data, whole blocks, in the order of the archive
//!           leaf inodes with their xattrs and tails, in segments of some 4 MiB
//!           … (repeated when a layer has more metadata than that)
//!           content copied up from layers below (hard links)
//!           directory blocks
//!           directory inodes with their xattrs and tails
//! ```
//!
//! Everything is uncompressed, in 4 KiB blocks. `meta_blkaddr` is 0, so an inode's number (nid) is its byte offset over 32. Inodes are
//! always of the extended form (64-bit times). A tail shorter than a block lies behind its inode when the two fit one block.
//!
//! Format: `fs/erofs/erofs_fs.h` of Linux; any kernel since 5.4 reads what we write.

mod dirent;
pub(crate) mod format;
mod reader;
mod sink;
mod writer;
pub(crate) mod xattr;

pub use reader::{DirEntry, ErofsFile, Inode, ReadAt, ReadError};
pub use sink::FileDigest;
pub(crate) use writer::{Body, DirPlan, InodeRef, Meta, Target, Writer};
