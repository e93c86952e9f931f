//! Why metering failed.

use std::io;

use crate::spool::{AppendError, OpenError};

/// Why metering failed.
#[derive(Debug, thiserror::Error)]
pub enum MeterError {
    /// The boot id could not be read.
    #[error("read the kernel's boot id")]
    BootId(#[source] io::Error),
    /// The spool could not be opened.
    #[error("open the usage spool")]
    OpenSpool(#[source] OpenError),
    /// The record is not durable: a sandbox must not be prepared, or its release must be reported again.
    #[error("write the usage record of sandbox {sandbox_id}")]
    Append {
        /// Whose.
        sandbox_id: String,
        /// Why.
        #[source]
        source: AppendError,
    },
    /// Intervals found ended could not be closed; adopt again.
    #[error("write the usage records of sandboxes that ended while the agent was away")]
    Reconcile {
        /// Why.
        #[source]
        source: AppendError,
    },
    /// A tick could not be written; the next one covers it.
    #[error("write the tick of the usage meter")]
    Tick {
        /// Why.
        #[source]
        source: AppendError,
    },
    /// This sandbox has never been metered in this boot, or so long ago that its records are gone.
    #[error("sandbox {sandbox_id} is not metered")]
    Unknown {
        /// Which.
        sandbox_id: String,
    },
    /// Sandbox ids are used once.
    #[error("sandbox {sandbox_id} has been released already")]
    Released {
        /// Which.
        sandbox_id: String,
    },
    /// The same call is under way.
    #[error("sandbox {sandbox_id} is being started or stopped by another call")]
    Busy {
        /// Which.
        sandbox_id: String,
    },
}

impl MeterError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Append { .. } | Self::Reconcile { .. } | Self::Tick { .. } | Self::Busy { .. })
    }
}
