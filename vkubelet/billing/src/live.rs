//! How open intervals stand at this nanosecond, told by the hosts.

use agent_api::usage::{Held, Used};
use async_trait::async_trait;

/// One interval that is open now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveInterval {
    /// Host id.
    pub host: String,
    /// The host's boot.
    pub boot_id: String,
    /// CLOCK_BOOTTIME of that host now, in nanoseconds.
    pub now_ns: u64,
    /// Wall time now in nanoseconds since 1970, a label.
    pub now_wall_ns: u64,
    /// Pod UID.
    pub uid: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// The sandbox.
    pub sandbox_id: String,
    /// CLOCK_BOOTTIME in nanoseconds at which it was first held.
    pub start_ns: u64,
    /// Wall time of that instant in nanoseconds since 1970, a label.
    pub start_wall_ns: u64,
    /// What is held.
    pub held: Held,
    /// What has been used.
    pub used: Used,
    /// `namespace` or `microvm`.
    pub sandbox_kind: String,
    /// `on-demand`, `spot` …
    pub price_class: String,
    /// Image digests.
    pub images: Vec<String>,
}

/// A host could not be asked. It says nothing about the pod.
#[derive(Debug, thiserror::Error)]
#[error("ask host {host} for live usage")]
pub struct LiveError {
    /// Which.
    pub host: String,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Who can tell.
#[async_trait]
pub trait LiveUsage: std::fmt::Debug + Send + Sync {
    /// The pod's open intervals on all hosts that are connected; none when it holds nothing there.
    async fn live(&self, uid: &str) -> Result<Vec<LiveInterval>, LiveError>;
}

/// Nobody can: bills stand at what is stored.
#[derive(Debug, Clone, Copy)]
pub struct NoLiveUsage;

#[async_trait]
impl LiveUsage for NoLiveUsage {
    async fn live(&self, _uid: &str) -> Result<Vec<LiveInterval>, LiveError> {
        Ok(Vec::new())
    }
}
