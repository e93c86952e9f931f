//! The on-disk format: our writer's and our reader's half.

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
        source: std::io::Error,
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
