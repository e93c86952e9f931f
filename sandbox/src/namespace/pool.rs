//! The warm pool: one task that keeps it at its size, as long as the backend is there.
//!
//! ```text
//!  a sandbox is taken ──┐
//!                       ├──> the task: takes apart those whose shim has died, makes new ones
//!  a connection ends  ──┘        ^ │ that failed, or one had died: a pause, longer each time
//!                                └─┘
//! ```
//!
//! Whoever wants a sandbox meanwhile makes one: nobody waits for the pool.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Inner;
use crate::contract::SandboxError;
use crate::protocol::shim::Request;
use crate::spec::Namespaces;

/// While half of the pool waits, launches have the processors first.
const REST: Duration = Duration::from_millis(10);
/// The pause after the first trouble, and the longest after one more and one more.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(30);
/// So long without trouble, and the next one is a first one.
const QUIET: Duration = Duration::from_secs(60);

/// What the task is told. One message stands for many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// There may be one less.
    Taken,
    /// A shim that may have been one of the pool's is gone.
    Ended,
}

/// Tells the task when it is dropped that a connection has ended.
#[derive(Debug)]
pub(crate) struct Ending(pub(crate) mpsc::WeakSender<Change>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(changes) = self.0.upgrade() {
            // A full channel: the task will look anyway.
            let _ = changes.try_send(Change::Ended);
        }
    }
}

/// How long to leave alone what had trouble.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    last: Option<(Instant, Duration)>,
}

impl Backoff {
    pub(super) fn after_trouble(&mut self, now: Instant) -> Duration {
        let pause = match self.last {
            Some((at, pause)) if now.saturating_duration_since(at) < QUIET => (pause * 2).min(LONGEST),
            _ => SHORTEST,
        };
        self.last = Some((now, pause));
        pause
    }
}

/// Keeps the pool until the backend is dropped.
pub(crate) async fn tend(backend: Weak<Inner>, mut changes: mpsc::Receiver<Change>) {
    let mut backoff = Backoff::default();
    loop {
        let Some(inner) = backend.upgrade() else { return };
        let well = inner.restore().await;
        drop(inner);
        let next =
            if well { changes.recv().await } else { wait(backoff.after_trouble(Instant::now()), &mut changes).await };
        if next.is_none() {
            return;
        }
    }
}

/// Waits until the time is over or somebody took a sandbox, and so found that they can be made; `None` when the backend is
/// gone.
async fn wait(pause: Duration, changes: &mut mpsc::Receiver<Change>) -> Option<Change> {
    let over = tokio::time::sleep(pause);
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => return Some(Change::Taken),
            change = changes.recv() => match change {
                Some(Change::Ended) => {}
                other => return other,
            },
        }
    }
}

impl Inner {
    /// Somebody took a sandbox: from now on there is to be a pool.
    pub(crate) fn taken(&self) {
        self.pool_wanted.store(true, Ordering::Relaxed);
        let _ = self.pool_changes.try_send(Change::Taken);
    }

    /// Brings the pool to its size, at leisure once half of it, rounded down, is there; false when there was trouble.
    async fn restore(self: &Arc<Self>) -> bool {
        let _one = self.refilling.lock().await;
        if self.clear_dead().await {
            return false;
        }
        while self.pool_wanted.load(Ordering::Relaxed) {
            let waiting = self.pool.lock().await.len();
            if waiting >= self.config.pool_size {
                break;
            }
            // A pool of one always: nobody waits for it, and in a hurry nothing would ever be made ahead.
            let at_leisure = waiting >= self.config.pool_size / 2;
            if at_leisure {
                tokio::time::sleep(REST).await;
            }
            match self.make_slot(&Namespaces::default(), false).await {
                Ok(mut warm) => {
                    if at_leisure {
                        // What it has yet to do would be done while somebody's container starts. One that cannot say is as good.
                        if warm.client.call("preparation of a sandbox", Request::Settle, vec![]).await.is_ok() {
                            self.make_ahead(&mut warm).await;
                        }
                    }
                    self.pool.lock().await.push_back(warm);
                }
                Err(error) => {
                    let source = std::error::Error::source(&error);
                    tracing::warn!(error = %error, ?source, "no warm sandbox could be made");
                    return false;
                }
            }
        }
        true
    }

    /// Takes apart every warm sandbox whose shim has died; whether there was any.
    async fn clear_dead(self: &Arc<Self>) -> bool {
        let mut found = false;
        loop {
            let dead = {
                let mut pool = self.pool.lock().await;
                pool.iter().position(|warm| warm.client.is_closed()).and_then(|at| pool.remove(at))
            };
            let Some(dead) = dead else { return found };
            found = true;
            tracing::warn!(slot = dead.slot.name, "the shim of a warm sandbox has died");
            // One that cannot be cleared is left over.
            let _ = self.discard(dead.slot, None).await;
        }
    }

    /// Empties the pool and leaves it so until somebody takes a sandbox again.
    pub(crate) async fn drain(self: &Arc<Self>) -> Result<(), SandboxError> {
        self.pool_wanted.store(false, Ordering::Relaxed);
        let _no_refill = self.refilling.lock().await;
        loop {
            let Some(warm) = self.pool.lock().await.pop_front() else { break };
            // One that cannot be cleared is left over, and no reason to keep the others.
            let _ = self.discard(warm.slot, Some(warm.client)).await;
        }
        self.clear_leftovers().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_quiet_time() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..14 {
            let pause = backoff.after_trouble(now);
            pauses.push(pause);
            now += pause;
        }
        assert_eq!(pauses[..3], [SHORTEST, SHORTEST * 2, SHORTEST * 4]);
        assert!(pauses.is_sorted() && pauses[13] == LONGEST, "{pauses:?}");
        assert_eq!(backoff.after_trouble(now + QUIET), SHORTEST);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_sandbox_that_was_taken_ends_a_pause() {
        let (changes, mut received) = mpsc::channel(4);
        let began = Instant::now();
        changes.try_send(Change::Ended).unwrap();
        assert_eq!(wait(LONGEST, &mut received).await, Some(Change::Taken));
        assert!(began.elapsed() >= LONGEST);
        let began = Instant::now();
        changes.try_send(Change::Taken).unwrap();
        assert_eq!(wait(LONGEST, &mut received).await, Some(Change::Taken));
        assert!(began.elapsed() < LONGEST);
        drop(Ending(changes.downgrade()));
        assert_eq!(received.recv().await, Some(Change::Ended));
        drop(changes);
        assert_eq!(wait(LONGEST, &mut received).await, None);
    }
}
