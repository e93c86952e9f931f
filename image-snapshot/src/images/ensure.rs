//! One wish from name to leased image.

use std::{path::Path, sync::Arc, time::Duration};

use futures::future::try_join_all;
use tokio::sync::Semaphore;
use tracing::Instrument as _;

use super::{
    EnsureRequest, Inner, LocalAccess, blocking,
    flight::{Watch, follow},
    layer::LayerJob,
    lease::Lease,
    parse,
    policy::{Known, Step, decide},
    resolve::{Resolved, resolve},
};
use crate::{
    Credential, Digest, Image, ImageConfig, ImageError, LayerPlan, LayerSnapshot, LocalSources, Progress, Reference,
    RegistryAuth, Rootfs,
    manifest::{Config, Document},
    reference::{LocalKind, LocalReference},
    registry::{Named, Session, select},
    source::{DockerArchive, OciLayout, Source, SourceError},
    store::{Access, LayerRecord, RefRecord},
};

type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// An image that is here.
pub(super) struct Found {
    pub(super) image: Image,
    record: RefRecord,
}

impl Inner {
    pub(super) async fn ensure(&self, request: EnsureRequest, report: Report) -> Result<Image, ImageError> {
        let reference = parse(&request.reference)?;
        let name = reference.to_string();
        let span = tracing::info_span!("ensure_image", image.reference = %name, image.digest = tracing::field::Empty);
        let work = async {
            let image = self.ensure_named(&reference, &name, request, report).await?;
            tracing::Span::current().record("image.digest", image.manifest_digest.to_string());
            Ok(image)
        };
        work.instrument(span).await
    }

    async fn ensure_named(
        &self,
        reference: &Reference,
        name: &str,
        request: EnsureRequest,
        report: Report,
    ) -> Result<Image, ImageError> {
        let credentials: Vec<Named> = request.credentials.into_iter().map(|c| self.named(c)).collect();
        // Also refuses what the caller may not name, before anything is told about it.
        let source = self.source(reference, name, request.local, &credentials, &report)?;
        let found = self.find(name).await?;
        let known = Known {
            present: found.is_some(),
            entitled: found.as_ref().is_some_and(|f| entitled(reference, &f.record.access, &credentials)),
            pinned: reference.is_pinned(),
        };
        let step = decide(request.policy, known);
        tracing::debug!(?step, ?known, "decided by pull policy");
        match (step, found) {
            (Step::Use, Some(found)) => {
                let (store, used) = (self.store.clone(), name.to_owned());
                blocking(move || store.touch_ref(&used)).await?;
                report(Progress::Done { fetched: 0, stored: found.image.size });
                Ok(found.image)
            }
            (Step::Check, Some(found)) => {
                let head = source.head().await.map_err(|e| manifest_error(name, e))?;
                if head.as_ref() != Some(&found.record.target) {
                    return self.pull(name, source, &report).await;
                }
                let access = found.record.access.clone().merge(source.access());
                self.record(RefRecord { access, pulled_at: jiff::Timestamp::now(), ..found.record }, None).await?;
                report(Progress::Done { fetched: 0, stored: found.image.size });
                Ok(found.image)
            }
            (Step::Refuse, _) => Err(ImageError::NeverPull { reference: name.to_owned() }),
            (Step::Use | Step::Check | Step::Pull, _) => self.pull(name, source, &report).await,
        }
    }

