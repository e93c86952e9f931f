//! How fast a log may grow: a bucket that says when to read on, without a timer of its own.

/// How much may come at once, as time at the allowed rate.
const BURST_NS: u64 = 50_000_000;
/// Below this no useful program would get anywhere.
const SLOWEST: u64 = 4 << 10;

/// A token bucket, kept as the time at which what was taken will have been paid for.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: u64,
    paid_at_ns: u64,
}

impl Rate {
    /// At `per_second` bytes a second (at least 4 KiB).
    pub(crate) fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(SLOWEST), paid_at_ns: 0 }
    }

    /// Takes `bytes` at `now_ns`. When that was more than there was: the time at which to go on, by when half of a burst is
    /// there again.
    pub(crate) fn take(&mut self, bytes: u64, now_ns: u64) -> Option<u64> {
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(self.per_second);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        self.paid_at_ns = self.paid_at_ns.max(now_ns).saturating_add(cost);
        (self.paid_at_ns > now_ns.saturating_add(BURST_NS)).then(|| self.paid_at_ns - BURST_NS / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quiet_log_never_waits_and_a_burst_is_free() {
        let mut rate = Rate::new(1 << 20);
        for second in 0..100 {
            assert_eq!(rate.take(50 << 10, second * 1_000_000_000), None);
        }
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_rate_and_a_burst_and_one_piece(
            pieces in proptest::collection::vec((1u64..200_000, 0u64..5_000_000), 1..300), per_second in 10_000u64..10_000_000,
        ) {
            let mut rate = Rate::new(per_second);
            let (mut now, mut passed) = (1_000_000_000u64, 0u64);
            let (start, mut last) = (now, 0);
            for (bytes, pause) in pieces {
                now += pause;
                passed += bytes;
                last = bytes;
                if let Some(due) = rate.take(bytes, now) {
                    prop_assert!(due > now);
                    now = due;
                }
            }
            let allowed = u128::from(now - start + BURST_NS) * u128::from(per_second) / 1_000_000_000;
            prop_assert!(u128::from(passed) <= allowed + u128::from(last) + 300, "{passed} {allowed}");
        }
    }
}
