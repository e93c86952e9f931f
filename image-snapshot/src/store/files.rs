//! File operations that survive a crash.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::FlockOperation;

use super::{
    Store, StoreError,
    faults::{self, failpoint},
};

/// Distinguishes files of one process in `ingest/`.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file on its way into the store. Dropped without [`Ingest::place`], it is removed (and if the process dies first, by the next sweep).
#[derive(Debug)]
pub(crate) struct Ingest {
    path: PathBuf,
    placed: bool,
}

impl Ingest {
    /// Where it is for now.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the finished, synced file to its place.
    pub(super) fn place(mut self, target: &Path) -> Result<(), StoreError> {
        faults::renaming(&self.path, target);
        fs::rename(&self.path, target).map_err(StoreError::io("rename into place", target))?;
        self.placed = true;
        failpoint!(Renamed);
        sync_dir(target)?;
        failpoint!(Placed);
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.placed {
            // Best effort: the sweep gets what stays.
            let _ = remove(&self.path);
            failpoint!(IngestAbandoned);
        }
    }
}

impl Store {
    /// A fresh file in `ingest/`.
    pub(crate) fn ingest(&self) -> Result<(Ingest, File), StoreError> {
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = self.root.join("ingest").join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(StoreError::io("create", &path))?;
        faults::created(&file);
        failpoint!(IngestCreated);
        Ok((Ingest { path, placed: false }, file))
    }

    /// Moves a file to `ingest/`, where it is out of the way and goes at the latest when the store is opened; `None`: it is not there.
    pub(super) fn set_aside(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let aside = self.root.join("ingest").join(name);
        faults::renaming(path, &aside);
        match fs::rename(path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("set aside", path)(e)),
        }
    }

    /// Writes a small file so that it is there whole or not at all.
    pub(super) fn place(&self, target: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let (ingest, mut file) = self.ingest()?;
        file.write_all(bytes).map_err(StoreError::io("write", ingest.path()))?;
        failpoint!(SmallWritten);
        sync(&file, ingest.path())?;
        failpoint!(SmallSynced);
        ingest.place(target)
    }
}

pub(super) fn make_dir(path: &Path) -> Result<(), StoreError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(StoreError::io("make directory", path))
}

/// Takes the store for this process.
pub(super) fn lock(root: &Path) -> Result<File, StoreError> {
    let path = root.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(StoreError::io("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse { path: root.to_owned() }),
        Err(e) => Err(StoreError::io("lock", &path)(e.into())),
    }
}

/// The file's bytes; `None`: there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::io("read", path)(e)),
    }
}

/// Removes a file; false: it was not there.
pub(super) fn remove(path: &Path) -> Result<bool, StoreError> {
    faults::removing(path);
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(StoreError::io("remove", path)(e)),
    }
}

/// Paths in a directory, sorted.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(dir).map_err(StoreError::io("list", dir))?;
    let mut out =
        entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(StoreError::io("list", dir))?;
    out.sort();
    Ok(out)
}

/// Makes a file's bytes last.
pub(super) fn sync(file: &File, path: &Path) -> Result<(), StoreError> {
    file.sync_all().map_err(StoreError::io("sync", path))?;
    faults::synced(file);
    Ok(())
}

/// Makes a rename or removal of `path` last.
pub(super) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    let dir = path.parent().unwrap_or(path);
    let opened = File::open(dir).map_err(StoreError::io("open", dir))?;
    opened.sync_all().map_err(StoreError::io("sync", dir))?;
    faults::dir_synced(dir);
    Ok(())
}
