//! One wish from name to leased image.

use std::{path::Path, sync::Arc, time::Duration};

use futures::future::try_join_all;
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use super::{
    EnsureRequest, Inner, LocalAccess, blocking, domain,
    flight::{Watch, follow, linger},
    layer::LayerJob,
    lease::Lease,
    parse,
    policy::{Known, Step, decide},
    resolve::{Resolved, resolve},
    rights,
};
use crate::{
    Credential, Digest, ErrorKind, Image, ImageConfig, ImageError, LayerPlan, LayerSnapshot, LocalSources, Progress,
    Reference, RegistryAuth, Rootfs,
    manifest::{Config, Document},
    reference::{LocalKind, LocalReference},
    registry::{Named, Session, select},
    source::{DockerArchive, OciLayout, Source, SourceError},
    store::{Access, LayerRecord, RefRecord, faults::failpoint},
};

type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// A manifest and a configuration, byte for byte.
pub(super) struct Documents {
    manifest: Vec<u8>,
    config: Vec<u8>,
}

/// What is asked for, and by whom.
pub(super) struct Wish {
    pub(super) reference: Reference,
    /// Its normal form.
    name: String,
    domain: String,
    pub(super) source: Arc<dyn Source>,
    /// The host's own operator asks, for a path of his.
    pub(super) operator: bool,
}

/// An image that is here.
pub(super) struct Found {
    pub(super) image: Image,
    pub(super) record: RefRecord,
    pub(super) documents: Documents,
}

impl Inner {
    pub(super) async fn ensure(
        &self,
        request: EnsureRequest,
        domain: &str,
        report: Report,
    ) -> Result<Image, ImageError> {
        let reference = parse(&request.reference)?;
        let name = reference.to_string();
        let span = tracing::info_span!("ensure_image", image.reference = %name, image.digest = tracing::field::Empty);
        let work = async {
            let image = self.ensure_named(reference, &name, domain, request, report).await?;
            tracing::Span::current().record("image.digest", image.manifest_digest.to_string());
            Ok(image)
        };
        work.instrument(span).await
    }

    async fn ensure_named(
        &self,
        reference: Reference,
        name: &str,
        domain: &str,
        request: EnsureRequest,
        report: Report,
    ) -> Result<Image, ImageError> {
        let credentials: Vec<Named> = request.credentials.into_iter().map(|c| self.named(c)).collect();
        // Also refuses what the caller may not name, before anything is told about it.
        let source = self.source(&reference, name, request.local, &credentials, &report)?;
        let operator = matches!((&reference, request.local), (Reference::Local(_), LocalAccess::Trusted));
        let wish = Wish { reference, name: name.to_owned(), domain: domain.to_owned(), source, operator };
        let mut found = self.find(name, domain).await?;
        if found.is_none() && !domain.is_empty() {
            // What has been prepared for all can be copied.
            found = self.find(name, "").await?;
        }
        let known = Known {
            present: found.is_some(),
            entitled: found.as_ref().is_some_and(|f| entitled(&wish.reference, &f.record.access, &credentials)),
            pinned: wish.reference.is_pinned(),
        };
        let step = decide(request.policy, known);
        tracing::debug!(?step, ?known, "decided by pull policy");
        let image = match (step, found) {
            (Step::Use, Some(found)) if found.record.domain == domain => {
                let (store, used, domain) = (self.store.clone(), name.to_owned(), domain.to_owned());
                blocking(move || store.touch_ref(&used, &domain)).await?;
                Some(found.image)
            }
            (Step::Use, Some(found)) => self.copy_into(domain, found).await?,
            (Step::Check, Some(mut found)) => {
                let head = wish.source.head().await.map_err(|e| manifest_error(name, e))?;
                if head.as_ref() != Some(&found.record.target) {
                    return self.pull(&wish, &report).await;
                }
                found.record.access = found.record.access.merge(wish.source.access());
                found.record.pulled_at = jiff::Timestamp::now();
                if found.record.domain == domain {
                    // With the documents: somebody may have removed the name meanwhile, and a collection them.
                    self.record(found.record, found.documents).await?;
                    Some(found.image)
                } else {
                    self.copy_into(domain, found).await?
                }
            }
            (Step::Refuse, _) => return Err(ImageError::NeverPull { reference: name.to_owned() }),
            (Step::Use | Step::Check | Step::Pull, _) => None,
        };
        let Some(image) = image else { return self.pull(&wish, &report).await };
        report(Progress::Done { fetched: 0, stored: image.size });
        Ok(image)
    }

