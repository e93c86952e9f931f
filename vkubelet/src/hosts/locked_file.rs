//! JSON files that several processes change: read, change, replace, under one lock of the directory.

use std::path::{Path, PathBuf};

use agent_api::identity::private_file::{self, PrivateFileError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading, writing or locking failed.
    #[error("keep {}", path.display())]
    File {
        /// The state file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PrivateFileError,
    },
    /// It cannot be said whether it has changed.
    #[error("look at {}", path.display())]
    Look {
        /// The state file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The content is not what we wrote. It is never replaced by an empty one.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The state file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

fn file(path: &Path) -> impl FnOnce(PrivateFileError) -> StateError {
    let path = path.to_owned();
    move |source| StateError::File { path, source }
}

/// The content, or the default when the file does not exist. Needs no lock: files are replaced whole.
pub(super) fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T, StateError> {
    let Some(bytes) = private_file::read(path).map_err(file(path))? else {
        return Ok(T::default());
    };
    serde_json::from_slice(&bytes).map_err(|source| StateError::Damaged { path: path.to_owned(), source })
}

/// Changes the file under the directory's lock. Written only when `change` altered the value. Blocks: a few milliseconds.
pub(super) fn update<T, R>(path: &Path, change: impl FnOnce(&mut T) -> R) -> Result<R, StateError>
where
    T: Serialize + DeserializeOwned + Default + Clone + PartialEq,
{
    let dir = path.parent().unwrap_or(Path::new("."));
    private_file::ensure_dir(dir).map_err(file(path))?;
    let _lock = private_file::lock(&dir.join("LOCK")).map_err(file(path))?;
    let before: T = read(path)?;
    let mut after = before.clone();
    let outcome = change(&mut after);
    if after != before {
        let mut bytes = serde_json::to_vec_pretty(&after)
            .map_err(|source| StateError::Damaged { path: path.to_owned(), source })?;
        bytes.push(b'\n');
        private_file::write(path, &bytes).map_err(file(path))?;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_many_threads_all_count() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("hosts/n.json");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10).for_each(|_| update(&path, |n: &mut u64| *n += 1).expect("update")));
            }
        });
        assert_eq!(read::<u64>(&path).expect("read"), 80);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("n.json");
        std::fs::write(&path, "{").expect("write");
        assert!(matches!(update(&path, |n: &mut u64| *n += 1), Err(StateError::Damaged { .. })));
        assert_eq!(std::fs::read(&path).expect("read"), b"{");
    }
}
