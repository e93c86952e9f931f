//! What can go wrong with an image, and what a kubelet says about it.

use std::{sync::Arc, time::Duration};

use crate::{Digest, convert::ConvertError, reference::ReferenceError, source::SourceError, store::StoreError};

/// Why an image could not be had. The message of the whole chain is [`ImageError::chain`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The name is no image name.
    #[error("could not parse the image name")]
    InvalidName(#[source] ReferenceError),
    /// The policy is `Never` and the image is not in the store, or not for this caller.
    #[error("image {reference:?} is not present with pull policy Never")]
    NeverPull {
        /// Normal form of the name.
        reference: String,
    },
    /// A local reference from somebody who may not read host paths.
    #[error("image {reference:?} is a path on the host, which this pod may not name")]
    LocalRefused {
        /// Normal form of the name.
        reference: String,
    },
    /// Manifest or configuration could not be fetched.
    #[error("could not fetch the manifest of image {reference:?}")]
    Manifest {
        /// Normal form of the name.
        reference: String,
        /// Why.
        #[source]
        source: Arc<SourceError>,
    },
    /// Manifest or configuration are there, but say something that no image may say.
    #[error("image {reference:?} is malformed")]
    Malformed {
        /// Normal form of the name.
        reference: String,
        /// Why.
        #[source]
        source: Arc<crate::manifest::ManifestError>,
    },
    /// A layer could not be fetched.
    #[error("could not fetch layer {layer} of image {reference:?}")]
    Fetch {
        /// Normal form of the name.
        reference: String,
        /// Digest of the blob.
        layer: Digest,
        /// Why.
        #[source]
        source: Arc<SourceError>,
    },
    /// A layer's content is damaged, hostile, or beyond our limits.
    #[error("could not convert layer {layer} of image {reference:?}")]
    Convert {
        /// Normal form of the name.
        reference: String,
        /// Digest of the blob.
        layer: Digest,
        /// Why.
        #[source]
        source: Arc<ConvertError>,
    },
    /// Our own disk let us down.
    #[error("could not use the image store")]
    Store(#[source] Arc<StoreError>),
    /// The task that worked on a shared layer went away without an answer.
    #[error("the pull of layer {layer} was interrupted")]
    Interrupted {
        /// Chain id.
        layer: Digest,
    },
}

/// The closed set of answers that a caller decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ErrorKind {
    /// Not an image name.
    InvalidName,
    /// Policy `Never`, and not there.
    NeverPull,
    /// A local path that may not be named.
    Refused,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry is sure that there is no such image.
    NotFound,
    /// The registry told us to slow down.
    RateLimited,
    /// The registry or the way to it is broken.
    Unavailable,
    /// Nothing came for too long.
    TimedOut,
    /// The bytes are not the ones promised.
    Corrupt,
    /// The image itself cannot be used here: malformed, hostile, wrong platform, beyond limits.
    InvalidImage,
    /// No room on disk.
    NoSpace,
    /// Any other trouble with our own store.
    Store,
}

impl ImageError {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidName(_) => ErrorKind::InvalidName,
            Self::NeverPull { .. } => ErrorKind::NeverPull,
            Self::LocalRefused { .. } => ErrorKind::Refused,
            Self::Manifest { source, .. } | Self::Fetch { source, .. } => source.kind(),
            Self::Malformed { .. } => ErrorKind::InvalidImage,
            Self::Convert { source, .. } => source.kind(),
            Self::Store(source) => source.kind(),
            Self::Interrupted { .. } => ErrorKind::Unavailable,
        }
    }

    /// Whether the same call may succeed later without anybody changing the pod or the image.
    /// (A kubelet retries everything but `InvalidImageName`, with back-off; this tells how hopeful that is.)
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self.kind(),
            ErrorKind::InvalidName | ErrorKind::NeverPull | ErrorKind::Refused | ErrorKind::InvalidImage
        )
    }

    /// How long the registry asked us to stay away, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Manifest { source, .. } | Self::Fetch { source, .. } => source.retry_after(),
            _ => None,
        }
    }

    /// The `reason` that a kubelet puts into the container's waiting state.
    pub fn reason(&self) -> &'static str {
        match self.kind() {
            ErrorKind::InvalidName => "InvalidImageName",
            ErrorKind::NeverPull => "ErrImageNeverPull",
            _ => "ErrImagePull",
        }
    }

    /// The message with all its causes, joined by `: `.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// `error` and its sources, joined by `: `.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some libraries print their source themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
