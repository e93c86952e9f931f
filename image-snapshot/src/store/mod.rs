//! The directory tree that holds everything.

use std::path::PathBuf;

use crate::ErrorKind;

/// Why the store could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("could not {operation} {path:?}")]
    Io {
        /// What we tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process owns the directory.
    #[error("image store {path:?} is in use by another process")]
    InUse {
        /// The store's root.
        path: PathBuf,
    },
    /// The directory was written by another version.
    #[error("image store {path:?} has format {found:?}, this program knows {known:?}")]
    Format {
        /// The store's root.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What we can read.
        known: &'static str,
    },
    /// A record does not parse.
    #[error("record {path:?} is damaged")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A blocking task died.
    #[error("a store task was cancelled")]
    Cancelled,
}

impl StoreError {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => ErrorKind::NoSpace,
            _ => ErrorKind::Store,
        }
    }
}
