//! A container's output as files that Kubernetes' tools can read (the CRI text format).
//!
//! ```text
//! LOG_DIR/NAME/                     0750, made by the shim
//!   ATTEMPT.log                     0640, being written
//!   ATTEMPT.log.3  ATTEMPT.log.2    full ones; the higher the newer; a name never changes its file
//!
//! 2026-11-21T04:10:11.123456789Z stdout F a line
//! 2026-11-21T04:10:11.123456789Z stderr P the first 16 KiB of a longer line, or an end without a line feed
//! ```
//!
//! A file holds whole entries only. A full file is renamed to the next number and a new one, made before, takes its name;
//! the oldest beyond the limit is deleted. A reader that holds a file learns by its inode which number it got and goes on
//! with the next ([`LogReader`]), so rotation loses nothing that still exists.
//!
//! [`entry`]: the format, pure. [`rate`]: how fast it may grow. [`timestamp`]: times. [`LogWriter`]: the shim's side. [`LogReader`]: the agent's.

pub mod entry;
mod files;
pub(crate) mod rate;
mod reader;
pub mod timestamp;
mod writer;

#[cfg(test)]
mod tests;

use std::io;

pub use entry::Entry;
pub use reader::LogReader;
pub use writer::{Buffers, LogWriter, Read};

/// Which of a program's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Its name in the files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Files of one attempt, the one being written included; at least 2.
    pub files: u32,
    /// Bytes of content in one entry.
    pub part_bytes: usize,
}

impl Default for Limits {
    /// The kubelet's: 10 MiB, 5 files, 16 KiB.
    fn default() -> Self {
        Self { file_bytes: 10 << 20, files: 5, part_bytes: 16 << 10 }
    }
}

/// Why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A container's name cannot be a directory's.
    #[error("{name:?} cannot name a log directory")]
    BadName {
        /// The name.
        name: String,
    },
    /// A file or directory could not be made or opened.
    #[error("open of log {name} failed")]
    Open {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was there under a log's name is none of ours.
    #[error("{name} is not a log file of ours")]
    Foreign {
        /// Its name.
        name: String,
    },
    /// A file could not be written.
    #[error("write of log {name} failed")]
    Write {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file could not be rotated.
    #[error("rotation of log {name} failed")]
    Rotate {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file could not be read.
    #[error("read of log {name} failed")]
    Read {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program's output could not be read.
    #[error("read of a container's output failed")]
    Output {
        /// Why.
        #[source]
        source: io::Error,
    },
}
