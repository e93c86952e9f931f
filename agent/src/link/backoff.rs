//! How long to wait before dialling again. Pure; the random number is the caller's.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// A connection that stood for this long was a good one: the next failure begins anew.
pub(super) const SETTLED: Duration = Duration::from_secs(5);

/// Doubles from 100 ms to 10 s; each wait is drawn from the upper half, so that a thousand hosts do not dial at once.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait; `random` is any number, all 64 bits of it equally likely.
    pub(super) fn next(&mut self, random: u64) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(7)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = full / 2;
        half + half.mul_f64(random as f64 / u64::MAX as f64)
    }

    /// The connection was good.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_grow_within_their_bounds(randoms in proptest::collection::vec(any::<u64>(), 1..50)) {
            let mut backoff = Backoff::default();
            for (n, random) in randoms.iter().enumerate() {
                let wait = backoff.next(*random);
                let full = Duration::from_millis(100 << n.min(7)).min(LONGEST);
                prop_assert!(wait >= full / 2 && wait <= full, "{n}: {wait:?}");
            }
            backoff.reset();
            prop_assert!(backoff.next(0) < Duration::from_millis(100));
        }
    }
}
