//! Why a source did not deliver.

use std::time::Duration;

use crate::{Digest, ErrorKind};

/// Why a manifest or blob could not be fetched. `what` names it: `GET https://…` or a path.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// 401 or 403, with the credentials that we had.
    #[error("{what}: not authorized (status {status}){detail}")]
    Unauthorized {
        /// The request.
        what: String,
        /// HTTP status.
        status: u16,
        /// What the registry said, if anything.
        detail: String,
    },
    /// The source is sure that there is no such thing.
    #[error("{what}: not found{detail}")]
    NotFound {
        /// The request or path.
        what: String,
        /// What the registry said, if anything.
        detail: String,
    },
    /// 429.
    #[error("{what}: too many requests{detail}")]
    RateLimited {
        /// The request.
        what: String,
        /// What `Retry-After` said.
        retry_after: Option<Duration>,
        /// What the registry said, if anything.
        detail: String,
    },
    /// Any other status that is not success.
    #[error("{what}: status {status}{detail}")]
    Status {
        /// The request.
        what: String,
        /// HTTP status.
        status: u16,
        /// What `Retry-After` said.
        retry_after: Option<Duration>,
        /// What the registry said, if anything.
        detail: String,
    },
    /// Silence.
    #[error("{what}: no progress for {after:?}")]
    TimedOut {
        /// The request.
        what: String,
        /// How long we waited.
        after: Duration,
    },
    /// Hardly more than silence.
    #[error("{what}: only {came} bytes came in {after:?}, of at least {least}")]
    TooSlow {
        /// The request.
        what: String,
        /// Bytes that came in that time.
        came: u64,
        /// The least that must.
        least: u64,
        /// How long we waited for them.
        after: Duration,
    },
    /// A blob took as long as one of its size may.
    #[error("{what}: only {got} of {want} bytes came in {after:?}, the most that they may take")]
    Overdue {
        /// The request.
        what: String,
        /// Bytes that came.
        got: u64,
        /// Bytes promised.
        want: u64,
        /// The time that it had.
        after: Duration,
    },
    /// No connection, or it broke.
    #[error("{what}: could not talk to the registry")]
    Network {
        /// The request.
        what: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// HTTPS was asked for, and the answer is HTTP.
    #[error(
        "{what}: {host} speaks plain HTTP, not HTTPS: only registries that the setting insecure-registry names may"
    )]
    PlainHttp {
        /// The request.
        what: String,
        /// Who answers so, `host[:port]`.
        host: String,
    },
    /// Nobody whom we trust vouches for who answers, or for another name or time.
    #[error("{what}: the certificate of {host} is not trusted: what is, the setting registries says")]
    Untrusted {
        /// The request.
        what: String,
        /// Whose certificate it is, `host[:port]`.
        host: String,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// The HTTP client could not be made (certificates, proxy settings).
    #[error("could not set up the client for registry {registry:?}")]
    Client {
        /// Which registry.
        registry: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// A redirect or challenge led somewhere that we do not follow.
    #[error("{what}: {problem}")]
    Protocol {
        /// The request.
        what: String,
        /// What the registry did wrong.
        problem: &'static str,
    },
    /// More bytes than may or should come.
    #[error("{what}: longer than {limit} bytes")]
    TooLarge {
        /// The request or path.
        what: String,
        /// Limit, or size promised by the manifest.
        limit: u64,
    },
    /// Fewer bytes than promised.
    #[error("{what}: ended after {got} of {want} bytes")]
    Truncated {
        /// The request or path.
        what: String,
        /// Bytes that came.
        got: u64,
        /// Bytes promised.
        want: u64,
    },
    /// Other bytes than promised.
    #[error("{what}: digest is {got}, not {want}")]
    DigestMismatch {
        /// The request or path.
        what: String,
        /// As promised.
        want: Digest,
        /// As computed.
        got: Digest,
    },
    /// A local file could not be read.
    #[error("could not read {what}")]
    Io {
        /// The path.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A document of the source itself does not parse.
    #[error("could not parse {what}")]
    Parse {
        /// The request or path.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Whoever wanted the blob gave up on it.
    #[error("{what}: no longer wanted")]
    Abandoned {
        /// The request or path.
        what: String,
    },
    /// A local archive is no archive.
    #[error("could not look through {what}")]
    Archive {
        /// The path.
        what: String,
        /// Why.
        #[source]
        source: Box<crate::convert::ConvertError>,
    },
}

impl SourceError {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unauthorized { .. } => ErrorKind::Unauthorized,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::RateLimited { .. } => ErrorKind::RateLimited,
            Self::Status { .. }
            | Self::Network { .. }
            | Self::PlainHttp { .. }
            | Self::Untrusted { .. }
            | Self::Client { .. }
            | Self::Protocol { .. }
            | Self::Abandoned { .. } => ErrorKind::Unavailable,
            Self::TimedOut { .. } | Self::TooSlow { .. } | Self::Overdue { .. } => ErrorKind::TimedOut,
            Self::Truncated { .. } | Self::DigestMismatch { .. } => ErrorKind::Corrupt,
            Self::TooLarge { .. } | Self::Parse { .. } | Self::Archive { .. } => ErrorKind::InvalidImage,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::Io { .. } => ErrorKind::Unavailable,
        }
    }

    /// Whether the same request may succeed soon.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::TimedOut { .. }
            | Self::TooSlow { .. }
            | Self::Network { .. }
            | Self::Truncated { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 500..=599),
            _ => false,
        }
    }

    /// How long the registry asked us to stay away, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
