//! What vkubelet wants of one pod, parsed and checked.

use std::sync::Arc;

use agent_api::proto;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::pod::changes;
use crate::resolved::Resolved;

/// Who wrote the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A user of the cluster.
    Kubernetes,
    /// The operator of the host, by a manifest file: may name host paths as images.
    Manifest,
}

/// Deletion was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Seconds from SIGTERM to SIGKILL.
    pub grace_seconds: u64,
}

/// Desired state of one pod.
#[derive(Debug, Clone)]
pub struct Intent {
    /// Pod UID.
    pub uid: String,
    /// Grows with each change.
    pub generation: u64,
    /// The API server's own JSON.
    pub raw: Arc<Value>,
    /// The same, typed; fields that this version does not know are missing here.
    pub pod: Arc<Pod>,
    /// Values behind references.
    pub resolved: Arc<Resolved>,
    /// Who wrote it.
    pub source: Source,
    /// Deletion, when asked for.
    pub deletion: Option<Deletion>,
    /// The trace context of the pod's start, as W3C text; empty when nothing is traced.
    pub traceparent: String,
}

/// Why an intent makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum IntentError {
    /// No UID.
    #[error("intent without a pod uid")]
    NoUid,
    /// Not JSON, or not a Pod.
    #[error("intent of pod {uid} carries no valid core/v1 Pod")]
    Pod {
        /// Pod UID.
        uid: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The Pod inside is another one.
    #[error("intent of pod {uid} carries the pod {found:?}")]
    OtherPod {
        /// UID of the intent.
        uid: String,
        /// UID of the pod inside.
        found: String,
    },
    /// A Pod must have a name, a namespace, a specification and a container.
    #[error("pod {uid} has no {field}")]
    Missing {
        /// Pod UID.
        uid: String,
        /// What is missing.
        field: &'static str,
    },
    /// Neither `kubernetes` nor `manifest`.
    #[error("intent of pod {uid} has an unknown source {found:?}")]
    UnknownSource {
        /// Pod UID.
        uid: String,
        /// What it said.
        found: String,
    },
}

impl Intent {
    /// From the wire.
    pub fn from_wire(wire: proto::Intent) -> Result<Self, IntentError> {
        let uid = wire.uid;
        let raw: Value =
            serde_json::from_slice(&wire.pod_json).map_err(|source| IntentError::Pod { uid: uid.clone(), source })?;
        let source = match wire.source.as_str() {
            "kubernetes" => Source::Kubernetes,
            "manifest" => Source::Manifest,
            found => return Err(IntentError::UnknownSource { uid, found: found.to_owned() }),
        };
        let deletion =
            wire.delete.then(|| Deletion { grace_seconds: u64::try_from(wire.grace_seconds).unwrap_or_default() });
        let resolved = wire.resolved.map(Resolved::from).unwrap_or_default();
        let intent = Self::new(uid, wire.generation, raw, resolved, source, deletion)?;
        Ok(Self { traceparent: wire.traceparent, ..intent })
    }

    /// From its parts.
    pub fn new(
        uid: String,
        generation: u64,
        raw: Value,
        resolved: Resolved,
        source: Source,
        deletion: Option<Deletion>,
    ) -> Result<Self, IntentError> {
        if uid.is_empty() {
            return Err(IntentError::NoUid);
        }
        let pod: Pod =
            serde_json::from_value(raw.clone()).map_err(|source| IntentError::Pod { uid: uid.clone(), source })?;
        let missing = |field| IntentError::Missing { uid: uid.clone(), field };
        match pod.metadata.uid.as_deref() {
            Some(found) if found != uid => {
                return Err(IntentError::OtherPod { found: found.to_owned(), uid });
            }
            _ => {}
        }
        if pod.metadata.name.as_deref().unwrap_or_default().is_empty() {
            return Err(missing("name"));
        }
        if pod.metadata.namespace.as_deref().unwrap_or_default().is_empty() {
            return Err(missing("namespace"));
        }
        match &pod.spec {
            None => return Err(missing("spec")),
            Some(spec) if spec.containers.is_empty() => return Err(missing("container")),
            Some(_) => {}
        }
        Ok(Self {
            uid,
            generation,
            raw: Arc::new(raw),
            pod: Arc::new(pod),
            resolved: Arc::new(resolved),
            source,
            deletion,
            traceparent: String::new(),
        })
    }

    /// The same with what of `old` cannot be changed, and the paths of that.
    pub fn keeping(self, old: &Self) -> (Self, Vec<String>) {
        self.with(|raw| changes::keep(&old.raw, raw))
    }

    /// The same with the images of `old` where containers were made from them, and the paths of those.
    pub fn keeping_images(self, old: &Self, made: impl Fn(&str) -> bool) -> (Self, Vec<String>) {
        self.with(|raw| changes::keep_images(&old.raw, raw, made))
    }

    fn with(self, change: impl FnOnce(&mut Value) -> Vec<String>) -> (Self, Vec<String>) {
        let mut raw = (*self.raw).clone();
        let kept = change(&mut raw);
        if kept.is_empty() {
            return (self, kept);
        }
        match serde_json::from_value(raw.clone()) {
            Ok(pod) => (Self { raw: Arc::new(raw), pod: Arc::new(pod), ..self }, kept),
            Err(error) => {
                tracing::error!(%error, pod.uid = self.uid, "a pod with what it had is no pod");
                (self, Vec::new())
            }
        }
    }

    /// The pod's own status says that it has ended for good: it is never started again.
    pub fn has_ended(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }
}
