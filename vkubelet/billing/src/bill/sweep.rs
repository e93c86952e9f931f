//! The union of intervals, with what was held in each piece of it.

use std::collections::BTreeMap;

use crate::store::StoredInterval;

/// Integrals over the union.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sweep {
    /// Length of the union.
    pub(super) duration_ns: u64,
    /// Thousandths of a core times nanoseconds.
    pub(super) milli_cpu_ns: u128,
    /// Bytes times nanoseconds.
    pub(super) byte_ns: u128,
    /// What was held in the last piece: a second that is rounded up is filled with it.
    pub(super) last_milli_cpu: u64,
    /// See [`Self::last_milli_cpu`].
    pub(super) last_memory_bytes: u64,
}

pub(super) fn sweep(intervals: &[StoredInterval]) -> Sweep {
    let mut clocks: BTreeMap<(&str, &str), Vec<&StoredInterval>> = BTreeMap::new();
    for interval in intervals {
        clocks.entry((&interval.host, &interval.boot_id)).or_default().push(interval);
    }
    let mut sum = Sweep::default();
    let mut last_wall = 0;
    for group in clocks.values() {
        let mut edges: Vec<u64> = group.iter().flat_map(|interval| [interval.start_ns, interval.proven_ns]).collect();
        edges.sort_unstable();
        edges.dedup();
        for piece in edges.windows(2) {
            let (from, to) = (piece[0], piece[1]);
            let covering = || group.iter().filter(|interval| interval.start_ns <= from && to <= interval.proven_ns);
            let Some(milli_cpu) = covering().map(|interval| interval.held.milli_cpu).max() else {
                continue;
            };
            let memory_bytes = covering().map(|interval| interval.held.memory_bytes).max().unwrap_or(0);
            let length = to - from;
            sum.duration_ns = sum.duration_ns.saturating_add(length);
            sum.milli_cpu_ns += u128::from(milli_cpu) * u128::from(length);
            sum.byte_ns += u128::from(memory_bytes) * u128::from(length);
            let wall = covering().map(|interval| interval.proven_wall_ns).max().unwrap_or(0);
            if wall >= last_wall {
                (last_wall, sum.last_milli_cpu, sum.last_memory_bytes) = (wall, milli_cpu, memory_bytes);
            }
        }
    }
    sum
}
