//! What the core asks of a pod source, and what it tells it: the seams between the pod controller and Kubernetes or a
//! manifest directory.
//!
//! A source is a bundle ([`SourcePorts`]) of four small traits. The core calls [`StatusSink::report`] and
//! [`EventSink::event`] on its hot path, so both return at once: the implementation coalesces, queues and retries.
//! Everything else is async and tells "could not ask" ([`PortError`]) apart from "does not exist" (`None`).

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::desired::{DesiredPod, PodRef, SourceKind};

/// A failed conversation with a source. None of these means that a thing does not exist.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The question could not be put, or the answer did not come: try again.
    #[error("could not ask for {what}")]
    CouldNotAsk {
        /// What was asked for, such as `secret default/db`.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The source will not give this to us for now (a 403 of the Node authorizer, whose graph may lag): try again.
    #[error("access to {what} is refused: {message}")]
    Denied {
        /// What was asked for.
        what: String,
        /// The source's own words.
        message: String,
    },
    /// This source cannot do it at all; the message says what to do instead.
    #[error("{what} is not available: {message}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        message: String,
    },
    /// The pod named by name and UID is another one by now, or gone: the request concerns nobody.
    #[error("pod {namespace}/{name} is not the pod {uid} any more")]
    Stale {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// The UID that was meant.
        uid: String,
    },
    /// The object was looked at and is not acceptable; the message names the field.
    #[error("invalid: {message}")]
    Invalid {
        /// Names the field and what to do.
        message: String,
    },
    /// An object of that name is there already.
    #[error("{what} exists already")]
    AlreadyExists {
        /// What exists.
        what: String,
    },
}

impl PortError {
    /// True when the same question may be answered later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::CouldNotAsk { .. } | Self::Denied { .. })
    }
}

/// The newest that is known of a pod.
#[derive(Debug, Clone)]
pub struct StatusReport {
    /// The intent's generation that this status answers; 0 when no agent has answered yet.
    pub generation: u64,
    /// The host that reports, or that the pod is placed on; empty when it is not placed.
    pub host: String,
    /// core/v1 `PodStatus` as JSON. From an agent it is the agent's own bytes, parsed without loss.
    pub status: Arc<serde_json::Value>,
    /// No container runs any more and nothing is held: with a deletion asked for, the API object may go.
    pub terminated: bool,
    /// The start and end of the pod in nanoseconds, when an agent has told.
    pub timeline: Option<agent_api::proto::Timeline>,
    /// The pod's start that this report is part of; none after it.
    pub start: tracing::Span,
}

/// Where statuses, placements and completed deletions go.
#[async_trait]
pub trait StatusSink: Send + Sync + 'static {
    /// A newer status; the last one counts. Returns at once: the implementation coalesces and retries by itself, and
    /// must not take a failed write for a written one.
    fn report(&self, pod: &Arc<DesiredPod>, report: StatusReport);
    /// Makes the placement durable (Kubernetes: annotation [`crate::desired::HOST_ANNOTATION`]; manifest: a file). The
    /// intent is sent only after this returned Ok. Doing it again with the same host is Ok.
    async fn place(&self, pod: &DesiredPod, host: &str) -> Result<(), PortError>;
    /// The pod has ended after its deletion was asked for: removes its object, on condition that it still has this UID.
    /// Ok when it is gone already. The source then calls `Desired::remove`, after which the agent is told to forget.
    async fn remove(&self, pod: &DesiredPod) -> Result<(), PortError>;
}

/// `Normal` or `Warning`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// As expected.
    Normal,
    /// Somebody should look.
    Warning,
}

impl EventType {
    /// As Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What happened to a pod, in a kubelet's words.
#[derive(Debug, Clone)]
pub struct Event {
    /// Normal or Warning.
    pub kind: EventType,
    /// UpperCamelCase, such as `FailedScheduling`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// `spec.containers{NAME}`, or empty for the pod.
    pub field_path: String,
    /// When it happened: nanoseconds since 1970.
    pub unix_ns: i64,
}

/// Where events go.
pub trait EventSink: Send + Sync + 'static {
    /// Records an event. Returns at once; equal events are counted together by the implementation.
    fn event(&self, pod: &PodRef, event: Event);
}

/// A ConfigMap or Secret: `data` and `binaryData` merged, Secrets decoded from base64.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ReferencedObject {
    /// Secrets only: `kubernetes.io/dockerconfigjson` and so on; empty for ConfigMaps.
    pub type_: String,
    /// Values by key.
    pub data: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for ReferencedObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReferencedObject").field("type_", &self.type_).field("keys", &self.data.keys()).finish()
    }
}

/// A request for a bound service-account token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenAsk {
    /// The pod that the token is bound to.
    pub pod: PodRef,
    /// `spec.serviceAccountName`, `default` when the pod says nothing.
    pub service_account: String,
    /// Empty: the API server's own.
    pub audience: String,
    /// Seconds, at least 600.
    pub expiration_seconds: i64,
}

/// A bound token.
#[derive(Clone)]
pub struct Token {
    /// The JWT: a secret.
    pub token: String,
    /// Seconds since 1970.
    pub expires_unix: i64,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires_unix", &self.expires_unix).finish_non_exhaustive()
    }
}

/// What kind of object a change concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReferenceKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

/// A ConfigMap or Secret that appeared, changed or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceChanged {
    /// Which of the two.
    pub kind: ReferenceKind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Looks up what pods refer to. `Ok(None)`: looked, and it is not there.
#[async_trait]
pub trait References: Send + Sync + 'static {
    /// A ConfigMap's values.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ReferencedObject>, PortError>;
    /// A Secret's values.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<ReferencedObject>, PortError>;
    /// A bound token. `None`: the service account does not exist.
    async fn token(&self, ask: &TokenAsk) -> Result<Option<Token>, PortError>;
    /// Tells of changes, as far as the source learns of them; a source that cannot know returns a silent channel (the
    /// core asks again with back-off anyway).
    fn changes(&self) -> broadcast::Receiver<ReferenceChanged>;
    /// What to do about an object that is not there, for people.
    fn absent_hint(&self) -> Option<&'static str> {
        None
    }
}

/// Where pods come from, as the client API sees it: created and deleted by people.
#[async_trait]
pub trait PodSource: Send + Sync + 'static {
    /// Which source this is.
    fn kind(&self) -> SourceKind;
    /// Takes a core/v1 Pod durably; it then appears in the desired store. Returns who it is.
    async fn create(&self, pod: serde_json::Value) -> Result<PodRef, PortError>;
    /// Asks for the deletion of this very pod (by UID), with its own grace period or the given one (seconds).
    /// Ok(false): it is gone already.
    async fn delete(&self, pod: &PodRef, grace_seconds: Option<i64>) -> Result<bool, PortError>;
}

/// Everything that the core needs of one source.
#[derive(Clone)]
pub struct SourcePorts {
    /// Which source this is.
    pub kind: SourceKind,
    /// Statuses and placements.
    pub status: Arc<dyn StatusSink>,
    /// Events.
    pub events: Arc<dyn EventSink>,
    /// ConfigMaps, Secrets, tokens.
    pub references: Arc<dyn References>,
    /// Creation and deletion by people.
    pub pods: Arc<dyn PodSource>,
}

impl std::fmt::Debug for SourcePorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourcePorts").field("kind", &self.kind).finish_non_exhaustive()
    }
}
