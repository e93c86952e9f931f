//! The front door.

mod domain;
mod ensure;
mod evict;
mod flight;
mod layer;
mod lease;
mod policy;
mod resolve;
mod rights;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Semaphore;

use crate::{
    Copies, Credential, Digest, Image, ImageError, ImagesConfig, Progress, Reference,
    registry::Registries,
    store::{RefRecord, Store, StoreError, Verdict, faults::failpoint},
};

pub use evict::{Eviction, Usage};
use flight::Flights;
pub use lease::Lease;
use lease::Leases;
use rights::Brought;

/// A store of images. Cheap to clone; all clones are the same store.
///
/// Leases are held by this process only. After a restart the owner of running pods must lease again what they use
/// ([`Images::adopt`]) and then call [`Images::allow_gc`]: until then nothing is ever collected, so no running pod can lose a layer.
#[derive(Debug, Clone)]
pub struct Images {
    inner: Arc<Inner>,
    /// Whose copies; empty: the host's own.
    domain: Arc<str>,
}

/// Is told a layer's chain id; brief, and on no runtime's thread.
struct Going(Box<dyn Fn(&Digest) + Send + Sync>);

impl std::fmt::Debug for Going {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Going")
    }
}

#[derive(Debug)]
struct Inner {
    config: ImagesConfig,
    store: Arc<Store>,
    registries: Arc<Registries>,
    leases: Arc<Leases>,
    flights: Arc<Flights>,
    brought: Arc<Brought>,
    permits: Arc<Semaphore>,
    /// Room for layers that are fetched before the one below is there.
    ahead: Arc<Semaphore>,
    gc_allowed: AtomicBool,
    /// Names, in normal form, that no collection takes.
    pins: std::sync::Mutex<BTreeSet<String>>,
    /// Hears of each layer that is about to be removed.
    going: std::sync::OnceLock<Going>,
    /// Held while names are written or things are collected, so that no manifest goes between its arrival and its name's.
    records: Arc<tokio::sync::Mutex<()>>,
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
    /// Whose copy it is; empty: the host's own.
    pub domain: String,
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
    /// When somebody last asked for it, or was seen using it.
    pub used_at: jiff::Timestamp,
    /// All of its layers are here.
    pub complete: bool,
    /// Somebody holds a lease on its topmost layer.
    pub in_use: bool,
    /// No collection takes it ([`Images::pin`]).
    pub pinned: bool,
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Names that were forgotten to make room.
    pub images: Vec<String>,
    /// Chain ids that were removed.
    pub removed: Vec<Digest>,
    /// Bytes freed.
    pub freed: u64,
    /// Layers kept only because of leases.
    pub leased: usize,
}

impl Images {
    /// Opens (or makes) the store and cleans up what an earlier process left half-made. Blocking, brief. The process must have installed a
    /// default TLS provider (`rustls`) before the first pull.
    pub fn open(config: ImagesConfig) -> Result<Self, ImageError> {
        let store = Store::open(&config.root).map_err(store_error)?;
        let inner = Inner {
            store: Arc::new(store),
            registries: Arc::new(Registries::new(&config)),
            leases: Arc::default(),
            flights: Arc::default(),
            brought: Arc::default(),
            permits: Arc::new(Semaphore::new(config.concurrency.layers_in_all.max(1))),
            ahead: Arc::new(Semaphore::new(layer::AHEAD)),
            gc_allowed: AtomicBool::new(false),
            pins: std::sync::Mutex::default(),
            going: std::sync::OnceLock::new(),
            records: Arc::default(),
            config,
        };
        Ok(Self { inner: Arc::new(inner), domain: Arc::from("") })
    }

    /// Has `going` hear of each layer right before its file is removed, whoever has it removed: what is kept elsewhere for its sake is to go too.
    /// The file may stay all the same, should its removal fail. Only the first call counts.
    pub fn on_removal(&self, going: impl Fn(&Digest) + Send + Sync + 'static) {
        let _ = self.inner.going.set(Going(Box::new(going)));
    }

