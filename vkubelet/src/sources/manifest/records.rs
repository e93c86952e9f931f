//! The pods that were started from files, on disk: one file each.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::durable;

/// One pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) uid: String,
    /// The manifest.
    pub(super) path: String,
    /// Of the parsed content.
    pub(super) hash: String,
    /// The Pod with defaults, UID and creation time, without status.
    pub(super) pod: Value,
    /// Where it is placed.
    pub(super) host: Option<String>,
    /// Its deletion was asked for, with this grace period in seconds, at this RFC 3339 time.
    pub(super) deletion: Option<DeletionRecord>,
    /// Its last status, once it has ended for good.
    pub(super) ended: Option<Value>,
}

/// A deletion on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeletionRecord {
    pub(super) grace_seconds: i64,
    pub(super) at: String,
}

/// The directory at the last good scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectoryIdentity {
    pub(super) path: PathBuf,
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// The records do not work.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// A file of the state directory could not be read or written.
    #[error("{verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record is damaged: nothing is guessed, since its pod may be running.
    #[error("{path} is damaged: move it away after checking what runs")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The files.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(super) fn open(state_dir: &Path) -> Result<Self, RecordsError> {
        let dir = state_dir.join("manifest");
        let pods = dir.join("pods");
        DirBuilder::new().recursive(true).mode(0o700).create(&pods).map_err(io_error("create", &pods))?;
        Ok(Self { dir })
    }

    pub(super) fn load(&self) -> Result<Vec<Record>, RecordsError> {
        let pods = self.dir.join("pods");
        let mut records = Vec::new();
        for entry in fs::read_dir(&pods).map_err(io_error("list", &pods))? {
            let path = entry.map_err(io_error("list", &pods))?.path();
            if path.extension().is_some_and(|e| e == "json") {
                records.push(self.read(&path)?);
            } else {
                // A temporary file of a write that did not finish.
                let _ = fs::remove_file(&path);
            }
        }
        records.sort_by(|a: &Record, b| a.path.cmp(&b.path));
        Ok(records)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, path: &Path) -> Result<T, RecordsError> {
        let bytes = fs::read(path).map_err(io_error("read", path))?;
        serde_json::from_slice(&bytes).map_err(|source| RecordsError::Damaged { path: path.to_owned(), source })
    }

    pub(super) fn save(&self, record: &Record) -> Result<(), RecordsError> {
        let bytes = serde_json::to_vec(record)
            .map_err(|source| RecordsError::Damaged { path: self.pod_path(&record.uid), source })?;
        replace(&self.pod_path(&record.uid), &bytes)
    }

    pub(super) fn remove(&self, uid: &str) -> Result<(), RecordsError> {
        let path = self.pod_path(uid);
        match fs::remove_file(&path) {
            Ok(()) => durable::sync_directory(&path).map_err(io_error("fsync the directory of", &path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(RecordsError::Io { verb: "remove", path, source }),
        }
    }

    /// A start number that was never given before; it is on disk before it is returned.
    pub(super) fn next_start(&self) -> Result<u64, RecordsError> {
        let path = self.dir.join("counter");
        let last: u64 = match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|source| RecordsError::Damaged { path: path.clone(), source })?
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(RecordsError::Io { verb: "read", path, source }),
        };
        replace(&path, (last + 1).to_string().as_bytes())?;
        Ok(last + 1)
    }

    pub(super) fn directory(&self) -> Result<Option<DirectoryIdentity>, RecordsError> {
        let path = self.dir.join("directory.json");
        if !path.exists() {
            return Ok(None);
        }
        self.read(&path).map(Some)
    }

    pub(super) fn save_directory(&self, identity: &DirectoryIdentity) -> Result<(), RecordsError> {
        let path = self.dir.join("directory.json");
        let bytes =
            serde_json::to_vec(identity).map_err(|source| RecordsError::Damaged { path: path.clone(), source })?;
        replace(&path, &bytes)
    }

    fn pod_path(&self, uid: &str) -> PathBuf {
        self.dir.join("pods").join(format!("{uid}.json"))
    }
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordsError {
    let path = path.to_owned();
    move |source| RecordsError::Io { verb, path, source }
}

/// Replaces a file whole.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), RecordsError> {
    durable::replace(path, bytes).map_err(io_error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_number_is_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let first = Records::open(dir.path()).unwrap().next_start().unwrap();
        assert!(Records::open(dir.path()).unwrap().next_start().unwrap() > first);
    }

    #[test]
    fn records_survive_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let record = Record {
            uid: "u".into(),
            path: "/d/a.yaml".into(),
            hash: "h".into(),
            pod: serde_json::json!({}),
            host: Some("host".into()),
            deletion: None,
            ended: None,
        };
        records.save(&record).unwrap();
        fs::write(dir.path().join("manifest/pods/.u.json.tmp"), "half").unwrap();
        assert_eq!(records.load().unwrap(), [record]);
        fs::write(dir.path().join("manifest/pods/x.json"), "half").unwrap();
        assert!(matches!(records.load(), Err(RecordsError::Damaged { .. })));
    }
}
