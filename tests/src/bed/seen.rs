//! What the API server told a watcher, kept.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

/// An Event of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    /// `Normal` or `Warning`.
    pub kind: String,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
    /// How often.
    pub count: i32,
    /// Which container, as a field path; empty for the pod.
    pub field_path: String,
    /// By name, for versions of one Event.
    name: String,
    pod: String,
}

impl fmt::Display for PodEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} x{} {} {}", self.kind, self.reason, self.count, self.field_path, self.message)
    }
}

/// Everything seen so far.
#[derive(Debug, Default)]
pub(super) struct All {
    pods: BTreeMap<String, (Vec<Value>, bool)>,
    events: Vec<PodEvent>,
}

impl All {
    /// A pod's newest version, if it is there.
    pub(super) fn newest(&self, pod: &str) -> Option<&Value> {
        self.pods.get(pod).filter(|(_, gone)| !gone).and_then(|(versions, _)| versions.last())
    }

    pub(super) fn versions(&self, pod: &str) -> &[Value] {
        self.pods.get(pod).map(|(versions, _)| versions.as_slice()).unwrap_or_default()
    }

    pub(super) fn is_gone(&self, pod: &str) -> bool {
        self.pods.get(pod).is_some_and(|(_, gone)| *gone)
    }

    pub(super) fn events(&self, pod: &str) -> Vec<PodEvent> {
        self.events.iter().filter(|event| event.pod == pod).cloned().collect()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.pods.keys().cloned().collect()
    }
}

/// Shared between watchers and cases.
#[derive(Debug, Default)]
pub(super) struct Seen {
    all: Mutex<All>,
    news: Condvar,
}

impl Seen {
    pub(super) fn look<T>(&self, look: impl FnOnce(&All) -> T) -> T {
        look(&self.all.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at each news until something is found or the time is up.
    pub(super) fn wait<T>(&self, deadline: Instant, look: impl Fn(&All) -> Option<T>) -> Option<T> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = look(&all) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            all = self.news.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn change(&self, change: impl FnOnce(&mut All)) {
        change(&mut self.all.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.notify_all();
    }
}

pub(super) async fn watch_pods(client: Client, namespace: String, seen: Arc<Seen>) {
    let mut news = watcher(Api::<Pod>::namespaced(client, &namespace), watcher::Config::default()).boxed();
    while let Some(news) = news.next().await {
        let (pod, gone) = match news {
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => (pod, false),
            Ok(watcher::Event::Delete(pod)) => (pod, true),
            Ok(watcher::Event::Init | watcher::Event::InitDone) => continue,
            Err(error) => {
                eprintln!("watching pods: {error}");
                continue;
            }
        };
        let value = serde_json::to_value(&pod).unwrap_or_default();
        seen.change(|all| {
            let (versions, was_gone) = all.pods.entry(pod.name_any()).or_default();
            versions.push(value);
            *was_gone = gone;
        });
    }
}

pub(super) async fn watch_events(client: Client, namespace: String, seen: Arc<Seen>) {
    let mut news = watcher(Api::<Event>::namespaced(client, &namespace), watcher::Config::default()).boxed();
    while let Some(news) = news.next().await {
        let event = match news {
            Ok(watcher::Event::Apply(event) | watcher::Event::InitApply(event)) => event,
            Ok(_) => continue,
            Err(error) => {
                eprintln!("watching Events: {error}");
                continue;
            }
        };
        let name = event.name_any();
        let event = PodEvent {
            kind: event.type_.unwrap_or_default(),
            reason: event.reason.unwrap_or_default(),
            message: event.message.unwrap_or_default(),
            count: event.count.unwrap_or_default(),
            field_path: event.involved_object.field_path.unwrap_or_default(),
            name: name.clone(),
            pod: event.involved_object.name.unwrap_or_default(),
        };
        seen.change(|all| match all.events.iter_mut().find(|known| known.name == name) {
            Some(known) => *known = event,
            None => all.events.push(event),
        });
    }
}
