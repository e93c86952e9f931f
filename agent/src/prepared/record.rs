//! What outlasts the agent: `STATE_DIR/prepared.json`, replaced whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The record could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file operation failed.
    #[error("could not {operation} {path:?}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no record. Nothing is taken for unpinned on its word.
    #[error(
        "{path:?} is damaged: remove it, and images pinned on this host may be collected until vkubelet names them again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A thread ended early.
    #[error("writing the prepared images down was interrupted")]
    Interrupted,
}

/// How one image is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) pinned: bool,
    pub(super) remove_after: bool,
}

/// The set, and what is still to go of an earlier one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) images: BTreeMap<String, Kept>,
    pub(super) leaving: BTreeSet<String>,
}

impl Record {
    pub(super) fn pinned(&self) -> BTreeSet<String> {
        self.images.iter().filter(|(_, kept)| kept.pinned).map(|(name, _)| name.clone()).collect()
    }

    /// After this with `images` wanted: what is named no more leaves if it was to; what is named again, in whatever spelling, stays.
    pub(super) fn next(&self, images: BTreeMap<String, Kept>) -> Self {
        let gone = self.images.iter().filter(|(_, kept)| kept.remove_after).map(|(name, _)| name);
        let wanted: BTreeSet<String> = images.keys().map(|name| normal(name)).collect();
        let leaving = gone.chain(&self.leaving).filter(|name| !wanted.contains(&normal(name))).cloned().collect();
        Self { images, leaving }
    }
}

/// A name as the store writes it; what is none stays as it is.
fn normal(name: &str) -> String {
    name.parse::<image_snapshot::Reference>().map_or_else(|_| name.to_owned(), |name| name.to_string())
}

/// Where it is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: PathBuf,
}

impl Place {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join("prepared.json") }
    }

    pub(super) fn read(&self) -> Result<Record, RecordError> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| RecordError::Damaged { path: self.path.clone(), source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Record::default()),
            Err(source) => Err(RecordError::Io { operation: "read", path: self.path.clone(), source }),
        }
    }

    /// There whole or not at all, also after a power cut.
    pub(super) fn write(&self, record: &Record) -> Result<(), RecordError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| RecordError::Io { operation, path, source }
        };
        let text = serde_json::to_vec_pretty(record)
            .map_err(|source| RecordError::Damaged { path: self.path.clone(), source })?;
        let fresh = self.path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&fresh).map_err(failed("create", &fresh))?;
        file.write_all(&text).map_err(failed("write", &fresh))?;
        file.sync_all().map_err(failed("sync", &fresh))?;
        fs::rename(&fresh, &self.path).map_err(failed("rename", &self.path))?;
        let dir = self.path.parent().unwrap_or(&self.path);
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(remove_after: bool) -> Kept {
        Kept { pinned: true, remove_after }
    }

    #[test]
    fn what_is_named_no_more_leaves_if_it_was_to_and_stays_if_it_comes_back() {
        let first = Record::default().next([("a".to_owned(), kept(true)), ("b".to_owned(), kept(false))].into());
        let second = first.next(BTreeMap::new());
        assert_eq!(second.leaving, BTreeSet::from(["a".to_owned()]));
        assert_eq!(second.next(BTreeMap::new()).leaving, second.leaving);
        assert_eq!(second.next([("a".to_owned(), kept(false))].into()).leaving, BTreeSet::new());
    }

    #[test]
    fn an_image_that_is_wanted_by_another_spelling_of_its_name_does_not_leave() {
        let first =
            Record::default().next([("busybox".to_owned(), kept(true)), ("other".to_owned(), kept(true))].into());
        let second = first.next([("docker.io/library/busybox:latest".to_owned(), kept(true))].into());
        assert_eq!(second.leaving, BTreeSet::from(["other".to_owned()]));
        let third = second.next([("Not A Name".to_owned(), kept(true))].into());
        assert_eq!(third.next(BTreeMap::new()).leaving.len(), 3);
        assert_eq!(third.next([("docker.io/other".to_owned(), kept(false))].into()).leaving.len(), 2);
    }

    #[test]
    fn a_damaged_record_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path());
        assert_eq!(place.read().unwrap(), Record::default());
        let record = Record::default().next([("a".to_owned(), kept(true))].into());
        place.write(&record).unwrap();
        assert_eq!(place.read().unwrap(), record);
        fs::write(dir.path().join("prepared.json"), b"{\"images\"").unwrap();
        assert!(matches!(place.read(), Err(RecordError::Damaged { .. })));
    }
}
