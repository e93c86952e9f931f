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

/// Bytes times milliseconds in one KiB-second.
const BYTE_MS_PER_KIB_S: u128 = 1024 * 1000;

/// Counters never go back, and memory is integrated over time (trapezoids between two looks).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Integral {
    used: Used,
    byte_ms: u128,
    /// Memory at the last look and its CLOCK_BOOTTIME in nanoseconds.
    last: Option<(u64, u64)>,
    /// What the sandbox's counters stood at when the interval began: what earlier intervals of it have used.
    base: Used,
}

impl Integral {
    /// Goes on from what a record says.
    pub(super) fn resume(used: Used) -> Self {
        let byte_ms = u128::from(used.memory_kib_s) * BYTE_MS_PER_KIB_S;
        Self { used, byte_ms, last: None, base: Used::default() }
    }

    /// Begins anew where this one stands: the sandbox's counters go on, what they have counted so far is not this one's.
    pub(super) fn next(&self) -> Self {
        let (base, used) = (&self.base, &self.used);
        Self {
            last: self.last,
            base: Used {
                cpu_ns: base.cpu_ns.saturating_add(used.cpu_ns),
                memory_kib_s: 0,
                network_rx_bytes: base.network_rx_bytes.saturating_add(used.network_rx_bytes),
                network_tx_bytes: base.network_tx_bytes.saturating_add(used.network_tx_bytes),
            },
            ..Self::default()
        }
    }

    /// Counts what an earlier interval of the sandbox has used to what is not this one's.
    pub(super) fn add_base(&mut self, used: &Used) {
        let base = &mut self.base;
        base.cpu_ns = base.cpu_ns.saturating_add(used.cpu_ns);
        base.network_rx_bytes = base.network_rx_bytes.saturating_add(used.network_rx_bytes);
        base.network_tx_bytes = base.network_tx_bytes.saturating_add(used.network_tx_bytes);
    }

    /// Takes a look at `boottime_ns`; `since` is when the integral before it was taken, if no look is remembered.
    pub(super) fn look(&mut self, now: UsedNow, boottime_ns: u64, since: u64) {
        let (base, used) = (&self.base, &mut self.used);
        used.cpu_ns = used.cpu_ns.max(now.cpu_ns.saturating_sub(base.cpu_ns));
        used.network_rx_bytes = used.network_rx_bytes.max(now.network_rx_bytes.saturating_sub(base.network_rx_bytes));
        used.network_tx_bytes = used.network_tx_bytes.max(now.network_tx_bytes.saturating_sub(base.network_tx_bytes));
        let (before, from) = self.last.unwrap_or((now.memory_bytes, since));
        if boottime_ns < from {
            return;
        }
        let twice = (u128::from(before) + u128::from(now.memory_bytes)) * u128::from(boottime_ns - from);
        self.byte_ms = self.byte_ms.saturating_add(twice / 2_000_000);
        used.memory_kib_s = u64::try_from(self.byte_ms / BYTE_MS_PER_KIB_S).unwrap_or(u64::MAX);
        self.last = Some((now.memory_bytes, boottime_ns));
    }

    pub(super) fn used(&self) -> &Used {
        &self.used
    }

    /// Memory at the last look, in bytes; 0 before the first.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.last.map_or(0, |(bytes, _)| bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: u64) -> UsedNow {
        UsedNow { memory_bytes: bytes, ..UsedNow::default() }
    }

    #[test]
    fn memory_is_integrated_between_looks() {
        let mut integral = Integral::default();
        integral.look(memory(10 << 20), 2_000_000_000, 0);
        assert_eq!(integral.used().memory_kib_s, 2 * 10 * 1024);
        integral.look(memory(20 << 20), 4_000_000_000, 0);
        assert_eq!(integral.used().memory_kib_s, 2 * 10 * 1024 + 2 * 15 * 1024);
        assert_eq!(Integral::resume(integral.used().clone()).used(), integral.used());
    }

    #[test]
    fn the_next_interval_counts_from_where_the_last_one_ended() {
        let cpu = |ns| UsedNow { cpu_ns: ns, memory_bytes: 1 << 20, ..UsedNow::default() };
        let mut first = Integral::default();
        first.look(cpu(10), 1_000_000_000, 0);
        let mut second = first.next();
        assert_eq!(*second.used(), Used::default());
        second.look(cpu(25), 3_000_000_000, 1_000_000_000);
        assert_eq!((second.used().cpu_ns, second.used().memory_kib_s), (15, 2 * 1024));
        let mut third = second.next();
        third.look(cpu(26), 4_000_000_000, 3_000_000_000);
        assert_eq!(third.used().cpu_ns, 1);
    }

    #[test]
    fn counters_never_go_back() {
        let mut integral = Integral::default();
        integral.look(UsedNow { cpu_ns: 5, ..UsedNow::default() }, 1, 0);
        integral.look(UsedNow { cpu_ns: 3, ..UsedNow::default() }, 2, 0);
        assert_eq!(integral.used().cpu_ns, 5);
    }
}
