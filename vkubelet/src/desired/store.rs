//! The map and its subscribers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, watch};

use super::{Deletion, DesiredPod, SourceKind};

/// How many changes a slow subscriber may be behind before it is told to take a snapshot.
const CHANGES_KEPT: usize = 4096;

/// Deletions of removed pods that are kept for whoever ends them.
const DELETIONS_KEPT: usize = 4096;

/// One pod's desired state changed: look it up (absent: removed).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub uid: String,
}

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Desired {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pods: Mutex<BTreeMap<String, Arc<DesiredPod>>>,
    /// How pods that are removed were to end.
    deletions: Mutex<BTreeMap<String, Deletion>>,
    changes: broadcast::Sender<Change>,
    listed: watch::Sender<BTreeSet<SourceKind>>,
    expected: BTreeSet<SourceKind>,
}

/// A snapshot and what follows it. On `Lagged`, take [`Desired::all`] again.
#[derive(Debug)]
pub struct Subscription {
    /// All pods at this moment.
    pub pods: Vec<Arc<DesiredPod>>,
    /// Every change since.
    pub changes: broadcast::Receiver<Change>,
}

impl Desired {
    /// An empty store that expects these sources to list.
    #[must_use]
    pub fn new(expected: impl IntoIterator<Item = SourceKind>) -> Self {
        Self {
            inner: Arc::new(Inner {
                pods: Mutex::default(),
                deletions: Mutex::default(),
                changes: broadcast::channel(CHANGES_KEPT).0,
                listed: watch::channel(BTreeSet::new()).0,
                expected: expected.into_iter().collect(),
            }),
        }
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Arc<DesiredPod>>> {
        self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the newest state of a pod. The same bytes again change nothing and tell nobody.
    pub fn upsert(&self, pod: DesiredPod) {
        let uid = pod.pod_ref.uid.clone();
        let mut pods = self.pods();
        let same = pods.get(&uid).is_some_and(|old| {
            old.pod_json == pod.pod_json && old.deletion == pod.deletion && old.placement == pod.placement
        });
        if same {
            return;
        }
        pods.insert(uid.clone(), Arc::new(pod));
        // Sent under the lock, so that the order of changes is the order of states.
        let _ = self.inner.changes.send(Change { uid });
    }

    /// The pod's object is gone. Returns whether it was there.
    pub fn remove(&self, uid: &str) -> bool {
        let mut pods = self.pods();
        let removed = pods.remove(uid);
        if let Some(pod) = &removed {
            if let Some(deletion) = pod.deletion {
                let mut deletions = self.deletions();
                if deletions.len() >= DELETIONS_KEPT {
                    deletions.clear();
                }
                deletions.insert(uid.to_owned(), deletion);
            }
            let _ = self.inner.changes.send(Change { uid: uid.to_owned() });
        }
        removed.is_some()
    }

    /// How a pod that was removed was to end: a forced deletion is marked and removed within one look at the store. Told once.
    #[must_use]
    pub fn take_deletion(&self, uid: &str) -> Option<Deletion> {
        self.deletions().remove(uid)
    }

    fn deletions(&self) -> MutexGuard<'_, BTreeMap<String, Deletion>> {
        self.inner.deletions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a relist: this is all that the source has. What it had before and is not in `pods` is removed.
    pub fn replace(&self, source: SourceKind, pods: Vec<DesiredPod>) {
        let keep: BTreeSet<String> = pods.iter().map(|p| p.pod_ref.uid.clone()).collect();
        let gone: Vec<String> = self
            .pods()
            .values()
            .filter(|p| p.source == source && !keep.contains(p.uid()))
            .map(|p| p.pod_ref.uid.clone())
            .collect();
        for pod in pods {
            self.upsert(pod);
        }
        for uid in gone {
            self.remove(&uid);
        }
    }

    /// The source's first complete list is in the store.
    pub fn mark_listed(&self, source: SourceKind) {
        self.inner.listed.send_if_modified(|set| set.insert(source));
    }

    /// True once every expected source has listed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.inner.expected.is_subset(&self.inner.listed.borrow())
    }

    /// Waits until every expected source has listed.
    pub async fn complete(&self) {
        let mut listed = self.inner.listed.subscribe();
        // The sender lives in `self`: waiting cannot fail.
        let _ = listed.wait_for(|set| self.inner.expected.is_subset(set)).await;
    }

    /// One pod.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Arc<DesiredPod>> {
        self.pods().get(uid).cloned()
    }

