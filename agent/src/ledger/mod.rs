//! What survives the agent: one JSON document a pod, and the highest epoch seen.
//!
//! ```text
//! STATE/ledger/UID.json    intent (secret values replaced by digests), the machine's state, conditions, times
//! STATE/ledger/epoch.json  the fence
//! ```
//! A document is replaced as a whole: temporary file, fsync, rename, fsync of the directory. A reader sees the old or the new one,
//! never a mixture; a temporary file that a crash left is removed on opening. Secret material is never in here.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodCondition;
use serde::{Deserialize, Serialize};

use crate::devices::Assigned;
use crate::intent::{Deletion, Intent, IntentError, Source};
use crate::pod::resize::{Resizing, Waiting};
use crate::pod::state::PodState;
use crate::resolved::{Resolved, SecretDigests};

/// Version of the documents that this build writes; it reads this one only.
const VERSION: u32 = 1;

/// Why the ledger failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A step on the disk failed.
    #[error("could not {operation} {path:?}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document is not what we wrote.
    #[error("ledger document {path:?} cannot be read")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A document of another version.
    #[error("ledger document {path:?} has version {found}, this program reads {VERSION}")]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// When a pod passed each milestone; CLOCK_REALTIME nanoseconds, 0 when not yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeline {
    /// Intent written down.
    pub accepted_ns: u64,
    /// Resources held.
    pub held_ns: u64,
    /// All images here.
    pub image_ready_ns: u64,
    /// Sandbox configured.
    pub sandbox_ready_ns: u64,
    /// First container's exec.
    pub started_ns: u64,
    /// First byte of output.
    pub first_byte_ns: u64,
    /// Last container ended.
    pub finished_ns: u64,
    /// Resources released.
    pub released_ns: u64,
    /// Held, on CLOCK_BOOTTIME.
    pub held_boottime_ns: u64,
    /// Released, on CLOCK_BOOTTIME.
    pub released_boottime_ns: u64,
}

/// What is written down of one pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodRecord {
    /// [`VERSION`].
    pub version: u32,
    /// Pod UID.
    pub uid: String,
    /// Generation of the intent.
    pub generation: u64,
    /// Who wrote the pod.
    pub source: Source,
    /// The Pod as the API server wrote it.
    pub pod: serde_json::Value,
    /// Values behind references that may be on disk.
    pub resolved: Resolved,
    /// Digests of those that may not.
    pub secrets: SecretDigests,
    /// Deletion, when asked for.
    pub deletion: Option<Deletion>,
    /// The boot in which the state's boot times mean something.
    pub boot_id: String,
    /// A sandbox of the state's incarnation may exist.
    pub holding: bool,
    /// Where the pod is.
    pub state: PodState,
    /// Conditions as last told.
    pub conditions: Vec<PodCondition>,
    /// When it passed each milestone.
    pub timeline: Timeline,
    /// Paths of what newer versions of the pod ask for in vain.
    #[serde(default)]
    pub kept: Vec<String>,
    /// A change of resources that is being carried out.
    #[serde(default)]
    pub resizing: Option<Resizing>,
    /// A change of resources that waits for room.
    #[serde(default)]
    pub waiting: Option<Waiting>,
    /// Who runs each container, by its name, once it was started.
    #[serde(default)]
    pub users: BTreeMap<String, sandbox::spec::User>,
    /// What it was given of what only one can have.
    #[serde(default)]
    pub assigned: Assigned,
}

impl PodRecord {
    /// The pod keeps what it asks for from others: it has not ended, and was not refused before it held anything.
    pub fn takes_room(&self) -> bool {
        !self.state.is_terminal() && (self.holding || self.state.verdict.is_none())
    }

    /// The intent, with the secret material if it is at hand.
    pub fn intent(&self, material: Option<Resolved>) -> Result<Intent, IntentError> {
        let resolved = material.unwrap_or_else(|| self.resolved.clone());
        Intent::new(self.uid.clone(), self.generation, self.pod.clone(), resolved, self.source, self.deletion)
    }
}

/// The ledger's directory.
#[derive(Debug, Clone)]
pub struct Ledger {
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct EpochDocument {
    epoch: u64,
}

/// What [`Ledger::load`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Pods.
    pub pods: Vec<PodRecord>,
    /// Documents that cannot be read; they are left where they are.
    pub damaged: Vec<LedgerError>,
}

