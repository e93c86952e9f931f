//! Why a layer was refused.

use crate::{Digest, ErrorKind, erofs::ReadError};

/// What is wrong with a layer, or with our disk while converting it. Paths are shown lossily.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The compressed stream is damaged.
    #[error("could not decompress")]
    Decompress(#[source] std::io::Error),
    /// The stream ends in the middle of something.
    #[error("archive ends early, in {what}")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// The uncompressed content is not what the configuration promised.
    #[error("diff id is {got}, but the image's configuration says {want}")]
    DiffId {
        /// As promised.
        want: Digest,
        /// As computed.
        got: Digest,
    },
    /// A header makes no sense.
    #[error("bad archive header for entry {entry}: {problem}")]
    Header {
        /// Number of the entry, from 1.
        entry: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A name that no layer may have.
    #[error("bad name {path:?}: {problem}")]
    Name {
        /// The name.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// An entry cannot be placed.
    #[error("cannot place {path:?}: {problem}")]
    Place {
        /// The name.
        path: String,
        /// What is in the way.
        problem: &'static str,
    },
    /// Beyond one of the limits.
    #[error("layer goes beyond the limit of {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A kind of entry or feature that we do not take.
    #[error("{path:?}: {what} is not supported")]
    Unsupported {
        /// The name.
        path: String,
        /// What.
        what: &'static str,
    },
    /// The output could not be written.
    #[error("could not write the layer image")]
    Write(#[source] std::io::Error),
    /// A layer below could not be read.
    #[error("could not read a layer below")]
    Lower(#[source] ReadError),
    /// The stream stopped because its producer failed or went away; the producer knows why.
    #[error("the layer's bytes stopped coming")]
    Cancelled,
    /// The converter process could not be started or talked to.
    #[error("could not {what} the layer converter")]
    Converter {
        /// What we tried.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The converter process refused the layer or died.
    #[error("layer converter: {message}")]
    ConverterFailed {
        /// The class it reported.
        kind: ErrorKind,
        /// Its words.
        message: String,
    },
}

impl ConvertError {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Decompress(_) | Self::Truncated { .. } | Self::DiffId { .. } => ErrorKind::Corrupt,
            Self::Write(e) if e.kind() == std::io::ErrorKind::StorageFull => ErrorKind::NoSpace,
            Self::Write(_) | Self::Lower(_) | Self::Converter { .. } => ErrorKind::Store,
            Self::Cancelled => ErrorKind::Unavailable,
            Self::ConverterFailed { kind, .. } => *kind,
            Self::Header { .. }
            | Self::Name { .. }
            | Self::Place { .. }
            | Self::Limit { .. }
            | Self::Unsupported { .. } => ErrorKind::InvalidImage,
        }
    }
}