    /// The pod of that name: the one without a deletion if there are several.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<DesiredPod>> {
        self.pods()
            .values()
            .filter(|p| p.pod_ref.namespace == namespace && p.pod_ref.name == name)
            .min_by_key(|p| p.deletion.is_some())
            .cloned()
    }

    /// All pods.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<DesiredPod>> {
        self.pods().values().cloned().collect()
    }

    /// A snapshot and every change after it.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        let pods = self.pods();
        Subscription { pods: pods.values().cloned().collect(), changes: self.inner.changes.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn pod(uid: &str, extra: &str) -> DesiredPod {
        let json = format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"uid":"{uid}","namespace":"default","name":"p"{extra}}}}}"#
        );
        DesiredPod::from_json(SourceKind::Kubernetes, Bytes::from(json)).unwrap()
    }

    #[test]
    fn the_same_state_again_tells_nobody() {
        let desired = Desired::new([]);
        let mut sub = desired.subscribe();
        desired.upsert(pod("a", ""));
        desired.upsert(pod("a", ""));
        assert_eq!(sub.changes.try_recv().unwrap().uid, "a");
        assert!(sub.changes.try_recv().is_err());
    }

    #[test]
    fn a_removed_pods_deletion_is_told_once() {
        let desired = Desired::new([]);
        desired.upsert(pod("a", r#","deletionTimestamp":"2026-01-01T00:00:00Z","deletionGracePeriodSeconds":0"#));
        desired.upsert(pod("b", ""));
        assert!(desired.remove("a") && desired.remove("b"));
        assert_eq!(desired.take_deletion("a"), Some(Deletion { grace_seconds: 0 }));
        assert_eq!((desired.take_deletion("a"), desired.take_deletion("b")), (None, None));
    }

    #[test]
    fn a_relist_removes_only_its_own_source() {
        let desired = Desired::new([]);
        let mut manifest = pod("m", "");
        manifest.source = SourceKind::Manifest;
        desired.upsert(manifest);
        desired.upsert(pod("a", ""));
        desired.upsert(pod("b", ""));
        desired.replace(SourceKind::Kubernetes, vec![pod("b", "")]);
        let left: Vec<_> = desired.all().iter().map(|p| p.uid().to_owned()).collect();
        assert_eq!(left, ["b", "m"]);
    }

    #[test]
    fn find_prefers_the_pod_that_is_not_going() {
        let desired = Desired::new([]);
        desired.upsert(pod("a", r#","deletionTimestamp":"2026-01-01T00:00:00Z","deletionGracePeriodSeconds":5"#));
        assert_eq!(desired.find("default", "p").unwrap().deletion.unwrap().grace_seconds, 5);
        desired.upsert(pod("b", ""));
        assert_eq!(desired.find("default", "p").unwrap().uid(), "b");
    }

    #[tokio::test]
    async fn complete_waits_for_every_expected_source() {
        let desired = Desired::new([SourceKind::Kubernetes, SourceKind::Manifest]);
        desired.mark_listed(SourceKind::Manifest);
        assert!(!desired.is_complete());
        let waiting = tokio::spawn({
            let desired = desired.clone();
            async move { desired.complete().await }
        });
        desired.mark_listed(SourceKind::Kubernetes);
        waiting.await.unwrap();
    }
}
