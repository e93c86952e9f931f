//! The reserve of zero-filled segments, so that a full disk does not stop metering.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, sync_directory};
use super::error::OpenError;

/// `spool/spare/`. A name that ends with `.seg` is complete: it was filled under another name and renamed.
#[derive(Debug)]
pub(super) struct Reserve {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    wanted: usize,
    spares: Vec<PathBuf>,
    next: u64,
}

impl Reserve {
    /// Takes stock of the directory; half-made files and those of another size go.
    pub(super) fn open(dir: &Path, disk: Arc<dyn Disk>, segment_bytes: u64, wanted: usize) -> Result<Self, OpenError> {
        let read = |source| OpenError::Read { path: dir.to_owned(), source };
        let mut reserve = Self { dir: dir.to_owned(), disk, segment_bytes, wanted, spares: Vec::new(), next: 1 };
        for entry in std::fs::read_dir(dir).map_err(read)? {
            let entry = entry.map_err(read)?;
            let path = entry.path();
            let number = path.extension().filter(|extension| *extension == "seg").and(path.file_stem());
            let number = number.and_then(|stem| stem.to_str()?.parse::<u64>().ok());
            match number {
                Some(number) if entry.metadata().map_err(read)?.len() == segment_bytes => {
                    reserve.next = reserve.next.max(number + 1);
                    reserve.spares.push(path);
                }
                _ => std::fs::remove_file(&path).map_err(|source| OpenError::Write { path, source })?,
            }
        }
        Ok(reserve)
    }

    pub(super) fn len(&self) -> usize {
        self.spares.len()
    }

    pub(super) fn is_short(&self) -> bool {
        self.spares.len() < self.wanted
    }

    /// A zero-filled file that the caller moves away: a fresh one while the disk has room, else a spare.
    pub(super) fn take(&mut self) -> io::Result<PathBuf> {
        if let Some(spare) = self.spares.pop() {
            return Ok(spare);
        }
        let path = self.dir.join("direct.tmp");
        self.disk.make_zeroed(&path, self.segment_bytes)?;
        Ok(path)
    }

    /// Adds one spare.
    pub(super) fn add(&mut self) -> io::Result<()> {
        let made = self.dir.join("new.tmp");
        self.disk.make_zeroed(&made, self.segment_bytes)?;
        self.adopt(&made)
    }

    /// Makes a spare of a segment that is no longer needed, or deletes it when there are enough.
    pub(super) fn recycle(&mut self, segment: &Path) -> io::Result<()> {
        let fits = std::fs::metadata(segment)?.len() == self.segment_bytes;
        if !self.is_short() || !fits {
            return std::fs::remove_file(segment);
        }
        let made = self.dir.join("used.tmp");
        std::fs::rename(segment, &made)?;
        self.disk.make_zeroed(&made, self.segment_bytes)?;
        self.adopt(&made)
    }

    fn adopt(&mut self, made: &Path) -> io::Result<()> {
        let path = self.dir.join(format!("{:08}.seg", self.next));
        std::fs::rename(made, &path)?;
        sync_directory(&self.dir)?;
        self.next += 1;
        self.spares.push(path);
        Ok(())
    }
}
