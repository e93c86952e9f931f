//! What is known of every pod, for whoever watches: one writer a pod, any number of readers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use agent_api::proto;
use bytes::Bytes;
use tokio::sync::watch;

use crate::cpus::CpuSet;
use crate::devices::{Assigned, taken_cpus};
use crate::host::host_ports::HostPort;
use crate::ledger::Timeline;
use crate::pod::spec::resources::Amounts;
use crate::pod::spec::scalars::Scalars;

/// The last word on one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Posted {
    /// Pod UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Generation of the intent that it answers.
    pub generation: u64,
    /// core/v1 PodStatus.
    pub status_json: Bytes,
    /// Nothing is held any more.
    pub terminated: bool,
    /// Milestones.
    pub timeline: Timeline,
    /// Grows with each change on this host.
    pub revision: u64,
    /// The present sandbox, while there is one.
    pub sandbox: Option<sandbox::spec::SandboxId>,
    /// Containers: present attempt, does it run, has it ever been created.
    pub containers: BTreeMap<String, Attempt>,
    /// What it asks of the host while it is not terminated.
    pub requests: Amounts,
    /// The same of huge pages and devices.
    pub scalars: Scalars,
    /// What it was given of what only one can have, while it is not terminated.
    pub assigned: Assigned,
    /// The host's ports that it keeps from others while it is not terminated.
    pub host_ports: Vec<HostPort>,
    /// Deletion has been asked for.
    pub deleting: bool,
}

/// One container's attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attempt {
    /// The present one.
    pub number: u32,
    /// It has been created.
    pub created: bool,
    /// It runs.
    pub running: bool,
    /// It is being started.
    pub starting: bool,
}

impl Posted {
    /// For the wire.
    pub fn to_wire(&self, initial: bool) -> proto::StatusUpdate {
        let t = self.timeline;
        proto::StatusUpdate {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            revision: self.revision,
            generation: self.generation,
            status_json: self.status_json.clone(),
            terminated: self.terminated,
            initial,
            snapshot_end: false,
            timeline: Some(proto::Timeline {
                accepted_ns: t.accepted_ns,
                held_ns: t.held_ns,
                image_ready_ns: t.image_ready_ns,
                sandbox_ready_ns: t.sandbox_ready_ns,
                started_ns: t.started_ns,
                first_byte_ns: t.first_byte_ns,
                finished_ns: t.finished_ns,
                released_ns: t.released_ns,
                held_boottime_ns: t.held_boottime_ns,
                released_boottime_ns: t.released_boottime_ns,
            }),
        }
    }
}

/// The board; clones are the same board.
#[derive(Debug, Clone)]
pub struct Board {
    posted: Arc<Mutex<BTreeMap<String, Posted>>>,
    revision: Arc<watch::Sender<u64>>,
    /// CPUs that one container has alone.
    exclusive: Arc<watch::Sender<CpuSet>>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            posted: Arc::default(),
            revision: Arc::new(watch::Sender::new(0)),
            exclusive: Arc::new(watch::Sender::new(CpuSet::new())),
        }
    }
}

impl Board {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Posted>> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a pod of which there is nothing to tell yet: its requests count, watchers see nothing.
    pub fn reserve(&self, posted: Posted) {
        let posted = Posted { revision: 0, status_json: Bytes::new(), ..posted };
        let mut map = self.lock();
        map.insert(posted.uid.clone(), posted);
        self.count_cpus(&map);
    }

    /// CPUs that containers have for themselves; whoever shares the others watches it.
    pub fn exclusive_cpus(&self) -> watch::Receiver<CpuSet> {
        self.exclusive.subscribe()
    }

    fn count_cpus(&self, map: &BTreeMap<String, Posted>) {
        let taken = taken_cpus(map.values().filter(|posted| !posted.terminated).map(|posted| &posted.assigned));
        self.exclusive.send_if_modified(|known| {
            let changes = *known != taken;
            *known = taken;
            changes
        });
    }

    /// Gives a pod other requests, unless `shortage` says what is lacking beside those of all others. Looked at and taken in
    /// one step, so that room is given once.
    pub fn resize(
        &self,
        uid: &str,
        requests: Amounts,
        shortage: impl FnOnce(Amounts) -> Option<String>,
    ) -> Option<String> {
        let mut map = self.lock();
        let others: Vec<Posted> = map.values().filter(|posted| posted.uid != uid).cloned().collect();
        let lacking = shortage(crate::host::admission::taken(&others).0);
        if lacking.is_none()
            && let Some(posted) = map.get_mut(uid)
        {
            posted.requests = requests;
        }
        lacking
    }

    /// Posts a pod's state. What says nothing new is no change.
    pub fn post(&self, mut posted: Posted) {
        let mut map = self.lock();
        if let Some(last) = map.get(&posted.uid) {
            posted.revision = last.revision;
            if *last == posted && last.revision > 0 {
                return;
            }
        }
        let next = *self.revision.borrow() + 1;
        posted.revision = next;
        map.insert(posted.uid.clone(), posted);
        self.count_cpus(&map);
        self.revision.send_replace(next);
    }

    /// Every pod of which there is something to tell, in the order of their changes.
    pub fn told(&self) -> Vec<Posted> {
        self.after(0)
    }

    /// Takes a forgotten pod off.
    pub fn remove(&self, uid: &str) {
        let mut map = self.lock();
        map.remove(uid);
        self.count_cpus(&map);
    }

    /// One pod.
    pub fn get(&self, uid: &str) -> Option<Posted> {
        self.lock().get(uid).cloned()
    }

    /// All pods.
    pub fn all(&self) -> Vec<Posted> {
        self.lock().values().cloned().collect()
    }

    /// Pods that changed after a revision, in the order of their changes. Several changes of one pod come as the last.
    pub fn after(&self, revision: u64) -> Vec<Posted> {
        let mut changed: Vec<Posted> = self.lock().values().filter(|p| p.revision > revision).cloned().collect();
        changed.sort_by_key(|p| p.revision);
        changed
    }

    /// Changes with each post.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_once() {
        let board = Board::default();
        let amounts = |milli_cpu| Amounts { milli_cpu, ..Amounts::default() };
        for uid in ["a", "b"] {
            board.post(Posted { uid: uid.to_owned(), requests: amounts(1000), ..Posted::default() });
        }
        let grow = |uid: &str| {
            board.resize(uid, amounts(2500), |used| (used.milli_cpu + 2500 > 4000).then(|| used.milli_cpu.to_string()))
        };
        assert_eq!(grow("a"), None);
        assert_eq!(grow("b").as_deref(), Some("2500"));
        assert_eq!(board.get("b").unwrap().requests, amounts(1000));
    }

    #[test]
    fn a_watcher_sees_the_last_word_of_each_changed_pod_in_order() {
        let board = Board::default();
        let post = |uid: &str, generation| {
            board.post(Posted { uid: uid.to_owned(), generation, ..Posted::default() });
        };
        post("a", 1);
        post("b", 1);
        post("a", 2);
        let seen: Vec<(String, u64, u64)> =
            board.after(0).into_iter().map(|p| (p.uid, p.generation, p.revision)).collect();
        assert_eq!(seen, [("b".to_owned(), 1, 2), ("a".to_owned(), 2, 3)]);
        assert_eq!(board.after(2).len(), 1);
        assert_eq!(*board.changes().borrow(), 3);
    }
}
