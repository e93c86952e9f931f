//! From a name to a manifest and a configuration.

use std::sync::Arc;

use crate::{
    Digest, ImageError, Limits, Platform,
    manifest::{Config, Document, Manifest, ManifestError, choose},
    source::{Source, SourceError, Top},
};

/// What a name means for this platform.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    /// Digest of what the name points to: an index, or the manifest itself.
    pub(super) target: Digest,
    pub(super) manifest_digest: Digest,
    pub(super) manifest_bytes: Vec<u8>,
    pub(super) config_bytes: Vec<u8>,
    pub(super) manifest: Manifest,
    pub(super) config: Config,
}

/// Fetches the documents.
pub(super) async fn resolve(
    source: &dyn Source,
    reference: &str,
    platform: &Platform,
    limits: &Limits,
) -> Result<Resolved, ImageError> {
    let fetch =
        |source: SourceError| ImageError::Manifest { reference: reference.to_owned(), source: Arc::new(source) };
    let malformed =
        |source: ManifestError| ImageError::Malformed { reference: reference.to_owned(), source: Arc::new(source) };
    let mut document = match source.top().await.map_err(fetch)? {
        Top::Document(document) => document,
        Top::Entries(entries) => {
            let entry = choose(&entries, platform).map_err(malformed)?;
            source.manifest(entry).await.map_err(fetch)?
        }
    };
    let target = document.digest.clone();
    let mut depth = 0;
    let manifest = loop {
        match Document::parse(&document.bytes, document.content_type.as_deref()).map_err(malformed)? {
            Document::Manifest(manifest) => break manifest,
            Document::Index(entries) => {
                depth += 1;
                if depth > limits.index_depth {
                    return Err(malformed(ManifestError::TooDeep(limits.index_depth)));
                }
                let entry = choose(&entries, platform).map_err(malformed)?;
                document = source.manifest(entry).await.map_err(fetch)?;
            }
        }
    };
    manifest.check(limits).map_err(malformed)?;
    let config_bytes = source.small_blob(&manifest.config).await.map_err(fetch)?;
    let config = Config::parse(&config_bytes, &manifest, platform).map_err(malformed)?;
    Ok(Resolved {
        target,
        manifest_digest: document.digest,
        manifest_bytes: document.bytes,
        config_bytes,
        manifest,
        config,
    })
}
