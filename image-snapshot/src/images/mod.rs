//! The front door.

use std::{path::PathBuf, sync::Arc};

use crate::{Credential, Digest, Image, ImageError, ImagesConfig, Progress};

/// A store of images. Cheap to clone; all clones are the same store.
///
/// Leases are held by this process only. After a restart the owner of running pods must lease again what they use
/// ([`Images::adopt`]) and then call [`Images::allow_gc`]: until then nothing is ever collected, so no running pod can lose a layer.
#[derive(Debug, Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
}

/// Keeps layers from collection while it, or a clone of it, lives.
#[derive(Debug, Clone)]
pub struct Lease {
    layers: Arc<Vec<Digest>>,
}

impl Lease {
    /// Chain ids under the lease.
    pub fn layers(&self) -> &[Digest] {
        &self.layers
    }
}

/// When to ask the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// Each time (layers that are here are not fetched again).
    Always,
    /// When the image is not here, or not for this caller.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// One wish.
#[derive(Debug, Clone)]
pub struct EnsureRequest {
    /// The image's name, as the pod writes it.
    pub reference: String,
    /// When to ask the source.
    pub policy: PullPolicy,
    /// Pull secrets of pod and service account, in the order in which they are to be tried within equal scope. Anonymous comes last.
    pub credentials: Vec<Credential>,
    /// Who asks, for references that are host paths.
    pub local: LocalAccess,
}

/// May this caller name host paths?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalAccess {
    /// A pod's author: only what [`LocalSources`](crate::LocalSources) lists.
    AllowList,
    /// The host's own operator (manifest directory, client on the host): any path.
    Trusted,
}

/// A line of [`Images::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// Normal form of the name.
    pub reference: String,
    /// Digest of the platform's manifest.
    pub manifest_digest: Digest,
    /// Digest of the configuration.
    pub image_id: Digest,
    /// As [`Image::repo_digest`].
    pub repo_digest: String,
    /// Chain ids, lowest first.
    pub layers: Vec<Digest>,
    /// Bytes of its snapshots on disk (shared layers count for each image).
    pub size: u64,
    /// When it was last pulled or checked against its source.
    pub pulled_at: jiff::Timestamp,
    /// Somebody holds a lease on all of its layers.
    pub in_use: bool,
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Chain ids that were removed.
    pub removed: Vec<Digest>,
    /// Bytes freed.
    pub freed: u64,
    /// Layers kept only because of leases.
    pub leased: usize,
}

impl Images {
    /// Opens (or makes) the store and cleans up what an earlier process left half-made. Blocking, brief.
    pub fn open(config: ImagesConfig) -> Result<Self, ImageError> {
        Ok(Self { inner: Arc::new(Inner { root: config.root }) })
    }

    /// Makes the image available, fetching what is missing, and leases it.
    pub async fn ensure(
        &self,
        request: EnsureRequest,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Image, ImageError> {
        let _ = (progress, &self.inner.root);
        Err(ImageError::NeverPull { reference: request.reference })
    }

    /// The image, if it is here under this name; asks nobody and checks nobody's rights.
    pub async fn get_local(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let _ = reference;
        Ok(None)
    }

    /// Leases again what a pod from before the restart uses: the layers by their ids, as [`LayerSnapshot::id`](crate::LayerSnapshot::id)
    /// gave them. Fails if one is gone.
    pub fn adopt(&self, layers: &[String]) -> Result<Lease, ImageError> {
        let _ = layers;
        Ok(Lease { layers: Arc::new(Vec::new()) })
    }

    /// From now on [`Images::gc`] may remove things: all pods from before the restart have been adopted.
    pub fn allow_gc(&self) {}

    /// All images by name.
    pub async fn list(&self) -> Result<Vec<ImageSummary>, ImageError> {
        Ok(Vec::new())
    }

    /// Forgets a name. Its layers go with the next [`Images::gc`] unless something else needs them. False: there was no such name.
    pub async fn remove(&self, reference: &str) -> Result<bool, ImageError> {
        let _ = reference;
        Ok(false)
    }

    /// Removes layers that no name and no lease needs. Does nothing before [`Images::allow_gc`].
    pub async fn gc(&self) -> Result<GcReport, ImageError> {
        Ok(GcReport::default())
    }
}
