//! The segment being written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, SegmentFile, sync_directory};
use super::line::{self, Header};
use super::reserve::Reserve;

/// An open segment with room left.
#[derive(Debug)]
pub(super) struct Active {
    path: PathBuf,
    file: Box<dyn SegmentFile>,
    /// Where the next batch goes; everything before is durable.
    end: u64,
    capacity: u64,
}

impl Active {
    /// Makes a segment out of a file of the reserve: its name appears only when its header is durable.
    pub(super) fn start(
        disk: &Arc<dyn Disk>,
        reserve: &mut Reserve,
        boot_dir: &Path,
        header: &Header,
        capacity: u64,
    ) -> io::Result<Self> {
        let spare = reserve.take()?;
        let path = boot_dir.join(format!("{:08}.seg", header.index));
        let prepare = || {
            let file = disk.open(&spare)?;
            let bytes = line::encode_header(header);
            file.write_all_at(&bytes, 0)?;
            file.sync()?;
            std::fs::rename(&spare, &path)?;
            sync_directory(boot_dir)?;
            Ok(Self { path: path.clone(), file, end: bytes.len() as u64, capacity })
        };
        prepare().inspect_err(|_| {
            // A file whose sync failed is never used again.
            let _ = std::fs::remove_file(&spare);
        })
    }

    /// Goes on in a segment that was scanned; what a torn write left behind its end is zeroed first.
    pub(super) fn resume(
        path: &Path,
        file: Box<dyn SegmentFile>,
        end: u64,
        torn: u64,
        capacity: u64,
    ) -> io::Result<Self> {
        if torn > end {
            file.write_all_at(&vec![0; usize::try_from(torn - end).unwrap_or_default()], end)?;
            file.sync()?;
        }
        Ok(Self { path: path.to_owned(), file, end, capacity })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.end + bytes as u64 <= self.capacity
    }

    /// Writes a batch and makes it durable; the new end. After an error the segment must be dropped.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        self.file.write_all_at(bytes, self.end)?;
        self.file.sync()?;
        self.end += bytes.len() as u64;
        Ok(self.end)
    }
}
