//! Indexes, manifests and configurations: parsing, and choosing what is ours. Pure.

/// What a manifest or configuration may not say.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the right shape.
    #[error("could not parse the {what}")]
    Parse {
        /// Which document.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No entry of the index is for us.
    #[error("no image for platform {want} (there are: {have})")]
    Platform {
        /// Ours.
        want: String,
        /// Theirs.
        have: String,
    },
    /// The image is for another platform.
    #[error("image is for platform {have}, this host is {want}")]
    WrongPlatform {
        /// Ours.
        want: String,
        /// Its.
        have: String,
    },
    /// A media type that we do not take.
    #[error("media type {0:?} is not supported")]
    MediaType(String),
    /// Indexes within indexes.
    #[error("indexes are nested more than {0} deep")]
    TooDeep(usize),
    /// Too many layers.
    #[error("{0} layers, more than {1}")]
    TooManyLayers(usize, usize),
    /// Manifest and configuration disagree.
    #[error("manifest has {layers} layers, configuration has {diff_ids} diff ids")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// An image without content.
    #[error("image has no layers")]
    NoLayers,
}
