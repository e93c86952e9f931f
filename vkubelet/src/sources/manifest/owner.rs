//! The thread that owns the manifest pods: every change of them, on disk and in the desired store, happens here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{broadcast, oneshot};
use uuid::Uuid;

use super::parse::{Manifest, parse};
use super::plan::{Action, Known, Seen, plan};
use super::records::{DeletionRecord, Record, Records, RecordsError, replace};
use super::scan::Scan;
use crate::desired::{Desired, DesiredPod, HOST_ANNOTATION, PodRef, SourceKind};
use crate::ports::{PortError, ReferenceChanged, ReferenceKind, ReferencedObject};

/// The namespace of manifest pods' UIDs (a fixed random UUID).
const UID_NAMESPACE: Uuid = Uuid::from_u128(0x8d1f_6c1e_52a4_4f0b_9d7c_1b3a_7e55_c042);

type Reply<T> = oneshot::Sender<Result<T, PortError>>;
pub(super) type ObjectKey = (ReferenceKind, String, String);

/// What is asked of the owner.
pub(super) enum Command {
    Rescan,
    Place { uid: String, host: String, reply: Reply<()> },
    Ended { uid: String, status: Value },
    Remove { uid: String, reply: Reply<()> },
    Create { pod: Value, reply: Reply<PodRef> },
    Delete { uid: String, grace_seconds: Option<i64>, reply: Reply<bool> },
}

/// What others may read.
#[derive(Debug, Default)]
pub(super) struct Visible {
    pub(super) objects: BTreeMap<ObjectKey, ReferencedObject>,
    /// Per file: what is wrong with it and what to do.
    pub(super) problems: BTreeMap<String, String>,
}

pub(super) struct Owner {
    pub(super) directory: PathBuf,
    pub(super) node_name: String,
    pub(super) records: Records,
    pub(super) pods: BTreeMap<String, Record>,
    pub(super) desired: Desired,
    pub(super) visible: Arc<Mutex<Visible>>,
    pub(super) changes: broadcast::Sender<ReferenceChanged>,
}

impl Owner {
    pub(super) fn run(mut self, commands: &mpsc::Receiver<Command>) {
        for record in self.pods.values() {
            self.publish(record);
        }
        self.rescan();
        self.desired.mark_listed(SourceKind::Manifest);
        while let Ok(command) = commands.recv() {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Rescan => self.rescan(),
            Command::Place { uid, host, reply } => {
                let answer = self.change(&uid, |record| record.host = Some(host));
                let _ = reply.send(answer);
            }
            Command::Ended { uid, status } => {
                if let Err(error) = self.change(&uid, |record| record.ended = Some(status)) {
                    tracing::error!(
                        pod.uid = uid,
                        error = &error as &dyn std::error::Error,
                        "a pod's end could not be written down"
                    );
                }
            }
            Command::Remove { uid, reply } => {
                let _ = reply.send(self.remove(&uid));
            }
            Command::Create { pod, reply } => {
                let _ = reply.send(self.create(&pod));
            }
            Command::Delete { uid, grace_seconds, reply } => {
                let _ = reply.send(self.delete(&uid, grace_seconds));
            }
        }
    }

    fn change(&mut self, uid: &str, change: impl FnOnce(&mut Record)) -> Result<(), PortError> {
        let Some(record) = self.pods.get(uid) else { return Err(stale(uid)) };
        let mut newer = record.clone();
        change(&mut newer);
        if newer != *record {
            self.records.save(&newer).map_err(could_not_write)?;
            self.pods.insert(uid.to_owned(), newer.clone());
            self.publish(&newer);
        }
        Ok(())
    }

    fn remove(&mut self, uid: &str) -> Result<(), PortError> {
        self.records.remove(uid).map_err(could_not_write)?;
        self.pods.remove(uid);
        self.desired.remove(uid);
        // A successor of the same name may have waited for this.
        self.rescan();
        Ok(())
    }