    /// The image of that name, leased, if it is here with all its layers.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Found>, ImageError> {
        let (store, leases, name) = (self.store.clone(), self.leases.clone(), name.to_owned());
        blocking(move || {
            let Some(record) = store.get_ref(&name)? else { return Ok(None) };
            let lease = leases.take(record.layers.clone());
            let mut layers = Vec::with_capacity(record.layers.len());
            for id in &record.layers {
                let Some(layer) = store.layer(id)? else { return Ok(None) };
                layers.push(snapshot(&store, &layer));
            }
            let (Some(manifest), Some(config)) = (store.blob(&record.manifest)?, store.blob(&record.config)?) else {
                return Ok(None);
            };
            let Ok(Document::Manifest(manifest)) = Document::parse(&manifest, None) else { return Ok(None) };
            let Ok(config) = Config::parse_stored(&config, &manifest) else { return Ok(None) };
            let image = image(&record, config.run, layers, lease);
            Ok(Some(Found { image, record }))
        })
        .await
    }

    async fn pull(&self, name: &str, source: Arc<dyn Source>, report: &Report) -> Result<Image, ImageError> {
        let limits = &self.config.limits;
        let resolved = resolve(&*source, name, &self.config.platform, limits).await?;
        let chain = resolved.config.chain_ids();
        let lease = self.leases.take(chain.clone());
        let present = self.present(&chain).await?;
        let plans = chain.iter().zip(&resolved.manifest.layers).zip(&present);
        report(Progress::Resolved {
            manifest_digest: resolved.manifest_digest.clone(),
            layers: plans
                .map(|((id, blob), here)| LayerPlan { id: id.clone(), size: blob.size, present: here.is_some() })
                .collect(),
        });
        let records = self.fetch_layers(name, &source, &resolved, &chain, &present, &lease, report).await?;
        let repo_digest = match source.repository() {
            Some(repository) => format!("{repository}@{}", resolved.target),
            None => resolved.manifest.config.digest.to_string(),
        };
        let record = RefRecord {
            reference: name.to_owned(),
            target: resolved.target,
            manifest: resolved.manifest_digest,
            config: resolved.manifest.config.digest.clone(),
            layers: chain,
            repo_digest,
            access: source.access(),
            pulled_at: jiff::Timestamp::now(),
        };
        let record = self.record(record, Some((resolved.manifest_bytes, resolved.config_bytes))).await?;
        let layers = records.iter().map(|r| snapshot(&self.store, r)).collect();
        let image = image(&record, resolved.config.run, layers, lease);
        let missing = resolved.manifest.layers.iter().zip(&present).filter(|(_, here)| here.is_none());
        report(Progress::Done { fetched: missing.map(|(blob, _)| blob.size).sum(), stored: image.size });
        tracing::info!(image.digest = %image.manifest_digest, layers = image.rootfs.layers.len(), "image pulled");
        Ok(image)
    }

    async fn present(&self, chain: &[Digest]) -> Result<Vec<Option<LayerRecord>>, ImageError> {
        let (store, chain) = (self.store.clone(), chain.to_vec());
        blocking(move || chain.iter().map(|id| store.layer(id)).collect()).await
    }

    #[allow(clippy::too_many_arguments)] // One call site; a struct would only name the same seven things again.
    async fn fetch_layers(
        &self,
        name: &str,
        source: &Arc<dyn Source>,
        resolved: &Resolved,
        chain: &[Digest],
        present: &[Option<LayerRecord>],
        lease: &Lease,
        report: &Report,
    ) -> Result<Vec<LayerRecord>, ImageError> {
        let of_image = Arc::new(Semaphore::new(self.config.concurrency.layers_per_image.max(1)));
        let mut below: Option<Watch> = None;
        let mut waits = Vec::new();
        for (index, id) in chain.iter().enumerate() {
            if let Some(record) = &present[index] {
                below = None;
                waits.push((index, Err(record.clone())));
                continue;
            }
            let job = LayerJob {
                store: self.store.clone(),
                source: source.clone(),
                limits: self.config.limits.clone(),
                converter: self.config.converter.clone(),
                blob: resolved.manifest.layers[index].clone(),
                diff_id: resolved.config.diff_ids[index].clone(),
                chain: chain[..=index].to_vec(),
                below: below.take(),
                permits: [of_image.clone(), self.permits.clone()],
                lease: lease.clone(),
            };
            let watch = self.flights.join(id, move |state| job.run(state));
            below = Some(watch.clone());
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
                follow(watch, tell).await.map_err(|failure| failure.of_image(name, id, &blob.digest))
            }
        });
        // Polled lowest first, so that a layer's own error comes before those of the layers that built on it.
        try_join_all(waits).await
    }

    /// Writes a name's record, and the documents if they are new; rights shown earlier for the same content stay.
    async fn record(&self, record: RefRecord, documents: Option<(Vec<u8>, Vec<u8>)>) -> Result<RefRecord, ImageError> {
        let store = self.store.clone();
        let _records = self.records.lock().await;
        blocking(move || {
            let mut record = record;
            if let Some((manifest, config)) = documents {
                store.put_blob(&record.manifest, &manifest)?;
                store.put_blob(&record.config, &config)?;
            }
            if let Some(earlier) = store.get_ref(&record.reference)?
                && earlier.manifest == record.manifest
            {
                record.access = record.access.merge(earlier.access);
            }
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

fn snapshot(store: &crate::store::Store, record: &LayerRecord) -> LayerSnapshot {
    LayerSnapshot { id: record.id.to_string(), path: store.layer_path(&record.id), bytes: record.bytes }
}

fn image(record: &RefRecord, config: ImageConfig, layers: Vec<LayerSnapshot>, lease: Lease) -> Image {
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
