//! The file operations whose failure matters, as a port: the real one, and faulty ones in tests.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Opens and makes the files that records are written to.
pub trait Disk: Debug + Send + Sync {
    /// Opens an existing segment for writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;
    /// Makes a file of `len` zero bytes that are allocated and durable. Leaves nothing behind when it fails.
    fn make_zeroed(&self, path: &Path, len: u64) -> io::Result<()>;
    /// Reads a whole file from the disk itself, not from pages that a failed write may have left in memory.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// A segment open for writing.
pub trait SegmentFile: Debug + Send {
    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// fdatasync. After an error the file must not be used again.
    fn sync(&self) -> io::Result<()>;
}

/// The real thing.
#[derive(Debug, Clone, Copy)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn make_zeroed(&self, path: &Path, len: u64) -> io::Result<()> {
        let made = write_zeros(path, len);
        if made.is_err() {
            let _ = std::fs::remove_file(path);
        }
        made
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        // Clean pages of a failed write would hide what the disk really has.
        if let Err(error) = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed) {
            tracing::debug!(%error, path = %path.display(), "cannot drop cached pages");
        }
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut { file }, &mut bytes)?;
        Ok(bytes)
    }
}

impl SegmentFile for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Zeros are written, not only reserved: blocks that are merely preallocated cost a journal commit at each fdatasync.
fn write_zeros(path: &Path, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let zeros = vec![0u8; 256 * 1024];
    let mut offset = 0;
    while offset < len {
        let n = zeros.len().min(usize::try_from(len - offset).unwrap_or(usize::MAX));
        FileExt::write_all_at(&file, &zeros[..n], offset)?;
        offset += n as u64;
    }
    file.set_len(len)?;
    file.sync_all()
}

/// Makes the entries of a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
