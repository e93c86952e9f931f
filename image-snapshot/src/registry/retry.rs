//! When to try again. Pure, but for the jitter.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use crate::{Timeouts, source::SourceError};

/// Tries of one request.
#[derive(Debug)]
pub(super) struct Retry<'a> {
    timeouts: &'a Timeouts,
    failures: u32,
    silences: u32,
}

impl<'a> Retry<'a> {
    pub(super) fn new(timeouts: &'a Timeouts) -> Self {
        Self { timeouts, failures: 0, silences: 0 }
    }

    /// Something was achieved: count from the start again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
        self.silences = 0;
    }

    /// After a failure: how long to wait before the next try; `None`: give up.
    pub(super) fn after(&mut self, error: &SourceError) -> Option<Duration> {
        self.after_with(error, jitter())
    }

    fn after_with(&mut self, error: &SourceError, jitter: f64) -> Option<Duration> {
        self.failures += 1;
        // Each silence costs its whole time, in which nobody learns why the pod waits.
        self.silences += u32::from(matches!(error, SourceError::TimedOut { .. } | SourceError::TooSlow { .. }));
        if !error.is_transient() || self.failures >= self.timeouts.attempts || self.silences > 1 {
            return None;
        }
        if let Some(asked) = error.retry_after() {
            // Longer than we hold a pull open: the caller's back-off takes it from here.
            return (asked <= self.timeouts.backoff_max).then_some(asked);
        }
        let doubled = self.timeouts.backoff.saturating_mul(1 << (self.failures - 1).min(16));
        Some(doubled.min(self.timeouts.backoff_max).mul_f64(0.5 + jitter / 2.0))
    }
}

/// Between 0 and 1.
fn jitter() -> f64 {
    RandomState::new().hash_one(()) as f64 / u64::MAX as f64
}

/// `Retry-After`: seconds, or a date.
pub(super) fn parse_retry_after(value: &str, now: jiff::Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let at = jiff::fmt::rfc2822::parse(value.trim()).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeouts() -> Timeouts {
        Timeouts {
            attempts: 4,
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(3),
            ..Timeouts::default()
        }
    }

    fn status(status: u16, retry_after: Option<u64>) -> SourceError {
        let retry_after = retry_after.map(Duration::from_secs);
        match status {
            429 => SourceError::RateLimited { what: String::new(), retry_after, detail: String::new() },
            _ => SourceError::Status { what: String::new(), status, retry_after, detail: String::new() },
        }
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_then_it_ends() {
        let timeouts = timeouts();
        let mut retry = Retry::new(&timeouts);
        let mut pauses = || retry.after_with(&status(500, None), 1.0).map(|d| d.as_secs());
        assert_eq!([pauses(), pauses(), pauses(), pauses()], [Some(1), Some(2), Some(3), None]);
        retry.reset();
        assert_eq!(retry.after_with(&status(503, None), 0.0), Some(Duration::from_millis(500)));
    }

    #[test]
    fn what_the_registry_asks_for_is_honoured_within_reason() {
        let timeouts = timeouts();
        assert_eq!(Retry::new(&timeouts).after(&status(429, Some(2))), Some(Duration::from_secs(2)));
        assert_eq!(Retry::new(&timeouts).after(&status(503, Some(60))), None);
    }

    #[test]
    fn silence_is_tried_again_once() {
        let timeouts = timeouts();
        let silence = || SourceError::TimedOut { what: String::new(), after: Duration::from_secs(60) };
        let mut retry = Retry::new(&timeouts);
        assert!(retry.after(&silence()).is_some());
        assert_eq!(retry.after(&silence()), None);
        retry.reset();
        assert!(retry.after(&silence()).is_some());
    }

    #[test]
    fn a_definite_answer_is_not_asked_for_twice() {
        let timeouts = timeouts();
        let gone = SourceError::NotFound { what: String::new(), detail: String::new() };
        for error in [gone, status(400, None), status(405, None)] {
            assert_eq!(Retry::new(&timeouts).after(&error), None, "{error}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: jiff::Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        assert_eq!(parse_retry_after(" 7", now), Some(Duration::from_secs(7)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(37)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("soon", now), None);
    }
}
