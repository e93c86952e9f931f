//! Where usage records are kept.
//!
//! # Guarantees of an implementation
//! * [`Store::ingest`] is atomic with the cursor and idempotent: a record that is there already, unchanged, is skipped; the same key
//!   with other content is refused. A batch is taken whole or not at all, and is durable when the call returns.
//! * Records of one (host, boot) form one unbroken chain; [`Store::verify`] walks all of them again from the stored fields.
//! * An interval of a boot that is over is final: it ends at its last record.

pub mod sqlite;

use agent_api::usage::{ChainError, Held, UsageRecord, Used};
use async_trait::async_trait;
use serde::Serialize;
use utoipa::ToSchema;

/// The ledger.
#[async_trait]
pub trait Store: std::fmt::Debug + Send + Sync {
    /// The last stored record of a boot: where to pull from.
    async fn cursor(&self, host: &str, boot_id: &str) -> Result<Cursor, StoreError>;
    /// Stores consecutive records of one boot; the new cursor.
    async fn ingest(&self, host: &str, boot_id: &str, records: Vec<UsageRecord>) -> Result<Cursor, IngestError>;
    /// The host runs under `boot_id`, and all records of its earlier boots have been stored: those boots are over.
    async fn boot_began(&self, host: &str, boot_id: &str) -> Result<(), StoreError>;
    /// Pods that held something, in the order in which the ledger first heard of them.
    async fn pods(&self, query: &PodQuery) -> Result<PodPage, StoreError>;
    /// One pod; `None` when the ledger has never heard of it.
    async fn pod(&self, uid: &str) -> Result<Option<PodUsage>, StoreError>;
    /// Checks every chain and every derived interval again.
    async fn verify(&self) -> Result<VerifyReport, StoreError>;
}

/// The end of a boot's stored chain; `(0, GENESIS)` when nothing is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The last stored sequence number.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

/// Which pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodQuery {
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Only with this name or UID.
    pub pod: Option<String>,
    /// Only those that held something at or after this instant, in nanoseconds since 1970.
    pub from_ns: Option<u64>,
    /// Only those that held something before this instant, in nanoseconds since 1970.
    pub to_ns: Option<u64>,
    /// Behind this place in the order.
    pub after: u64,
    /// At most so many.
    pub limit: usize,
}

/// A part of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodPage {
    /// The pods.
    pub pods: Vec<PodUsage>,
    /// Where to go on, when there is more.
    pub next: Option<u64>,
}

/// Everything that is known of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodUsage {
    /// Pod UID.
    pub uid: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// What its sandboxes held.
    pub intervals: Vec<StoredInterval>,
}

/// One interval: a sandbox held resources from `start` to at least `proven`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredInterval {
    /// Host id.
    pub host: String,
    /// The host's boot.
    pub boot_id: String,
    /// That boot is over: nothing more will come.
    pub boot_over: bool,
    /// The sandbox.
    pub sandbox_id: String,
    /// CLOCK_BOOTTIME in nanoseconds at which it was first held.
    pub start_ns: u64,
    /// Wall time of that instant in nanoseconds since 1970, a label.
    pub start_wall_ns: u64,
    /// CLOCK_BOOTTIME in nanoseconds up to which it is proven to have been held (exclusive).
    pub proven_ns: u64,
    /// Wall time of that instant in nanoseconds since 1970, a label.
    pub proven_wall_ns: u64,
    /// Released at `proven`.
    pub ended: bool,
    /// What was held.
    pub held: Held,
    /// What was used up to `proven`.
    pub used: Used,
    /// `namespace` or `microvm`.
    pub sandbox_kind: String,
    /// `on-demand`, `spot` …
    pub price_class: String,
    /// Image digests.
    pub images: Vec<String>,
}

/// What [`Store::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct VerifyReport {
    /// Boots whose chains were walked.
    pub boots: u64,
    /// Records whose hashes were computed again.
    pub records: u64,
    /// Intervals that were derived again.
    pub intervals: u64,
    /// What does not fit; empty when the ledger is whole.
    pub faults: Vec<String>,
}

/// Why the ledger could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database file could not be opened or made.
    #[error("open ledger {}", path.display())]
    Open {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It was written by a newer version.
    #[error("ledger has schema version {found}, this build knows up to {known}")]
    Newer {
        /// Its version.
        found: i64,
        /// The newest known.
        known: i64,
    },
    /// A statement failed.
    #[error("{operation} in the ledger")]
    Statement {
        /// What was being done.
        operation: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A stored value is not what this build writes.
    #[error("ledger holds a value that cannot be: {what}")]
    Corrupt {
        /// Which.
        what: String,
    },
}

/// Why records were not stored. Nothing of the batch was.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The chain does not go on with this record.
    #[error("records do not continue the chain")]
    Chain(#[source] ChainError),
    /// The same key is stored with other content.
    #[error("record {host}/{boot_id}/{seq} is stored with other content")]
    Conflict {
        /// Host id.
        host: String,
        /// Boot id.
        boot_id: String,
        /// Sequence number.
        seq: u64,
    },
    /// A record of another host or boot than it came from.
    #[error("record {found} came from {expected}")]
    Foreign {
        /// Host and boot in the record.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// A record contradicts itself or what its interval's records before it said.
    #[error("record {host}/{boot_id}/{seq} cannot be true: {what}")]
    Contradiction {
        /// Host id.
        host: String,
        /// Boot id.
        boot_id: String,
        /// Sequence number.
        seq: u64,
        /// What.
        what: &'static str,
    },
    /// The ledger itself failed; the same call may succeed later.
    #[error("store records")]
    Store(#[source] StoreError),
}

impl IngestError {
    /// Whether the same call may succeed later. All others need a human.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store(_))
    }
}
