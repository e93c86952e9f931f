//! Ticks: one look at every sandbox, one batch, one fdatasync.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Meter, MeterError};

/// The longest that a tick waits for figures; a sandbox that hangs must not keep the others from being proven.
const LOOK: Duration = Duration::from_secs(1);

/// Records in one call to the spool.
const CHUNK: usize = 256;

impl Meter {
    /// Ticks until `shutdown`. Intervals stay open then: the sandboxes live on, and the next agent adopts them.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut timer = tokio::time::interval(self.tick);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = timer.tick() => {}
            }
            if let Err(error) = self.tick().await {
                tracing::error!(error = &error as &dyn std::error::Error, "usage tick failed");
            }
        }
    }

    /// Proves all open intervals up to now; the number of records made durable.
    pub async fn tick(&self) -> Result<usize, MeterError> {
        self.sample().await;
        let (count, pending) = {
            let mut book = self.book();
            let mut records = book.tick(self.clock.now());
            let count = records.len();
            let mut pending = Vec::new();
            while !records.is_empty() {
                let rest = records.split_off(records.len().min(CHUNK));
                pending.push(self.spool.enqueue(std::mem::replace(&mut records, rest)));
            }
            (count, pending)
        };
        for pending in pending {
            pending.await.map_err(|source| MeterError::Tick { source })?;
        }
        Ok(count)
    }

    /// Takes a look at every open sandbox, all at once, as far as [`LOOK`] lets it.
    pub(super) async fn sample(&self) {
        let open = self.book().open();
        futures::future::join_all(open.iter().map(|sandbox_id| self.look(sandbox_id))).await;
    }

    /// Takes a look at one sandbox now, as far as [`LOOK`] lets it: to be called before a sandbox is destroyed, so that what it has used since
    /// the last tick is known when it is stopped.
    pub async fn look(&self, sandbox_id: &str) {
        if let Ok(Some(used)) = tokio::time::timeout(LOOK, self.used.used(sandbox_id)).await {
            let now = self.clock.now();
            self.book().look(sandbox_id, used, now);
        }
    }
}
