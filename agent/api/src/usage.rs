//! The usage record: one fact about what a sandbox held, written by an agent, never changed afterwards.
//!
//! A record is keyed by `(host, boot_id, seq)`; `seq` starts at 1 in each boot and has no gaps. Each record carries
//! the hash of the one before it (of the same host and boot; the first carries [`GENESIS`]), so that a removed,
//! reordered or altered record is found. Durations come from CLOCK_BOOTTIME only; wall time is a label.
//!
//! What a pod held is the union of the half-open intervals `[start, end)` of its sandboxes: `start` opens one, `tick`
//! proves that it was still held at that instant, `stop` closes it. An interval without `stop` (the host died) ends at its
//! last proof. `reconcile` closes an interval that a restarted agent found ended, at the time given by the shim's durable record.
//! An interval is named by `(host, boot_id, sandbox_id, start_boottime_ns)`; a change of what is held closes one and opens the
//! next at the same instant.
//!
//! The canonical form of a record is its JSON with the fields in the order of [`UsageRecord`] and no white space:
//! [`UsageRecord::encode`] writes it, [`UsageRecord::decode`] accepts nothing else.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The hash that stands before the first record of a boot.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The record layout's version.
pub const SCHEMA: u32 = 1;

/// One usage record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The host's id.
    pub host: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// 1, 2, 3 … within the boot.
    pub seq: u64,
    /// What it says.
    pub kind: Kind,
    /// Pod UID.
    pub pod_uid: String,
    /// Pod namespace; also the tenant.
    pub pod_namespace: String,
    /// Pod name.
    pub pod_name: String,
    /// The sandbox whose interval this is.
    pub sandbox_id: String,
    /// CLOCK_BOOTTIME in nanoseconds at which the interval started; the same in all of its records, so that each record
    /// says alone which interval it belongs to.
    pub start_boottime_ns: u64,
    /// CLOCK_REALTIME in nanoseconds since 1970 at about the interval's start; a label, the same in all of its records.
    pub start_wall_ns: u64,
    /// CLOCK_BOOTTIME in nanoseconds at which the fact holds.
    pub boottime_ns: u64,
    /// CLOCK_REALTIME in nanoseconds since 1970 at about the same instant; a label.
    pub wall_ns: u64,
    /// What is held in this interval; the same in all of its records.
    pub held: Held,
    /// What has been used since the interval's start.
    pub used: Used,
    /// `namespace` or `microvm`.
    pub sandbox_kind: String,
    /// `on-demand`, `spot` …
    pub price_class: String,
    /// Image digests of the pod's containers.
    pub images: Vec<String>,
    /// Hash of the record before, in hexadecimal.
    pub prev_hash: String,
    /// SHA-256 of the canonical JSON with this field empty, in hexadecimal.
    pub hash: String,
}

/// What a record says about its interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Resources are held from this instant.
    Start,
    /// They are still held at this instant.
    Tick,
    /// They were released at this instant.
    Stop,
    /// Found released, at this instant, by an agent that had been away.
    Reconcile,
}

/// Resources held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// CPU in thousandths of a core.
    pub milli_cpu: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Ephemeral storage in bytes.
    pub ephemeral_bytes: u64,
    /// Whole GPUs.
    pub gpus: u32,
}

/// Resources used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Integral of memory in use over time, in KiB-seconds (64 bits last 8,000 years at 64 GiB).
    pub memory_kib_s: u64,
    /// Bytes received.
    pub network_rx_bytes: u64,
    /// Bytes sent.
    pub network_tx_bytes: u64,
}

