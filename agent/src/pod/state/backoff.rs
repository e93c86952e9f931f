//! The kubelet's back-off: 10 s, doubling to 300 s, forgotten after 10 minutes without use.

use serde::{Deserialize, Serialize};

use crate::clock::SECOND;

/// First delay.
const FIRST: u64 = 10 * SECOND;
/// Longest delay.
const LONGEST: u64 = 300 * SECOND;
/// Twice the longest: after this long without a restart the history is forgotten.
const FORGET: u64 = 2 * LONGEST;

/// One container's (or image's) back-off. Times are CLOCK_BOOTTIME nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    delay: u64,
    updated: u64,
}

impl Backoff {
    /// May something that failed at `failed` be tried again at once, or when?
    pub fn ready_at(&self, failed: u64) -> u64 {
        if self.delay == 0 || failed.saturating_sub(self.updated) > FORGET {
            failed
        } else {
            failed.saturating_add(self.delay)
        }
    }

    /// It is tried again now: the next delay is longer.
    pub fn tried(&mut self, now: u64) {
        let forgotten = now.saturating_sub(self.updated) > FORGET;
        self.delay = if self.delay == 0 || forgotten { FIRST } else { (self.delay * 2).min(LONGEST) };
        self.updated = now;
    }

    /// The present delay in seconds, for messages.
    pub fn seconds(&self) -> u64 {
        self.delay / SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_retry_is_immediate_then_delays_double_to_five_minutes() {
        let mut backoff = Backoff::default();
        let mut now = 1_000 * SECOND;
        let mut delays = Vec::new();
        for _ in 0..8 {
            let ready = backoff.ready_at(now);
            delays.push((ready - now) / SECOND);
            now = ready;
            backoff.tried(now);
            now += SECOND;
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_running_forget_the_history() {
        let mut backoff = Backoff::default();
        backoff.tried(0);
        backoff.tried(20 * SECOND);
        let failed = 20 * SECOND + FORGET;
        assert!(backoff.ready_at(failed) > failed);
        let failed = failed + 1;
        assert_eq!(backoff.ready_at(failed), failed);
        backoff.tried(failed);
        assert_eq!(backoff.seconds(), 10);
    }
}
