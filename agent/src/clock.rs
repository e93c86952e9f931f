//! Time, as a parameter: durations come from CLOCK_BOOTTIME, wall time is a label.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// One instant on both clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Now {
    /// CLOCK_BOOTTIME in nanoseconds.
    pub boottime_ns: u64,
    /// CLOCK_REALTIME in nanoseconds since 1970.
    pub wall_ns: u64,
}

impl Now {
    /// The present.
    pub fn read() -> Self {
        Self { boottime_ns: nanoseconds(ClockId::Boottime), wall_ns: nanoseconds(ClockId::Realtime) }
    }

    /// The wall time of an earlier or later boot time, by the distance to this instant.
    pub fn wall_of(&self, boottime_ns: u64) -> u64 {
        if boottime_ns >= self.boottime_ns {
            self.wall_ns.saturating_add(boottime_ns - self.boottime_ns)
        } else {
            self.wall_ns.saturating_sub(self.boottime_ns - boottime_ns)
        }
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    seconds * SECOND + u64::try_from(time.tv_nsec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_of_another_instant_keeps_the_distance() {
        let now = Now { boottime_ns: 100, wall_ns: 5_000 };
        assert_eq!(now.wall_of(130), 5_030);
        assert_eq!(now.wall_of(70), 4_970);
    }
}