/// Why a record does not continue a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Its own hash is wrong: a field was altered.
    #[error("record {host}/{boot_id}/{seq} was altered: its hash does not match its content")]
    Altered {
        /// Host id.
        host: String,
        /// Boot id.
        boot_id: String,
        /// Sequence number.
        seq: u64,
    },
    /// A record is missing or out of order before it.
    #[error("record {host}/{boot_id}/{seq} does not follow record {expected_after}")]
    Gap {
        /// Host id.
        host: String,
        /// Boot id.
        boot_id: String,
        /// Sequence number.
        seq: u64,
        /// The sequence number that it should follow.
        expected_after: u64,
    },
    /// The record before it is not the one it was chained to.
    #[error("record {host}/{boot_id}/{seq} was chained to another predecessor")]
    Broken {
        /// Host id.
        host: String,
        /// Boot id.
        boot_id: String,
        /// Sequence number.
        seq: u64,
    },
}

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not the JSON of a record.
    #[error("usage record is not the JSON of a record")]
    Syntax(#[source] serde_json::Error),
    /// A layout that this build does not know.
    #[error("usage record has schema {found}, this build knows {SCHEMA}")]
    Schema {
        /// What it says.
        found: u32,
    },
    /// The same fields, written otherwise: the bytes were changed on their way.
    #[error("usage record {host}/{boot_id}/{seq} is not in canonical form")]
    NotCanonical {
        /// Host id.
        host: String,
        /// Boot id.
        boot_id: String,
        /// Sequence number.
        seq: u64,
    },
    /// A field contradicts another.
    #[error("usage record {host}/{boot_id}/{seq} contradicts itself: {what}")]
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
}

impl Kind {
    /// Whether this record ends its interval.
    pub fn closes(self) -> bool {
        matches!(self, Kind::Stop | Kind::Reconcile)
    }

    /// The name on the wire and in stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Start => "start",
            Kind::Tick => "tick",
            Kind::Stop => "stop",
            Kind::Reconcile => "reconcile",
        }
    }
}

impl UsageRecord {
    /// The canonical JSON.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record of plain fields serialises")
    }

    /// Parses canonical JSON, strictly: nothing unknown, nothing written otherwise, nothing that contradicts itself.
    /// The chain is checked apart, with [`check_follows`](Self::check_follows).
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let Version { schema } = serde_json::from_slice(bytes).map_err(DecodeError::Syntax)?;
        if schema != SCHEMA {
            return Err(DecodeError::Schema { found: schema });
        }
        let record: Self = serde_json::from_slice(bytes).map_err(DecodeError::Syntax)?;
        let (host, boot_id, seq) = (record.host.clone(), record.boot_id.clone(), record.seq);
        if record.encode() != bytes {
            return Err(DecodeError::NotCanonical { host, boot_id, seq });
        }
        if let Some(what) = record.contradiction() {
            return Err(DecodeError::Contradiction { host, boot_id, seq, what });
        }
        Ok(record)
    }

    /// What in this record cannot be true, if anything.
    pub fn contradiction(&self) -> Option<&'static str> {
        if self.seq == 0 {
            return Some("sequence numbers start at 1");
        }
        if self.boottime_ns < self.start_boottime_ns {
            return Some("it holds before its interval's start");
        }
        if self.kind == Kind::Start && self.boottime_ns != self.start_boottime_ns {
            return Some("a start that is not its interval's start");
        }
        None
    }

    /// Hash of all fields but `hash`, in hexadecimal.
    pub fn content_hash(&self) -> String {
        let mut content = self.clone();
        content.hash = String::new();
        hex::encode(Sha256::digest(content.encode()))
    }

    /// Chains the record behind `prev_hash` and seals it.
    pub fn seal(mut self, prev_hash: &str) -> Self {
        self.prev_hash = prev_hash.to_owned();
        self.hash = self.content_hash();
        self
    }

    /// Checks that this record follows `(seq, hash)` of the same host and boot; `(0, GENESIS)` before the first.
    pub fn check_follows(&self, previous_seq: u64, previous_hash: &str) -> Result<(), ChainError> {
        let (host, boot_id, seq) = (self.host.clone(), self.boot_id.clone(), self.seq);
        if self.hash != self.content_hash() {
            return Err(ChainError::Altered { host, boot_id, seq });
        }
        if seq != previous_seq + 1 {
            return Err(ChainError::Gap { host, boot_id, seq, expected_after: previous_seq });
        }
        if self.prev_hash != previous_hash {
            return Err(ChainError::Broken { host, boot_id, seq });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
