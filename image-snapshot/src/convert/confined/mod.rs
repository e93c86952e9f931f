//! Conversion in a process of its own, one per layer, that has given up everything but the files it was handed.
//!
//! ```text
//!   agent                                   converter (uid nobody, no paths, no sockets to make, bounded)
//!     ── job {diff id, limits} + [blob pipe, output file] ──>
//!     ══ blob bytes, through the pipe ═══════════════════════>   decompress, hash, tar, data and leaf inodes
//!     <── staged | refused {class, words} ────────────────────
//!     ── finish + [layers below, lowest first] ──────────────>   resolve, directories, superblock
//!     <── converted {…} | refused {…} ────────────────────────
//! ```
//!
//! Messages are JSON, one a packet, over a socket pair that is the converter's standard input. Whoever goes away first is noticed by the other:
//! the converter ends when the socket does, and is killed when its owner drops it.

mod channel;
mod client;
mod confine;
mod server;

use serde::{Deserialize, Serialize};

use super::{Converted, Limits};
use crate::{Digest, ErrorKind};

pub(crate) use client::ConfinedStaged;
pub use server::run_converter;

/// To the converter.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// With the blob's pipe and the output file.
    Job { diff_id: Digest, limits: Limits },
    /// With the layers below.
    Finish,
}

/// From the converter.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Staged,
    Converted(Converted),
    Refused { kind: ErrorKind, message: String },
}
