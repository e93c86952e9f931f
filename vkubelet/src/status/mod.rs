//! Writes pod statuses to the API server.
//!
//! [`patch`] decides what is written and when (pure); [`writer`] does it: one writer task per pod at a time, always with
//! the newest report, retried until it is written or the pod is gone.

mod patch;
mod writer;

pub use writer::StatusWriter;