    fn create(&mut self, pod: &Value) -> Result<PodRef, PortError> {
        let text = serde_json::to_string_pretty(pod).unwrap_or_default();
        let invalid = |message: String| PortError::Invalid { message };
        let parsed = match parse(&text, &self.node_name) {
            Ok(Manifest::Pod(pod)) => pod,
            Ok(Manifest::Object { .. }) => return Err(invalid("kind must be Pod".to_owned())),
            Err(error) => return Err(invalid(error.to_string())),
        };
        let word = |key: &str| parsed["metadata"][key].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (word("namespace"), word("name"));
        if self.pods.values().any(|r| names(r) == (namespace.as_str(), name.as_str())) {
            return Err(PortError::AlreadyExists { what: format!("pod {namespace}/{name}") });
        }
        let path = self.directory.join(format!("{namespace}_{name}.json"));
        if path.exists() {
            return Err(PortError::AlreadyExists { what: format!("file {}", path.display()) });
        }
        replace(&path, text.as_bytes()).map_err(could_not_write)?;
        self.rescan();
        let found = self.pods.values().find(|r| names(r) == (namespace.as_str(), name.as_str()));
        found.map(pod_ref).ok_or_else(|| PortError::CouldNotAsk {
            what: format!("the manifest {}", path.display()),
            source: "it was written, but its pod did not start; the log says more".into(),
        })
    }

