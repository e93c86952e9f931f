//! Files that only their owner may read, replaced whole or not at all.
//!
//! Mode 0600 from the first byte on, in directories of mode 0700; temporary file, fsync, rename, fsync of the directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// An operation on a private file failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct PrivateFileError {
    /// What was tried, as a verb.
    pub operation: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PrivateFileError {
    let path = path.to_owned();
    move |source| PrivateFileError { operation, path, source }
}

/// Makes the directory and its missing parents; its own mode becomes 0700.
pub fn ensure_dir(dir: &Path) -> Result<(), PrivateFileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create directory", dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed("restrict directory", dir))
}

/// Replaces the file's content.
pub fn write(path: &Path, content: &[u8]) -> Result<(), PrivateFileError> {
    let temporary = write_temporary(path, content)?;
    fs::rename(&temporary, path).map_err(failed("rename into place", path)).inspect_err(|_| discard(&temporary))?;
    sync_parent(path)
}

/// Makes the file if it does not exist. False: it exists, and was left alone. Safe between processes.
pub fn create(path: &Path, content: &[u8]) -> Result<bool, PrivateFileError> {
    let temporary = write_temporary(path, content)?;
    let linked = fs::hard_link(&temporary, path);
    discard(&temporary);
    match linked {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed("link into place", path)(error)),
    }
}

/// The content, or `None` when the file does not exist.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, PrivateFileError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Waits for the exclusive lock of `path` (an empty file beside the data, kept for ever); freed when the file is dropped.
/// Blocks the thread.
pub fn lock(path: &Path) -> Result<File, PrivateFileError> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let file = open.map_err(failed("open lock", path))?;
    file.lock().map_err(failed("lock", path))?;
    Ok(file)
}

fn write_temporary(path: &Path, content: &[u8]) -> Result<PathBuf, PrivateFileError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    let unique = format!(".{name}.{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let temporary = path.with_file_name(unique);
    let write = || {
        // A leftover of a killed process with the same id.
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(failed("write", &temporary)).inspect_err(|_| discard(&temporary))?;
    Ok(temporary)
}

fn discard(temporary: &Path) {
    // A leftover temporary file is harmless: nothing reads it.
    let _ = fs::remove_file(temporary);
}

fn sync_parent(path: &Path) -> Result<(), PrivateFileError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed("sync directory", parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").permissions().mode() & 0o777
    }

    #[test]
    fn only_the_owner_may_read_and_nothing_is_left_beside() {
        let dir = tempfile::tempdir().expect("tempdir");
        let private = dir.path().join("a/b");
        ensure_dir(&private).expect("dir");
        let file = private.join("key");
        write(&file, b"one").expect("write");
        write(&file, b"two").expect("replace");
        assert_eq!((mode(&private), mode(&file)), (0o700, 0o600));
        assert_eq!(read(&file).expect("read"), Some(b"two".to_vec()));
        assert_eq!(fs::read_dir(&private).expect("list").count(), 1);
    }

    #[test]
    fn create_never_replaces() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("key");
        assert!(create(&file, b"one").expect("create"));
        assert!(!create(&file, b"two").expect("exists"));
        assert_eq!(read(&file).expect("read"), Some(b"one".to_vec()));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_missing_file_is_none_and_an_unreadable_one_an_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(read(&dir.path().join("none")).expect("read"), None);
        assert!(read(dir.path()).is_err());
    }
}
