//! Names.

use std::{collections::BTreeSet, io::ErrorKind, path::PathBuf, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, faults::failpoint, files};
use crate::Digest;

/// What a name meant when it was last asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefRecord {
    /// Normal form.
    pub(crate) reference: String,
    /// Whose copies its layers are; empty: the host's own.
    #[serde(default)]
    pub(crate) domain: String,
    /// Digest of what the name resolved to: that manifest, or an index.
    pub(crate) target: Digest,
    /// Digest of this platform's manifest.
    pub(crate) manifest: Digest,
    /// Digest of the configuration.
    pub(crate) config: Digest,
    /// Chain ids of its layers, lowest first.
    pub(crate) layers: Vec<Digest>,
    /// What a kubelet reports.
    pub(crate) repo_digest: String,
    /// Who may use it without asking the registry again.
    pub(crate) access: Access,
    /// When the source last said so.
    pub(crate) pulled_at: jiff::Timestamp,
}

/// Who has shown the right to pull.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Access {
    /// Anybody: it came without credentials.
    pub(crate) public: bool,
    /// Fingerprints of credentials that the registry accepted.
    pub(crate) credentials: BTreeSet<String>,
}

impl Access {
    /// Whether one of these credentials (or nobody's) opens it.
    pub(crate) fn allows(&self, fingerprints: &[String]) -> bool {
        self.public || fingerprints.iter().any(|f| self.credentials.contains(f))
    }

    /// Both rights together.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        self.public |= other.public;
        self.credentials.extend(other.credentials);
        self
    }
}

impl Store {
    pub(super) fn ref_path(&self, reference: &str, domain: &str) -> PathBuf {
        let name = match domain {
            "" => Digest::sha256(reference.as_bytes()),
            _ => Digest::sha256(format!("{reference}\0{domain}").as_bytes()),
        };
        self.root.join("refs").join(format!("{}.json", name.hex()))
    }

    /// What the store knows about a name. A record that does not parse counts as none: the next pull writes it anew.
    pub(crate) fn get_ref(&self, reference: &str, domain: &str) -> Result<Option<RefRecord>, StoreError> {
        let path = self.ref_path(reference, domain);
        let record = files::read(&path)?.and_then(|json| parse(&path, &json));
        Ok(record.filter(|r| r.reference == reference && r.domain == domain))
    }

    /// Remembers a name.
    pub(crate) fn set_ref(&self, record: &RefRecord) -> Result<(), StoreError> {
        let path = self.ref_path(&record.reference, &record.domain);
        let json =
            serde_json::to_vec_pretty(record).map_err(|source| StoreError::Record { path: path.clone(), source })?;
        self.place(&path, &json)?;
        failpoint!(RefSet);
        Ok(())
    }

    /// Notes that a name is used now: the time of its file. Neither synced nor in the record, since a start waits for it; what a crash
    /// loses of it makes the name look older.
    pub(crate) fn touch_ref(&self, reference: &str, domain: &str) -> Result<(), StoreError> {
        let path = self.ref_path(reference, domain);
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
        match rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {
                failpoint!(RefTouched);
                Ok(())
            }
            Err(error) => Err(StoreError::io("set the time of", &path)(error.into())),
        }
    }

    /// When a name was last used; `None`: it is not known.
    pub(crate) fn ref_used(&self, reference: &str, domain: &str) -> Result<Option<SystemTime>, StoreError> {
        let path = self.ref_path(reference, domain);
        match std::fs::metadata(&path).and_then(|meta| meta.modified()) {
            Ok(at) => Ok(Some(at)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("examine", &path)(error)),
        }
    }

    /// Forgets a name; false: it was not known.
    pub(crate) fn remove_ref(&self, reference: &str, domain: &str) -> Result<bool, StoreError> {
        let path = self.ref_path(reference, domain);
        let was_there = files::remove(&path)?;
        failpoint!(RefUnlinked);
        files::sync_dir(&path)?;
        failpoint!(RefRemoved);
        Ok(was_there)
    }

    /// All names, sorted.
    pub(crate) fn refs(&self) -> Result<Vec<RefRecord>, StoreError> {
        let mut out = Vec::new();
        for path in files::list(&self.root.join("refs"))? {
            if let Some(json) = files::read(&path)? {
                out.extend(parse(&path, &json));
            }
        }
        out.sort_by(|a: &RefRecord, b: &RefRecord| (&a.reference, &a.domain).cmp(&(&b.reference, &b.domain)));
        Ok(out)
    }
}

pub(super) fn parse(path: &std::path::Path, json: &[u8]) -> Option<RefRecord> {
    serde_json::from_slice(json)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "a name's record is damaged and is left out"),
        )
        .ok()
}