    /// The same store as a trust domain (a namespace, a tenant) sees it, if it is to keep copies per domain; else the store itself. What has to do
    /// with all images ([`Images::list`], [`Images::remove`], collection, [`Images::verify`]) stays that of the whole store.
    #[must_use]
    pub fn of_domain(&self, domain: &str) -> Self {
        let domain = match self.inner.config.copies {
            Copies::Shared => "",
            Copies::PerDomain => domain,
        };
        Self { inner: self.inner.clone(), domain: Arc::from(domain) }
    }

    /// Makes the image available, fetching what is missing, and leases it. Dropping the future stops the waiting; a
    /// layer under way that nobody else waits for is given up, unless all but its last step is done. Where one layer of an image fails with what
    /// may pass (a registry's trouble, a full disk), the others go on for at most six minutes. What is there by then stays, for whoever asks next.
    pub async fn ensure(
        &self,
        request: EnsureRequest,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Image, ImageError> {
        self.inner.ensure(request, &self.domain, Arc::new(progress)).await
    }

    /// Which image the source has for the caller now, by the digest of the platform's manifest: fetches manifest and configuration, whatever is
    /// here, and keeps nothing.
    pub async fn ask(&self, request: EnsureRequest) -> Result<Digest, ImageError> {
        self.inner.ask(request).await
    }

    /// The image, if it is here under this name; asks nobody and checks nobody's rights.
    pub async fn get_local(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let name = parse(reference)?.to_string();
        Ok(self.inner.find(&name, &self.domain).await?.map(|found| found.image))
    }

    /// Leases again what a pod from before the restart uses: the layers by their ids, as [`LayerSnapshot::id`](crate::LayerSnapshot::id)
    /// gave them. Fails if one is gone. Blocking, brief.
    pub fn adopt(&self, layers: &[String]) -> Result<Lease, ImageError> {
        let missing = |id: &str| store_error(StoreError::LayerMissing { id: id.to_owned() });
        let ids: Vec<Digest> = layers.iter().map(|id| id.parse().map_err(|_| missing(id))).collect::<Result<_, _>>()?;
        let lease = self.inner.leases.take(ids);
        for id in lease.layers() {
            if self.inner.store.layer(id).map_err(store_error)?.is_none() {
                return Err(missing(&id.to_string()));
            }
        }
        Ok(lease)
    }

    /// These names, and no others, are kept from collection, whether they are here yet or not. Held by this process only, as leases are:
    /// whoever decides writes them down. What is no name pins nothing.
    pub fn pin<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let names = names.into_iter().filter_map(|name| parse(name).ok()).map(|name| name.to_string()).collect();
        *self.inner.pins.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    /// From now on [`Images::gc`] may remove things: all pods from before the restart have been adopted.
    pub fn allow_gc(&self) {
        self.inner.gc_allowed.store(true, Ordering::Release);
    }

    /// All images by name.
    pub async fn list(&self) -> Result<Vec<ImageSummary>, ImageError> {
        let inner = self.inner.clone();
        blocking(move || {
            let sizes: std::collections::HashMap<Digest, u64> =
                inner.store.layers()?.into_iter().map(|l| (l.id, l.bytes)).collect();
            let mut all = Vec::new();
            for r in inner.store.refs()? {
                let used = inner.store.ref_used(&r.reference, &r.domain)?;
                all.push(ImageSummary {
                    used_at: used.and_then(|at| jiff::Timestamp::try_from(at).ok()).unwrap_or(r.pulled_at),
                    size: r.layers.iter().filter_map(|l| sizes.get(l)).sum(),
                    complete: r.layers.iter().all(|l| sizes.contains_key(l)),
                    in_use: r.layers.last().is_some_and(|l| inner.leases.is_leased(l)),
                    pinned: inner.is_pinned(&r),
                    reference: r.reference,
                    domain: r.domain,
                    manifest_digest: r.manifest,
                    image_id: r.config,
                    repo_digest: r.repo_digest,
                    layers: r.layers,
                    pulled_at: r.pulled_at,
                });
            }
            Ok(all)
        })
        .await
    }

    /// Forgets a name, in all domains. Its layers go with the next [`Images::gc`] unless something else needs them. False: there was no such name.
    pub async fn remove(&self, reference: &str) -> Result<bool, ImageError> {
        self.forget(reference, None).await
    }

    /// The same in one domain only; empty: the host's own.
    pub async fn remove_copy(&self, reference: &str, domain: &str) -> Result<bool, ImageError> {
        self.forget(reference, Some(domain.to_owned())).await
    }

    async fn forget(&self, reference: &str, domain: Option<String>) -> Result<bool, ImageError> {
        let name = parse(reference)?.to_string();
        let store = self.inner.store.clone();
        let _records = self.inner.records.lock().await;
        blocking(move || {
            let mut found = false;
            let meant = |record: &RefRecord| {
                record.reference == name && domain.as_ref().is_none_or(|domain| *domain == record.domain)
            };
            for record in store.refs()?.into_iter().filter(meant) {
                found |= store.remove_ref(&record.reference, &record.domain)?;
            }
            Ok(found)
        })
        .await
    }

    /// Removes layers that no name and no lease needs. Does nothing before [`Images::allow_gc`].
    pub async fn gc(&self) -> Result<GcReport, ImageError> {
        if !self.may_collect() {
            return Ok(GcReport::default());
        }
        let inner = self.inner.clone();
        let _records = self.inner.records.lock().await;
        blocking(move || {
            let mut report = GcReport::default();
            inner.collect_into(&mut report)?;
            Ok(report)
        })
        .await
    }

    fn may_collect(&self) -> bool {
        self.inner.gc_allowed.load(Ordering::Acquire)
    }

    /// Every layer that is here, and every one that an image needs.
    pub async fn layers(&self) -> Result<BTreeSet<Digest>, ImageError> {
        let store = self.inner.store.clone();
        blocking(move || {
            let here = store.layers()?.into_iter().map(|layer| layer.id);
            let needed = store.refs()?.into_iter().flat_map(|image| image.layers);
            Ok(here.chain(needed).collect())
        })
        .await
    }

    /// Every layer that is here.
    pub async fn layers_here(&self) -> Result<BTreeSet<Digest>, ImageError> {
        let store = self.inner.store.clone();
        blocking(move || Ok(store.layers()?.into_iter().map(|layer| layer.id).collect())).await
    }

    /// Reads a layer and says whether it is what was written.
    pub async fn verify_layer(&self, layer: &Digest) -> Result<Verdict, ImageError> {
        let (store, layer) = (self.inner.store.clone(), layer.clone());
        blocking(move || store.verify(&layer)).await
    }

    /// Reads every layer that is here and says whether it is what was written.
    pub async fn verify(&self) -> Result<Vec<(Digest, Verdict)>, ImageError> {
        let store = self.inner.store.clone();
        blocking(move || {
            let layers = store.layers()?.into_iter();
            layers.map(|l| store.verify(&l.id).map(|verdict| (l.id, verdict))).collect()
        })
        .await
    }

    /// Drops a layer that [`Images::verify`] found damaged, so that the next [`Images::ensure`] brings it anew. False: it is leased.
    pub async fn discard(&self, layer: &Digest) -> Result<bool, ImageError> {
        let (inner, layer) = (self.inner.clone(), layer.clone());
        blocking(move || {
            failpoint!(DiscardBegun);
            let gone = inner.store.remove_layer(&layer, |remove| inner.unless_leased(&layer, remove))?;
            failpoint!(Discarded);
            inner.brought.forget(std::slice::from_ref(&layer));
            Ok(gone)
        })
        .await
    }
}

impl Inner {
    /// What is prepared ahead is the host's own copy; those of domains come and go.
    fn is_pinned(&self, record: &RefRecord) -> bool {
        record.domain.is_empty() && self.pins.lock().unwrap_or_else(PoisonError::into_inner).contains(&record.reference)
    }
}

fn parse(reference: &str) -> Result<Reference, ImageError> {
    reference.parse().map_err(ImageError::InvalidName)
}

fn store_error(error: StoreError) -> ImageError {
    ImageError::Store(Arc::new(error))
}

/// Runs store calls, which block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(store_error),
        Err(_) => Err(store_error(StoreError::Cancelled)),
    }
}