    /// Asks the source for what a pull would ask it for first, and keeps nothing.
    pub(super) async fn ask(&self, request: EnsureRequest) -> Result<Digest, ImageError> {
        let reference = parse(&request.reference)?;
        let name = reference.to_string();
        let credentials: Vec<Named> = request.credentials.into_iter().map(|c| self.named(c)).collect();
        let nobody: Report = Arc::new(|_| {});
        let source = self.source(&reference, &name, request.local, &credentials, &nobody)?;
        let resolved = resolve(&*source, &name, &self.config.platform, &self.config.limits).await?;
        Ok(resolved.manifest_digest)
    }

    /// The image of that name, leased, if it is here with all its layers.
    pub(super) async fn find(&self, name: &str, domain: &str) -> Result<Option<Found>, ImageError> {
        let (store, leases) = (self.store.clone(), self.leases.clone());
        let (name, domain) = (name.to_owned(), domain.to_owned());
        blocking(move || {
            let Some(record) = store.get_ref(&name, &domain)? else { return Ok(None) };
            let lease = leases.take(record.layers.clone());
            let mut layers = Vec::with_capacity(record.layers.len());
            for id in &record.layers {
                let Some(layer) = store.layer(id)? else { return Ok(None) };
                layers.push(snapshot(&store, &layer));
            }
            let (Some(manifest), Some(config)) = (store.blob(&record.manifest)?, store.blob(&record.config)?) else {
                return Ok(None);
            };
            let documents = Documents { manifest, config };
            let Ok(Document::Manifest(manifest)) = Document::parse(&documents.manifest, None) else { return Ok(None) };
            let Ok(config) = Config::parse_stored(&documents.config, &manifest) else { return Ok(None) };
            failpoint!(ImageFound);
            let image = image(&record, config.run, layers, lease);
            Ok(Some(Found { image, record, documents }))
        })
        .await
    }

    async fn pull(&self, wish: &Wish, report: &Report) -> Result<Image, ImageError> {
        let limits = &self.config.limits;
        let resolved = resolve(&*wish.source, &wish.name, &self.config.platform, limits).await?;
        let chain = domain::layers(&wish.domain, &resolved.config.chain_ids());
        let lease = self.leases.take(chain.clone());
        let present = self.rightful(wish, &resolved, &chain).await?;
        let plans = chain.iter().zip(&resolved.manifest.layers).zip(&present);
        report(Progress::Resolved {
            manifest_digest: resolved.manifest_digest.clone(),
            layers: plans
                .map(|((id, blob), here)| LayerPlan { id: id.clone(), size: blob.size, present: here.is_some() })
                .collect(),
        });
        let records = self.fetch_layers(wish, &resolved, &chain, &present, &lease, report).await?;
        let repo_digest = match wish.source.repository() {
            Some(repository) => format!("{repository}@{}", resolved.target),
            None => resolved.manifest.config.digest.to_string(),
        };
        let record = RefRecord {
            reference: wish.name.clone(),
            domain: wish.domain.clone(),
            target: resolved.target,
            manifest: resolved.manifest_digest,
            config: resolved.manifest.config.digest.clone(),
            layers: chain,
            repo_digest,
            access: wish.source.access(),
            pulled_at: jiff::Timestamp::now(),
        };
        let documents = Documents { manifest: resolved.manifest_bytes, config: resolved.config_bytes };
        let record = self.record(record, documents).await?;
        let layers = records.iter().map(|r| snapshot(&self.store, r)).collect();
        let image = image(&record, resolved.config.run, layers, lease);
        let missing = resolved.manifest.layers.iter().zip(&present).filter(|(_, here)| here.is_none());
        report(Progress::Done { fetched: missing.map(|(blob, _)| blob.size).sum(), stored: image.size });
        tracing::info!(image.digest = %image.manifest_digest, layers = image.rootfs.layers.len(), "image pulled");
        Ok(image)
    }

