//! What is known of every pod, for everybody who reads: sessions (what to sync), the client API, the kubelet API.
//!
//! A pod's own task is the only writer of its entry's state; sessions add what agents tell (applied, events).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_api::proto::{Intent, Refusal, StatusUpdate};
use tokio::sync::{mpsc, watch};

use crate::desired::DesiredPod;
use crate::ports::{Event, StatusReport};

/// Events kept per pod for people.
const EVENTS_KEPT: usize = 64;

/// What wakes a pod's task.
#[derive(Debug, Clone)]
pub enum Input {
    /// The desired store has something new of it.
    Desired,
    /// Its agent says how it is.
    Status(Box<StatusUpdate>),
    /// Its agent refused its intent in a complete-set sync.
    Refused(Refusal),
    /// Its host is connected and has its complete set.
    HostUp,
    /// On this connection its agent listed all its pods, without this one.
    Absent {
        /// Which connection.
        connection: u64,
    },
    /// Its host has been away for longer than the grace period.
    HostLost,
    /// Something that it refers to has changed.
    References,
}

/// When what happened, in nanoseconds since 1970; 0: not yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// vkubelet saw the pod.
    pub seen_ns: u64,
    /// Its placement was durable.
    pub placed_ns: u64,
    /// Its first intent was acknowledged by the agent.
    pub sent_ns: u64,
}

/// The last delivery of an intent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// On which connection; 0: never.
    pub connection: u64,
    /// Which generation.
    pub generation: u64,
}

/// One pod.
#[derive(Debug, Clone)]
pub struct Entry {
    /// As its source wants it; the last state when it is gone.
    pub pod: Arc<DesiredPod>,
    /// The object is gone from its source.
    pub gone: bool,
    /// Where it is placed, durably.
    pub host: Option<String>,
    /// The newest intent.
    pub intent: Option<Arc<Intent>>,
    /// Its last delivery.
    pub applied: Applied,
    /// The newest status.
    pub report: Option<StatusReport>,
    /// Why it does not go on, for people.
    pub waiting: Option<String>,
    /// The last events.
    pub events: VecDeque<Event>,
    /// When what happened.
    pub times: Times,
    mailbox: mpsc::UnboundedSender<Input>,
}

/// All pods. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Board {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    changed: watch::Sender<u64>,
}

impl Default for Board {
    fn default() -> Self {
        Self { entries: Arc::default(), changed: watch::channel(0).0 }
    }
}

impl Board {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a pod.
    pub fn enter(&self, pod: Arc<DesiredPod>, seen_ns: u64, mailbox: mpsc::UnboundedSender<Input>) {
        let entry = Entry {
            host: pod.placement.clone(),
            gone: false,
            intent: None,
            applied: Applied::default(),
            report: None,
            waiting: None,
            events: VecDeque::new(),
            times: Times { seen_ns, ..Times::default() },
            mailbox,
            pod,
        };
        self.entries().insert(entry.pod.uid().to_owned(), entry);
        self.tell();
    }

    /// The pod is finished.
    pub fn leave(&self, uid: &str) {
        self.entries().remove(uid);
        self.tell();
    }

    /// Changes an entry, if it is there.
    pub fn update(&self, uid: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries().get_mut(uid) {
            change(entry);
        }
        self.tell();
    }

    /// One pod.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Entry> {
        self.entries().get(uid).cloned()
    }

    /// The pod of that name: one that is not going away, if there are several.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<Entry> {
        self.entries()
            .values()
            .filter(|e| e.pod.pod_ref.namespace == namespace && e.pod.pod_ref.name == name)
            .min_by_key(|e| (e.gone, e.pod.deletion.is_some()))
            .cloned()
    }

    /// Every pod, by namespace and name.
    #[must_use]
    pub fn all(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.entries().values().cloned().collect();
        all.sort_by(|a, b| {
            let key =
                |e: &Entry| (e.pod.pod_ref.namespace.clone(), e.pod.pod_ref.name.clone(), e.pod.pod_ref.uid.clone());
            key(a).cmp(&key(b))
        });
        all
    }

    /// Everything that is placed on a host.
    #[must_use]
    pub fn on_host(&self, host: &str) -> Vec<Entry> {
        self.entries().values().filter(|e| e.host.as_deref() == Some(host)).cloned().collect()
    }

    /// Wakes a pod's task. False: there is none.
    pub fn send(&self, uid: &str, input: Input) -> bool {
        self.entries().get(uid).is_some_and(|e| e.mailbox.send(input).is_ok())
    }

    /// Records an event for people.
    pub fn event(&self, uid: &str, event: Event) {
        self.update(uid, |entry| {
            if entry.events.len() == EVENTS_KEPT {
                entry.events.pop_front();
            }
            entry.events.push_back(event);
        });
    }

    /// Wakes on any change of any pod.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }
}
