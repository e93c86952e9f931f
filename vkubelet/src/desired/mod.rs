//! The store of desired pods: what each source wants to exist, keyed by UID.
//!
//! ```text
//!   kubernetes watch ─┐ upsert/remove, mark_listed           ┌─ dispatcher: one owner task per pod
//!   manifest files  ──┴────────► Desired ──── Change ────────┴─ (lagging receiver: take a snapshot)
//! ```
//!
//! A source calls [`Desired::mark_listed`] once its first complete list is in. Until every expected source has done so
//! nobody may conclude from a pod's absence that it is not wanted: no complete-set sync is sent to any host before.

mod store;

pub use store::{Change, Desired, Subscription};

use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;

/// The annotation that holds a pod's placement.
pub const HOST_ANNOTATION: &str = "nodeless.dev/host";

/// Where a pod comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceKind {
    /// The API server.
    Kubernetes,
    /// The manifest directory.
    Manifest,
}

impl SourceKind {
    /// As the wire says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Manifest => "manifest",
        }
    }
}

/// Who a pod is. Two pods of one name are two pods: the UID decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// The identity.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for PodRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A deletion that has been asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// Seconds; the pod's own period already applied (`metadata.deletionGracePeriodSeconds`).
    pub grace_seconds: i64,
}

/// One pod as its source wants it.
#[derive(Debug, Clone)]
pub struct DesiredPod {
    /// Who.
    pub pod_ref: PodRef,
    /// Where from.
    pub source: SourceKind,
    /// The source's own JSON of the whole core/v1 Pod: unknown fields included. This is what travels to the agent.
    pub pod_json: Bytes,
    /// The same, parsed.
    pub pod: Arc<Pod>,
    /// Set when the deletion has been asked for.
    pub deletion: Option<Deletion>,
    /// The durable placement, when there is one (Kubernetes: [`HOST_ANNOTATION`]; manifest: its file).
    pub placement: Option<String>,
}

/// A pod's JSON that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum PodJsonError {
    /// Not a core/v1 Pod.
    #[error("parse a pod")]
    Parse(#[source] serde_json::Error),
    /// metadata.uid, namespace or name is missing.
    #[error("pod has no metadata.{0}")]
    Missing(&'static str),
}

impl DesiredPod {
    /// Reads a complete Pod object (with UID) as an API server gives it: deletion and placement are taken from its
    /// metadata.
    pub fn from_json(source: SourceKind, pod_json: Bytes) -> Result<Self, PodJsonError> {
        let pod: Pod = serde_json::from_slice(&pod_json).map_err(PodJsonError::Parse)?;
        let meta = &pod.metadata;
        let pod_ref = PodRef {
            uid: meta.uid.clone().filter(|s| !s.is_empty()).ok_or(PodJsonError::Missing("uid"))?,
            namespace: meta.namespace.clone().filter(|s| !s.is_empty()).ok_or(PodJsonError::Missing("namespace"))?,
            name: meta.name.clone().filter(|s| !s.is_empty()).ok_or(PodJsonError::Missing("name"))?,
        };
        let deletion = meta.deletion_timestamp.as_ref().map(|_| Deletion {
            grace_seconds: meta
                .deletion_grace_period_seconds
                .or_else(|| pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds))
                .unwrap_or(30)
                .max(0),
        });
        let placement =
            meta.annotations.as_ref().and_then(|a| a.get(HOST_ANNOTATION)).filter(|h| !h.is_empty()).cloned();
        Ok(Self { pod_ref, source, pod_json, pod: Arc::new(pod), deletion, placement })
    }

    /// True when the source's own status says that the pod has ended for good (Succeeded or Failed): it is never
    /// started again, by anybody.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.pod
            .status
            .as_ref()
            .and_then(|s| s.phase.as_deref())
            .is_some_and(|phase| phase == "Succeeded" || phase == "Failed")
    }

    /// The pod's UID.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.pod_ref.uid
    }
}
