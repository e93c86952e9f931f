//! The two clocks of the contract.

use rustix::time::{ClockId, clock_gettime};

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// CLOCK_BOOTTIME in nanoseconds.
pub fn boottime_ns() -> u64 {
    nanoseconds(ClockId::Boottime)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub fn wall_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}
