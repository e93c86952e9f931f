//! What sandboxes use, as the meter sees it.

use std::fmt::Debug;

use agent_api::usage::Used;
use async_trait::async_trait;

/// A sandbox's counters now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsedNow {
    /// CPU time since the sandbox was made, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use at this instant, in bytes.
    pub memory_bytes: u64,
    /// Bytes received since the sandbox was made.
    pub network_rx_bytes: u64,
    /// Bytes sent since the sandbox was made.
    pub network_tx_bytes: u64,
}

/// Who can tell what a sandbox uses.
#[async_trait]
pub trait UsedProvider: Debug + Send + Sync {
    /// The sandbox's counters; `None` when they cannot be read now (the last known ones count on).
    async fn used(&self, sandbox_id: &str) -> Option<UsedNow>;
}

/// Counters never go back, and memory is integrated over time (trapezoids between two looks).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Integral {
    pub(super) used: Used,
    /// Memory at the last look and its CLOCK_BOOTTIME in nanoseconds.
    pub(super) last: Option<(u64, u64)>,
}

impl Integral {
    /// Takes a look at `boottime_ns`; `since` is when the integral before it was taken, if no look is remembered.
    pub(super) fn look(&mut self, now: UsedNow, boottime_ns: u64, since: u64) {
        let used = &mut self.used;
        used.cpu_ns = used.cpu_ns.max(now.cpu_ns);
        used.network_rx_bytes = used.network_rx_bytes.max(now.network_rx_bytes);
        used.network_tx_bytes = used.network_tx_bytes.max(now.network_tx_bytes);
        let (before, from) = self.last.unwrap_or((now.memory_bytes, since));
        if boottime_ns < from {
            return;
        }
        let average = u128::from(before) / 2 + u128::from(now.memory_bytes) / 2;
        let byte_ms = average * u128::from(boottime_ns - from) / 1_000_000;
        used.memory_byte_ms = used.memory_byte_ms.saturating_add(u64::try_from(byte_ms).unwrap_or(u64::MAX));
        self.last = Some((now.memory_bytes, boottime_ns));
    }
}