    fn delete(&mut self, uid: &str, grace_seconds: Option<i64>) -> Result<bool, PortError> {
        let Some(record) = self.pods.get(uid).cloned() else { return Ok(false) };
        match fs::remove_file(&record.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(PortError::CouldNotAsk { what: format!("remove {}", record.path), source: source.into() });
            }
        }
        self.retire(uid, grace_seconds);
        Ok(true)
    }

    fn retire(&mut self, uid: &str, grace_seconds: Option<i64>) {
        let now = now_text();
        let result = self.change(uid, |record| {
            let own = record.pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
            let before = record.deletion.as_ref().map(|d| d.grace_seconds);
            // A grace period may be shortened, never lengthened.
            let wanted = grace_seconds.or(before).unwrap_or(own).max(0);
            let grace_seconds = before.map_or(wanted, |before| before.min(wanted));
            let at = record.deletion.as_ref().map_or(now, |d| d.at.clone());
            record.deletion = Some(DeletionRecord { grace_seconds, at });
        });
        if let Err(error) = result {
            tracing::error!(
                pod.uid = uid,
                error = &error as &dyn std::error::Error,
                "a deletion could not be written down"
            );
        }
    }

    fn rescan(&mut self) {
        let (files, trusted) = match Scan::of(&self.directory, &self.node_name) {
            Ok(scan) => self.take_scan(scan),
            Err(error) => {
                let path = self.directory.display().to_string();
                let message = format!("cannot be read: {error}; its pods go on as they are");
                self.tell_problems(BTreeMap::from([(path, message)]));
                (BTreeMap::new(), false)
            }
        };
        let known: Vec<Known> = self.pods.values().map(known).collect();
        for action in plan(&known, &files, trusted) {
            match action {
                Action::Retire { uid } => {
                    tracing::info!(pod.uid = uid, "manifest removed or changed: its pod ends");
                    self.retire(&uid, None);
                }
                Action::Start { path, hash, pod } => {
                    if let Err(error) = self.start(path, hash, pod) {
                        tracing::error!(error = &error as &dyn std::error::Error, "a pod could not be written down");
                    }
                }
                Action::Duplicate { path, other, namespace, name } => {
                    let message =
                        format!("metadata.name: pod {namespace}/{name} is in {other} already: rename or remove one");
                    let mut problems = self.visible.lock().unwrap_or_else(PoisonError::into_inner).problems.clone();
                    problems.insert(path, message);
                    self.tell_problems(problems);
                }
            }
        }
    }

    /// The files, and whether a missing one means a deletion.
    fn take_scan(&mut self, scan: Scan) -> (BTreeMap<String, Seen>, bool) {
        let before = self.records.directory().unwrap_or_default();
        let trusted = before.as_ref() == Some(&scan.identity) || !scan.files.is_empty() || self.pods.is_empty();
        let mut problems = scan.problems;
        if trusted {
            if before.as_ref() != Some(&scan.identity)
                && let Err(error) = self.records.save_directory(&scan.identity)
            {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the directory's identity could not be written down"
                );
            }
        } else {
            let message = "was replaced by an empty directory: its pods go on; put a manifest into it, or end them with `nodeless rm`";
            problems.insert(self.directory.display().to_string(), message.to_owned());
        }
        self.tell_problems(problems);
        self.take_objects(scan.objects);
        (scan.files, trusted)
    }

    fn take_objects(&self, objects: BTreeMap<ObjectKey, ReferencedObject>) {
        let before = {
            let mut visible = self.visible.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut visible.objects, objects.clone())
        };
        let keys: BTreeSet<&ObjectKey> = before.keys().chain(objects.keys()).collect();
        for key in keys.into_iter().filter(|key| before.get(*key) != objects.get(*key)) {
            let (kind, namespace, name) = key.clone();
            let _ = self.changes.send(ReferenceChanged { kind, namespace, name });
        }
    }

    /// Logs each new problem once.
    fn tell_problems(&self, problems: BTreeMap<String, String>) {
        let mut visible = self.visible.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, message) in &problems {
            if visible.problems.get(path) != Some(message) {
                tracing::error!(path, problem = message, "manifest not taken");
            }
        }
        visible.problems = problems;
    }

    fn start(&mut self, path: String, hash: String, mut pod: Value) -> Result<(), RecordsError> {
        let number = self.records.next_start()?;
        let uid = Uuid::new_v5(&UID_NAMESPACE, format!("{path}\0{hash}\0{number}").as_bytes()).to_string();
        pod["metadata"]["uid"] = json!(uid);
        pod["metadata"]["creationTimestamp"] = json!(now_text());
        pod["metadata"]["annotations"]["kubernetes.io/config.hash"] = json!(hash);
        let record = Record { uid: uid.clone(), path, hash, pod, host: None, deletion: None, ended: None };
        self.records.save(&record)?;
        tracing::info!(pod.uid = uid, path = record.path, "manifest taken");
        self.publish(&record);
        self.pods.insert(uid, record);
        Ok(())
    }

    fn publish(&self, record: &Record) {
        let mut pod = record.pod.clone();
        if let Some(host) = &record.host {
            pod["metadata"]["annotations"][HOST_ANNOTATION] = json!(host);
        }
        if let Some(deletion) = &record.deletion {
            pod["metadata"]["deletionTimestamp"] = json!(deletion.at);
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(deletion.grace_seconds);
        }
        if let Some(status) = &record.ended {
            pod["status"] = status.clone();
        }
        match DesiredPod::from_json(SourceKind::Manifest, Bytes::from(pod.to_string())) {
            Ok(pod) => self.desired.upsert(pod),
            Err(error) => {
                tracing::error!(
                    pod.uid = record.uid,
                    error = &error as &dyn std::error::Error,
                    "a recorded pod does not parse"
                );
            }
        }
    }
}

fn names(record: &Record) -> (&str, &str) {
    let meta = &record.pod["metadata"];
    (meta["namespace"].as_str().unwrap_or_default(), meta["name"].as_str().unwrap_or_default())
}

fn pod_ref(record: &Record) -> PodRef {
    let (namespace, name) = names(record);
    PodRef { uid: record.uid.clone(), namespace: namespace.to_owned(), name: name.to_owned() }
}

fn known(record: &Record) -> Known {
    let PodRef { uid, namespace, name } = pod_ref(record);
    let leaving = record.deletion.is_some();
    Known { uid, path: record.path.clone(), namespace, name, hash: record.hash.clone(), leaving }
}

fn stale(uid: &str) -> PortError {
    PortError::Stale { namespace: String::new(), name: String::new(), uid: uid.to_owned() }
}

fn could_not_write(error: RecordsError) -> PortError {
    PortError::CouldNotAsk { what: "a record in the state directory".to_owned(), source: Box::new(error) }
}

fn now_text() -> String {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).map(|t| t.to_string()).unwrap_or_default()
}
