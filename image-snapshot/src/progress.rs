//! What a person waiting for an image wants to see.

use std::time::Duration;

use crate::Digest;

/// An event on the way of one [`ensure`](crate::Images::ensure). Events of different layers interleave; those of one layer come in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is known: these are the layers, lowest first.
    Resolved {
        /// Digest of the platform's manifest.
        manifest_digest: Digest,
        /// One entry a layer, lowest first.
        layers: Vec<LayerPlan>,
    },
    /// A layer moved on. Sent at most some ten times a second a layer, and at each change of phase.
    Layer {
        /// Place in [`Progress::Resolved::layers`].
        index: usize,
        /// What is being done.
        phase: LayerPhase,
        /// Compressed bytes taken in so far.
        done: u64,
        /// Compressed bytes in all.
        total: u64,
    },
    /// A request failed in a way that may pass; it will be tried again.
    Retrying {
        /// What failed, one line.
        error: String,
        /// Pause before the next try.
        after: Duration,
    },
    /// All layers are in the store.
    Done {
        /// Bytes that came from the source for this image (compressed).
        fetched: u64,
        /// Bytes of its snapshots on disk.
        stored: u64,
    },
}

/// A layer of the image that is being prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    /// Chain id.
    pub id: Digest,
    /// Compressed size in bytes, as the manifest says.
    pub size: u64,
    /// Already in the store: nothing will be fetched.
    pub present: bool,
}

/// Where a layer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerPhase {
    /// Waiting for its turn.
    Waiting,
    /// Downloading and converting, both at once.
    Converting,
    /// All bytes are in; waiting for the layers below, then writing directories.
    Finishing,
    /// In the store.
    Present,
}
