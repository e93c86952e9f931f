//! Intents and their generations.

use std::sync::atomic::{AtomicU64, Ordering};

use agent_api::proto::{Intent, Resolved};
use agent_api::transport::MAX_MESSAGE;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::desired::DesiredPod;

/// Room for the envelope around an intent in a gRPC message.
const ENVELOPE: usize = 4096;

/// Gives generations that grow over all pods and over all lives: the epoch above, a counter below.
#[derive(Debug)]
pub struct Generations {
    next: AtomicU64,
}

impl Generations {
    /// For this life's epoch.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self { next: AtomicU64::new((epoch << 32) | 1) }
    }

    /// A number higher than any before.
    pub fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

/// Too much for one message.
#[derive(Debug, thiserror::Error)]
#[error(
    "the pod and what it refers to are {bytes} bytes together, above the limit of {limit}: make its ConfigMaps and Secrets smaller"
)]
pub struct TooLarge {
    bytes: usize,
    limit: usize,
}

/// The intent to run; `traceparent` is the context of the pod's start, empty when nothing is traced.
pub fn run(pod: &DesiredPod, resolved: Resolved, generation: u64, traceparent: String) -> Result<Intent, TooLarge> {
    let intent = Intent {
        uid: pod.uid().to_owned(),
        generation,
        pod_json: pod.pod_json.clone(),
        resolved: Some(resolved),
        source: pod.source.as_str().to_owned(),
        delete: false,
        grace_seconds: 0,
        traceparent,
    };
    let (bytes, limit) = (intent.encoded_len(), MAX_MESSAGE - ENVELOPE);
    if bytes > limit { Err(TooLarge { bytes, limit }) } else { Ok(intent) }
}

/// The intent to end.
#[must_use]
pub fn delete(pod: &DesiredPod, grace_seconds: i64, generation: u64) -> Intent {
    Intent {
        uid: pod.uid().to_owned(),
        generation,
        pod_json: pod.pod_json.clone(),
        resolved: None,
        source: pod.source.as_str().to_owned(),
        delete: true,
        grace_seconds,
        traceparent: String::new(),
    }
}

/// "Keep what you have": in a complete set, for a pod whose references are not looked up yet.
#[must_use]
pub fn keep(pod: &DesiredPod) -> Intent {
    Intent {
        uid: pod.uid().to_owned(),
        generation: 0,
        pod_json: pod.pod_json.clone(),
        resolved: None,
        source: pod.source.as_str().to_owned(),
        delete: false,
        grace_seconds: 0,
        traceparent: String::new(),
    }
}

/// Two states of a pod with the same digest need no new intent: what the node itself writes (status, placement) and what the
/// server counts is left out.
#[must_use]
pub fn digest(pod: &DesiredPod) -> [u8; 32] {
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(&pod.pod_json) else {
        return Sha256::digest(&pod.pod_json).into();
    };
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
        if let Some(meta) = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
            for key in ["resourceVersion", "managedFields", "generation"] {
                meta.remove(key);
            }
            let mut empty = false;
            if let Some(annotations) = meta.get_mut("annotations").and_then(serde_json::Value::as_object_mut) {
                annotations.remove(crate::desired::HOST_ANNOTATION);
                empty = annotations.is_empty();
            }
            if empty {
                meta.remove("annotations");
            }
        }
    }
    Sha256::digest(value.to_string().as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::SourceKind;

    fn pod(json: &str) -> DesiredPod {
        DesiredPod::from_json(SourceKind::Kubernetes, bytes::Bytes::from(json.to_owned())).unwrap()
    }

    #[test]
    fn our_own_writes_are_no_change() {
        let a = pod(
            r#"{"metadata":{"uid":"u","namespace":"n","name":"p","resourceVersion":"1"},"spec":{"containers":[]}}"#,
        );
        let b = pod(
            r#"{"metadata":{"uid":"u","namespace":"n","name":"p","resourceVersion":"2","annotations":{"nodeless.dev/host":"h"}},
                "spec":{"containers":[]},"status":{"phase":"Running"}}"#,
        );
        let c =
            pod(r#"{"metadata":{"uid":"u","namespace":"n","name":"p","labels":{"a":"b"}},"spec":{"containers":[]}}"#);
        assert_eq!(digest(&a), digest(&b));
        assert_ne!(digest(&a), digest(&c));
    }

    #[test]
    fn generations_grow_over_lives() {
        let old = Generations::new(1_800_000_000);
        let last = (0..1000).map(|_| old.next()).max().unwrap();
        assert!(Generations::new(1_800_000_001).next() > last);
    }

    #[test]
    fn what_does_not_fit_one_message_is_refused() {
        let p = pod(r#"{"metadata":{"uid":"u","namespace":"n","name":"p"}}"#);
        let object = agent_api::proto::Object {
            name: "big".into(),
            data: [("k".to_owned(), vec![0u8; MAX_MESSAGE].into())].into(),
        };
        let resolved = Resolved { config_maps: vec![object], ..Resolved::default() };
        assert!(run(&p, resolved, 1, String::new()).is_err());
    }
}
