//! One host's pull, over any source and any ledger.

use std::time::Duration;

use agent_api::usage::{DecodeError, UsageRecord};
use billing::store::{IngestError, Store, StoreError};
use bytes::Bytes;
use futures::StreamExt;

use super::metrics::PullMetrics;
use super::source::{Boot, SourceError, UsageSource};

/// Waiting time after what may pass: doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(30);

/// Why a host's pull is stopped. A human must act; going on would skip records.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// A record is not one.
    #[error("record after {after} of boot {boot_id} cannot be read")]
    Decode {
        /// Which boot.
        boot_id: String,
        /// The last good one.
        after: u64,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The ledger refuses records.
    #[error("records after {after} of boot {boot_id} are refused")]
    Refused {
        /// Which boot.
        boot_id: String,
        /// The last good one.
        after: u64,
        /// Why.
        #[source]
        source: IngestError,
    },
    /// The host says that records which are needed are gone or damaged.
    #[error("records after {after} of boot {boot_id} are lost at the host")]
    Lost {
        /// Which boot.
        boot_id: String,
        /// The last good one.
        after: u64,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// The host has fewer records than the ledger took from it: it would number new ones as old ones.
    #[error("the ledger has record {stored} of boot {boot_id}, the host only {held}")]
    Forgotten {
        /// Which boot.
        boot_id: String,
        /// The ledger's last.
        stored: u64,
        /// The host's last.
        held: u64,
    },
}

/// What ends one attempt.
enum Stop {
    Halt(Halt),
    /// May pass.
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        Self::Halt(halt)
    }
}

/// Pulls for ever; returns only when it must not go on.
pub async fn pull(host: &str, source: &dyn UsageSource, store: &dyn Store, metrics: &PullMetrics) -> Halt {
    let mut pause = PAUSE_FIRST;
    loop {
        let mut progress = false;
        match attempt(host, source, store, metrics, &mut progress).await {
            Err(Stop::Halt(halt)) => return halt,
            Err(Stop::Failed(error)) => {
                metrics.failed(host);
                tracing::warn!(host.id = %host, error = error.as_ref() as &dyn std::error::Error, "billing pull failed and will be tried again");
            }
            Ok(()) => tracing::debug!(host.id = %host, "usage stream ended"),
        }
        pause = if progress { PAUSE_FIRST } else { (pause * 2).min(PAUSE_MOST) };
        tokio::time::sleep(pause).await;
    }
}

/// Old boots to their end, then the running one until its stream ends.
async fn attempt(
    host: &str,
    source: &dyn UsageSource,
    store: &dyn Store,
    metrics: &PullMetrics,
    progress: &mut bool,
) -> Result<(), Stop> {
    let boots = source.boots().await.map_err(|error| Stop::Failed(error.into()))?;
    for boot in &boots {
        let at = store.cursor(host, &boot.boot_id).await?.seq;
        if at > boot.last_seq {
            return Err(Halt::Forgotten { boot_id: boot.boot_id.clone(), stored: at, held: boot.last_seq }.into());
        }
        if boot.current {
            store.boot_began(host, &boot.boot_id).await?;
        }
        drain(host, boot, at, source, store, metrics, progress).await?;
    }
    Ok(())
}

async fn drain(
    host: &str,
    boot: &Boot,
    mut at: u64,
    source: &dyn UsageSource,
    store: &dyn Store,
    metrics: &PullMetrics,
    progress: &mut bool,
) -> Result<(), Stop> {
    let boot_id = &boot.boot_id;
    if at > boot.acked_seq {
        // An acknowledgement was lost.
        acknowledge(host, boot_id, at, source).await;
    }
    let wrong = |error: SourceError, after: u64| match error {
        lost @ SourceError::Lost(_) => Stop::Halt(Halt::Lost { boot_id: boot_id.clone(), after, source: lost }),
        other @ SourceError::Unanswered(_) => Stop::Failed(other.into()),
    };
    let mut batches = source.records(boot_id, at, boot.current).await.map_err(|error| wrong(error, at))?;
    if boot.current {
        metrics.halted(host, false);
    }
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|error| wrong(error, at))?;
        let count = batch.len();
        let records = decode(&batch).map_err(|source| Halt::Decode { boot_id: boot_id.clone(), after: at, source })?;
        let cursor = match store.ingest(host, boot_id, records).await {
            Ok(cursor) => cursor,
            Err(error) if error.is_retryable() => return Err(Stop::Failed(error.into())),
            Err(source) => {
                return Err(Halt::Refused { boot_id: boot_id.clone(), after: at, source }.into());
            }
        };
        metrics.ingested(host, count);
        *progress |= cursor.seq > at;
        at = cursor.seq;
        acknowledge(host, boot_id, at, source).await;
    }
    if !boot.current && at < boot.last_seq {
        return Err(Stop::Failed(format!("records of boot {boot_id} ended at {at}, not at {}", boot.last_seq).into()));
    }
    Ok(())
}

fn decode(batch: &[Bytes]) -> Result<Vec<UsageRecord>, DecodeError> {
    batch.iter().map(|bytes| UsageRecord::decode(bytes)).collect()
}

/// Best effort: the next one covers it, and a host that never hears it only keeps its records longer.
async fn acknowledge(host: &str, boot_id: &str, seq: u64, source: &dyn UsageSource) {
    if let Err(error) = source.ack(boot_id, seq).await {
        tracing::warn!(host.id = %host, seq, error = &error as &dyn std::error::Error, "usage records could not be acknowledged");
    }
}