    async fn fetch_layers(
        &self,
        wish: &Wish,
        resolved: &Resolved,
        chain: &[Digest],
        present: &[Option<LayerRecord>],
        lease: &Lease,
        report: &Report,
    ) -> Result<Vec<LayerRecord>, ImageError> {
        let right = rights::word(&wish.reference, &wish.source.access());
        let of_image = Arc::new(Semaphore::new(self.config.concurrency.layers_per_image.max(1)));
        let mut below: Option<Watch> = None;
        let (mut waits, mut under_way) = (Vec::new(), Vec::new());
        for (index, id) in chain.iter().enumerate() {
            if let Some(record) = &present[index] {
                below = None;
                waits.push((index, Err(record.clone())));
                continue;
            }
            let job = LayerJob {
                store: self.store.clone(),
                source: wish.source.clone(),
                limits: self.config.limits.clone(),
                converter: self.config.converter.clone(),
                blob: resolved.manifest.layers[index].clone(),
                diff_id: resolved.config.diff_ids[index].clone(),
                chain: chain[..=index].to_vec(),
                below: below.take(),
                flights: self.flights.clone(),
                permits: [of_image.clone(), self.permits.clone()],
                ahead: self.ahead.clone(),
                lease: lease.clone(),
                right: right.clone(),
                brought: self.brought.clone(),
            };
            let watch = self.flights.join(id, &right, move |state| job.run(state));
            below = Some(watch.clone());
            under_way.push(watch.clone());
            waits.push((index, Ok(watch)));
        }
        let waits = waits.into_iter().map(|(index, wait)| {
            let (id, blob) = (&chain[index], &resolved.manifest.layers[index]);
            async move {
                let watch = match wait {
                    Ok(watch) => watch,
                    Err(record) => return Ok(record),
                };
                let tell = |phase, done| report(Progress::Layer { index, phase, done, total: blob.size });
                follow(watch, tell).await.map_err(|failure| failure.of_image(&wish.name, id, &blob.digest))
            }
        });
        // Polled lowest first, so that a layer's own error comes before those of the layers that built on it.
        let all = try_join_all(waits).await;
        if all.as_ref().is_err_and(|error| may_pass(error.kind())) {
            // Whoever is told so asks again: what the others have brought by then need not be brought anew.
            linger(under_way);
        }
        all
    }

    /// Writes a name's record, after the documents that are not there; rights shown earlier for the same content stay.
    pub(super) async fn record(&self, record: RefRecord, documents: Documents) -> Result<RefRecord, ImageError> {
        let store = self.store.clone();
        let _records = self.records.lock().await;
        blocking(move || {
            let mut record = record;
            store.put_blob(&record.manifest, &documents.manifest)?;
            failpoint!(ManifestKept);
            store.put_blob(&record.config, &documents.config)?;
            failpoint!(ConfigKept);
            if let Some(earlier) = store.get_ref(&record.reference, &record.domain)?
                && earlier.manifest == record.manifest
            {
                record.access = record.access.merge(earlier.access);
            }
            failpoint!(EarlierRefRead);
            store.set_ref(&record)?;
            Ok(record)
        })
        .await
    }

