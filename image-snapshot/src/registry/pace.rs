//! How slow a registry may be. Pure.
//!
//! Two bounds: what a connection brings within one progress timeout, so that one that all but stands is given up soon and gone on with in a new
//! one; and what a layer may take in all, so that nobody holds one of a host's few downloads for as long as he likes by staying just above the first.

use std::time::Duration;

/// What a connection must bring in a minute: some 4 KiB/s, as a telephone line did. In proportion within another progress timeout.
const LEAST: u64 = 256 << 10;
/// Bytes a second that a layer must come with on average, beyond what any layer may take: an eighth of the slowest lines that hosts are on.
const AVERAGE: u64 = 32 << 10;

/// The time that a layer of so many bytes may take from one server; `any` is what the smallest one may.
pub(super) fn longest(any: Duration, size: u64) -> Duration {
    any.saturating_add(Duration::from_secs(size / AVERAGE))
}

/// What one connection brings, a stretch at a time.
#[derive(Debug)]
pub(super) struct Pace {
    stretch: Duration,
    waited: Duration,
    came: u64,
}

impl Pace {
    pub(super) fn new(stretch: Duration) -> Self {
        Self { stretch, waited: Duration::ZERO, came: 0 }
    }

    /// So many bytes came after a wait: only that counts, as what a converter takes is not the registry's fault. Too slow: the bytes of a whole stretch.
    pub(super) fn came(&mut self, waited: Duration, bytes: u64) -> Result<(), u64> {
        self.waited += waited;
        self.came += bytes;
        if self.waited <= self.stretch {
            return Ok(());
        }
        let Self { came, .. } = std::mem::replace(self, Self::new(self.stretch));
        if came < self.least() { Err(came) } else { Ok(()) }
    }

    /// Bytes that a stretch must bring.
    pub(super) fn least(&self) -> u64 {
        let bytes = u128::from(LEAST) * self.stretch.as_millis() / 60_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_must_bring_256_kib_a_minute_in_each_minute_that_it_is_waited_for() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(60 * second);
        // Fast for a minute, which is no credit for the next.
        assert_eq!(pace.came(Duration::ZERO, 1 << 30), Ok(()));
        assert_eq!(pace.came(61 * second, 1), Ok(()));
        for _ in 0..60 {
            assert_eq!(pace.came(second, 4 << 10), Ok(()));
        }
        assert_eq!(pace.came(second, 0), Err(240 << 10));
        // Just enough, for an hour.
        for _ in 0..3600 {
            assert_eq!(pace.came(second, 4400), Ok(()));
        }
    }

    #[test]
    fn what_a_connection_must_bring_is_in_proportion_to_the_time_that_it_may_be_silent() {
        let least = |seconds| Pace::new(Duration::from_secs(seconds)).least();
        assert_eq!([least(60), least(5), least(600)], [256 << 10, (256 << 10) / 12, 2560 << 10]);
        assert_eq!(Pace::new(Duration::ZERO).least(), 1);
        // 40 KiB/s is enough, however short the setting.
        let mut pace = Pace::new(Duration::from_secs(5));
        for _ in 0..600 {
            assert_eq!(pace.came(Duration::from_secs(1), 40 << 10), Ok(()));
        }
    }

    #[test]
    fn a_layer_has_ten_minutes_and_a_second_for_each_32_kib() {
        let any = crate::Timeouts::default().layer;
        assert_eq!(longest(any, 0), Duration::from_secs(600));
        assert_eq!(longest(any, 32 << 20), Duration::from_secs(600 + 1024));
        assert_eq!(longest(Duration::MAX, 1 << 40), Duration::MAX);
    }
}