impl Ledger {
    /// Opens (or makes) the ledger below the state directory. Blocking.
    pub fn open(state_dir: &Path) -> Result<Self, LedgerError> {
        let dir = state_dir.join("ledger");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|source| LedgerError::Io {
            operation: "make directory",
            path: dir.clone(),
            source,
        })?;
        let ledger = Self { dir };
        for path in ledger.list()? {
            if path.extension().is_some_and(|e| e == "new") {
                fs::remove_file(&path).map_err(|source| LedgerError::Io { operation: "remove", path, source })?;
            }
        }
        Ok(ledger)
    }

    fn list(&self) -> Result<Vec<PathBuf>, LedgerError> {
        let failed = |source| LedgerError::Io { operation: "list", path: self.dir.clone(), source };
        let entries = fs::read_dir(&self.dir).map_err(failed)?;
        entries.map(|entry| entry.map(|e| e.path()).map_err(failed)).collect()
    }

    /// Every pod. A damaged document does not hide the others. Blocking.
    pub fn load(&self) -> Result<Loaded, LedgerError> {
        let mut loaded = Loaded::default();
        for path in self.list()? {
            let is_pod =
                path.extension().is_some_and(|e| e == "json") && path.file_name() != Some("epoch.json".as_ref());
            if !is_pod {
                continue;
            }
            let bytes =
                fs::read(&path).map_err(|source| LedgerError::Io { operation: "read", path: path.clone(), source })?;
            match serde_json::from_slice::<PodRecord>(&bytes) {
                Ok(record) if record.version == VERSION => loaded.pods.push(record),
                Ok(record) => loaded.damaged.push(LedgerError::Version { path, found: record.version }),
                Err(source) => loaded.damaged.push(LedgerError::Damaged { path, source }),
            }
        }
        Ok(loaded)
    }

    /// Writes a pod down. Durable when it returns. Blocking.
    pub fn save(&self, record: &PodRecord) -> Result<(), LedgerError> {
        self.write(&format!("{}.json", record.uid), record)
    }

    /// Forgets a pod. Blocking.
    pub fn remove(&self, uid: &str) -> Result<(), LedgerError> {
        let path = self.dir.join(format!("{uid}.json"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LedgerError::Io { operation: "remove", path, source: error });
            }
            _ => {}
        }
        self.sync_dir()
    }

    /// The highest epoch seen; 0 when none was. Blocking.
    pub fn epoch(&self) -> Result<u64, LedgerError> {
        let path = self.dir.join("epoch.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<EpochDocument>(&bytes)
                .map(|d| d.epoch)
                .map_err(|source| LedgerError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(LedgerError::Io { operation: "read", path, source }),
        }
    }

    /// Raises the fence. Durable when it returns. Blocking.
    pub fn save_epoch(&self, epoch: u64) -> Result<(), LedgerError> {
        self.write("epoch.json", &EpochDocument { epoch })
    }

    fn write(&self, name: &str, document: &impl Serialize) -> Result<(), LedgerError> {
        let path = self.dir.join(name);
        let fresh = self.dir.join(format!("{name}.new"));
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| LedgerError::Io { operation, path, source }
        };
        let bytes = serde_json::to_vec(document).map_err(|e| io("write", &fresh)(e.into()))?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(io("create", &fresh))?;
        file.write_all(&bytes).map_err(io("write", &fresh))?;
        file.sync_data().map_err(io("sync", &fresh))?;
        fs::rename(&fresh, &path).map_err(io("rename", &path))?;
        self.sync_dir()
    }

    fn sync_dir(&self) -> Result<(), LedgerError> {
        let failed = |source| LedgerError::Io { operation: "sync", path: self.dir.clone(), source };
        fs::File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

/// A new pod's document.
pub fn new_record(intent: &Intent, state: PodState, boot_id: &str) -> PodRecord {
    let (resolved, secrets) = intent.resolved.without_secrets();
    PodRecord {
        version: VERSION,
        uid: intent.uid.clone(),
        generation: intent.generation,
        source: intent.source,
        pod: (*intent.raw).clone(),
        resolved,
        secrets,
        deletion: intent.deletion,
        boot_id: boot_id.to_owned(),
        holding: false,
        state,
        conditions: Vec::new(),
        timeline: Timeline::default(),
        kept: Vec::new(),
        resizing: None,
        waiting: None,
        users: BTreeMap::new(),
        assigned: Assigned::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolved::{Bytes, Data};

    fn record(uid: &str) -> PodRecord {
        let pod = serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": uid},
            "spec": {"containers": [{"name": "c", "image": "x"}], "future": {"field": 1}}
        });
        let data: Data = [("k".to_owned(), Bytes(b"hunter2".to_vec()))].into();
        let resolved = Resolved { secrets: [("s".to_owned(), data)].into(), ..Resolved::default() };
        let intent = Intent::new(uid.into(), 3, pod, resolved, Source::Kubernetes, None).unwrap();
        new_record(&intent, PodState::new(1), "boot")
    }

    #[test]
    fn what_was_written_is_read_and_holds_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let record = record("u1");
        ledger.save(&record).unwrap();
        let text = fs::read_to_string(dir.path().join("ledger/u1.json")).unwrap();
        assert!(!text.contains("hunter2") && !text.contains("aHVudGVyMg"));
        let loaded = ledger.load().unwrap();
        assert_eq!(loaded.pods.len(), 1);
        let intent = loaded.pods[0].intent(None).unwrap();
        assert_eq!((intent.generation, intent.name()), (3, "p"));
        assert_eq!(intent.raw["spec"]["future"]["field"], 1, "unknown fields survive");
        ledger.remove("u1").unwrap();
        ledger.remove("u1").unwrap();
        assert!(ledger.load().unwrap().pods.is_empty());
    }

    #[test]
    fn a_torn_or_foreign_document_does_not_hide_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.save(&record("u1")).unwrap();
        fs::write(dir.path().join("ledger/u2.json"), "{\"version\":1,").unwrap();
        fs::write(dir.path().join("ledger/u3.json.new"), "{").unwrap();
        let mut other = record("u4");
        other.version = 9;
        ledger.save(&other).unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let loaded = ledger.load().unwrap();
        assert_eq!((loaded.pods.len(), loaded.damaged.len()), (1, 2));
        assert!(!dir.path().join("ledger/u3.json.new").exists());
    }

    #[test]
    fn the_epoch_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.epoch().unwrap(), 0);
        ledger.save_epoch(7).unwrap();
        assert_eq!(Ledger::open(dir.path()).unwrap().epoch().unwrap(), 7);
    }
}