    fn named(&self, credential: Credential) -> Named {
        let parts = match &credential.auth {
            RegistryAuth::Basic { username, password } => ["basic", username, password.expose()],
            RegistryAuth::Identity(token) => ["identity", "", token.expose()],
            RegistryAuth::Bearer(token) => ["bearer", "", token.expose()],
        };
        let fingerprint = self.store.fingerprint(&parts);
        (credential, fingerprint)
    }

    fn source(
        &self,
        reference: &Reference,
        name: &str,
        local: LocalAccess,
        credentials: &[Named],
        report: &Report,
    ) -> Result<Arc<dyn Source>, ImageError> {
        match reference {
            Reference::Registry(image) => {
                let report = report.clone();
                let notice = move |error: &SourceError, after: Duration| {
                    let error = crate::error::chain(error);
                    tracing::warn!(error, ?after, "a registry request failed and will be tried again");
                    report(Progress::Retrying { error, after });
                };
                let session = Session::new(self.registries.clone(), image.clone(), credentials, Box::new(notice));
                Ok(Arc::new(session))
            }
            Reference::Local(image) => self.local_source(image, name, local),
        }
    }

    fn local_source(
        &self,
        image: &LocalReference,
        name: &str,
        local: LocalAccess,
    ) -> Result<Arc<dyn Source>, ImageError> {
        let refused = || ImageError::LocalRefused { reference: name.to_owned() };
        let io = |source| manifest_error(name, SourceError::Io { what: image.path.display().to_string(), source });
        let path = match (local, &self.config.local_sources) {
            (LocalAccess::Trusted, _) => image.path.clone(),
            (LocalAccess::AllowList, LocalSources::Refused) => return Err(refused()),
            (LocalAccess::AllowList, LocalSources::Under(dirs)) => {
                let real = image.path.canonicalize().map_err(|_| refused())?;
                let inside = |dir: &Path| dir.canonicalize().is_ok_and(|dir| real.starts_with(dir));
                if !dirs.iter().any(|dir| inside(dir)) {
                    return Err(refused());
                }
                real
            }
        };
        std::fs::metadata(&path).map_err(io)?;
        let (name, limits) = (image.name.as_deref(), &self.config.limits);
        Ok(match image.kind {
            LocalKind::OciLayout => Arc::new(OciLayout::directory(&path, name, limits)),
            LocalKind::OciArchive => Arc::new(OciLayout::archive(&path, name, limits)),
            LocalKind::DockerArchive => Arc::new(DockerArchive::new(&path, name, limits)),
        })
    }
}

/// Whether the same layer may well come when it is asked for again soon. Of an image that is bad, or is not to be had, nothing stays under way.
fn may_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::RateLimited | ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::NoSpace)
}

/// Whether the caller has shown the right to an image that is here.
fn entitled(reference: &Reference, access: &Access, credentials: &[Named]) -> bool {
    match reference {
        Reference::Local(_) => true,
        Reference::Registry(image) => {
            let mine: Vec<String> = select(credentials, image).into_iter().map(|(_, f)| f.clone()).collect();
            access.allows(&mine)
        }
    }
}

fn manifest_error(name: &str, source: SourceError) -> ImageError {
    ImageError::Manifest { reference: name.to_owned(), source: Arc::new(source) }
}

pub(super) fn snapshot(store: &crate::store::Store, record: &LayerRecord) -> LayerSnapshot {
    LayerSnapshot { id: record.id.to_string(), path: store.layer_path(&record.id), bytes: record.bytes }
}

pub(super) fn image(record: &RefRecord, config: ImageConfig, layers: Vec<LayerSnapshot>, lease: Lease) -> Image {
    Image {
        reference: record.reference.clone(),
        manifest_digest: record.manifest.clone(),
        image_id: record.config.clone(),
        repo_digest: record.repo_digest.clone(),
        config,
        size: layers.iter().map(|l| l.bytes).sum(),
        rootfs: Rootfs { layers },
        lease,
    }
}
