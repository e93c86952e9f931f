//! The values that callers give and get.

use agent_api::usage::{Held, Used};

use super::clock::Instant;

/// A sandbox that is about to hold resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interval {
    /// Pod UID.
    pub pod_uid: String,
    /// Pod namespace; also the tenant.
    pub pod_namespace: String,
    /// Pod name.
    pub pod_name: String,
    /// The sandbox; an id is used once.
    pub sandbox_id: String,
    /// What it will hold.
    pub held: Held,
    /// `namespace` or `microvm`.
    pub sandbox_kind: String,
    /// `on-demand`, `spot` …
    pub price_class: String,
    /// Image digests of the pod's containers, as far as they are known.
    pub images: Vec<String>,
}

/// When an interval started.
pub type StartedAt = Instant;

/// When an interval ended.
pub type StoppedAt = Instant;

/// A sandbox that ended while the agent was away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Which.
    pub sandbox_id: String,
    /// CLOCK_BOOTTIME in nanoseconds at which its resources were released, from a durable record.
    pub boottime_ns: u64,
}

/// What [`adopt`](super::Meter::adopt) found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Intervals that go on: sandbox and start.
    pub continued: Vec<(String, StartedAt)>,
    /// Intervals that were closed: sandbox and end.
    pub reconciled: Vec<(String, StoppedAt)>,
    /// Live sandboxes of which the meter knows nothing: they must be started or destroyed by the caller.
    pub unmetered: Vec<String>,
}

/// One interval that is open now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveInterval {
    /// What is held.
    pub interval: Interval,
    /// Since when.
    pub started: StartedAt,
    /// For how long, in nanoseconds.
    pub duration_ns: u64,
    /// What has been used.
    pub used: Used,
    /// Memory in use at the last look, in bytes.
    pub memory_bytes: u64,
}

/// Everything that is held at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveView {
    /// The kernel's boot id.
    pub boot_id: String,
    /// The instant.
    pub now: Instant,
    /// Open intervals by sandbox id.
    pub intervals: Vec<LiveInterval>,
}
