//! The image store as pod tasks and the service see it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use image_snapshot::{
    Credential, EnsureRequest, ErrorKind, Eviction, GcReport, ImageError, Images, LocalAccess, Progress, RegistryAuth,
    Rootfs, Secret,
};

use sandbox::spec::Layer;

use crate::host_credentials::HostCredentials;
use crate::image_gc::Room;
use crate::image_metrics::ImageMetrics;
use crate::layer_mounts::{LayerMounts, Mounts};
use crate::ports::{ImageConfig, ImageFailure, ImageSource, ImageWish, PullPolicy, ReadyImage, RootFiles, Told};
use crate::prepared::{Found, Shelf};
use crate::pulled_bytes::Sum;
use crate::resolved::RegistryCredential;

/// The host's images.
#[derive(Debug, Clone)]
pub struct ImageStore {
    images: Images,
    mounts: Option<Mounts>,
    room: Room,
    host_credentials: Option<Arc<HostCredentials>>,
    metrics: ImageMetrics,
}

/// An image's root while it is held.
struct Held {
    rootfs: Rootfs,
    _lease: image_snapshot::Lease,
}

impl RootFiles for Held {
    fn read_file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, String> {
        self.rootfs.read_file(path, max_bytes).map_err(|error| crate::errors::chain(&error))
    }
}

/// What a removal freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// There was such a name.
    pub found: bool,
    /// Bytes freed on disk.
    pub freed: u64,
}

impl ImageStore {
    /// On an open store. `mounts`: who holds layers mounted.
    pub fn new(images: Images, mounts: Option<Arc<dyn LayerMounts>>) -> Self {
        let mounts = mounts.map(Mounts::new);
        if let Some(mounts) = mounts.clone() {
            images.on_removal(move |layer| mounts.owe([layer.to_string()]));
        }
        Self { images, mounts, room: Room::default(), host_credentials: None, metrics: ImageMetrics::default() }
    }

    /// With a disk that is looked after.
    #[must_use]
    pub fn with_room(self, room: Room) -> Self {
        Self { room, ..self }
    }

    /// With credentials that every pod of this host may pull with.
    #[must_use]
    pub fn with_host_credentials(self, path: Option<PathBuf>) -> Self {
        Self { host_credentials: path.map(|path| Arc::new(HostCredentials::new(path))), ..self }
    }

    /// With metrics that somebody shows.
    #[must_use]
    pub fn with_metrics(self, metrics: ImageMetrics) -> Self {
        metrics.marks(&self.room.marks);
        Self { metrics, ..self }
    }

    /// Looks at the store and brings its metrics up to date.
    pub async fn measure(&self) {
        match self.images.usage().await {
            Ok(usage) => self.metrics.usage(&usage, self.room.used()),
            Err(error) => tracing::warn!(error = error.chain(), "cannot measure the image store"),
        }
    }

    /// The disk.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Has images make way.
    pub async fn make_room(&self, goal: Eviction) -> Result<GcReport, ImageError> {
        let report = self.images.evict(goal).await;
        self.release().await;
        let report = report?;
        self.metrics.made_way(&report);
        Ok(report)
    }

    /// Makes an image available; on a full disk, once more after other images have made way.
    async fn ensure_with_room(
        &self,
        wish: &ImageWish,
        progress: impl Fn(Progress) + Clone + Send + Sync + 'static,
    ) -> Result<image_snapshot::Image, ImageError> {
        let images = self.images.of_domain(&wish.domain);
        let running = self.metrics.pulling(&wish.reference);
        let progress = running.watching(progress);
        let request = match &self.host_credentials {
            None => request(wish),
            Some(host) => {
                let own = request(wish);
                // What is here and theirs by right starts without a helper's word.
                if own.policy == image_snapshot::PullPolicy::IfNotPresent {
                    let here = EnsureRequest { policy: image_snapshot::PullPolicy::Never, ..own.clone() };
                    if let Ok(image) = images.ensure(here, progress.clone()).await {
                        return Ok(image);
                    }
                }
                with_hosts(own, host).await
            }
        };
        match images.ensure(request.clone(), progress.clone()).await {
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                let report = self.make_room(self.room.emergency()).await;
                let freed = report.map(|report| report.freed).unwrap_or_default();
                tracing::warn!(
                    image = wish.reference,
                    freed,
                    "the disk is full: images make way for one that is needed"
                );
                if freed == 0 {
                    return Err(error);
                }
                images.ensure(request, progress).await
            }
            other => other,
        }
    }

    /// Lets go of mounts of what was removed. False: not now.
    async fn release(&self) -> bool {
        match &self.mounts {
            Some(mounts) => mounts.release().await,
            None => true,
        }
    }

    /// Lets go of mounts of layers that are not here, and of those that could not be let go of before.
    pub async fn compare_mounts(&self) {
        if let Some(mounts) = &self.mounts {
            mounts.compare(&self.images).await;
        }
    }

    /// The store itself.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Makes an image available and tells how it goes.
    pub async fn pull(
        &self,
        wish: &ImageWish,
        progress: impl Fn(Progress) + Clone + Send + Sync + 'static,
    ) -> Result<image_snapshot::Image, ImageError> {
        self.ensure_with_room(wish, progress).await
    }

    /// Which image its source has for this host now, by its manifest's digest; nothing of it is kept.
    pub async fn ask(&self, wish: &ImageWish) -> Result<image_snapshot::Digest, ImageError> {
        let request = match &self.host_credentials {
            None => request(wish),
            Some(host) => with_hosts(request(wish), host).await,
        };
        self.images.ask(request).await
    }

    /// Removes a layer that is not what was written. Its mount goes first, so that nobody is given it instead of what comes anew.
    pub async fn discard(&self, layer: &image_snapshot::Digest) -> Result<Discarded, ImageError> {
        if let Some(mounts) = &self.mounts {
            mounts.owe([layer.to_string()]);
        }
        if !self.release().await {
            return Ok(Discarded::Mounted);
        }
        let gone = self.images.discard(layer).await;
        // Once more, for a pod that has come and gone in between.
        self.release().await;
        Ok(if gone? { Discarded::Gone } else { Discarded::InUse })
    }

    /// Forgets a name, in all domains or in one, and removes what nobody needs any more.
    pub async fn remove(&self, reference: &str, domain: Option<&str>) -> Result<Removed, ImageError> {
        let found = match domain {
            None => self.images.remove(reference).await?,
            Some(domain) => self.images.remove_copy(reference, domain).await?,
        };
        let report = self.images.gc().await;
        self.release().await;
        let report = report?;
        self.metrics.made_way(&report);
        Ok(Removed { found, freed: report.freed })
    }
}

/// What became of a layer that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    /// It is gone, and so is its mount.
    Gone,
    /// Somebody uses it.
    InUse,
    /// Its mount could not be let go of now: it is still here.
    Mounted,
}

/// The pod's own credentials go first.
async fn with_hosts(mut request: EnsureRequest, host: &HostCredentials) -> EnsureRequest {
    match host.of(&request.reference).await {
        Ok(credentials) => request.credentials.extend(credentials),
        Err(error) => {
            tracing::warn!(
                image = request.reference,
                error = crate::errors::chain(&error),
                "the host's own credentials cannot be had: pulling without them"
            );
        }
    }
    request
}

fn request(wish: &ImageWish) -> EnsureRequest {
    EnsureRequest {
        reference: wish.reference.clone(),
        policy: match wish.policy {
            PullPolicy::Always => image_snapshot::PullPolicy::Always,
            PullPolicy::IfNotPresent => image_snapshot::PullPolicy::IfNotPresent,
            PullPolicy::Never => image_snapshot::PullPolicy::Never,
        },
        credentials: wish.credentials.iter().map(credential).collect(),
        local: if wish.trusted { LocalAccess::Trusted } else { LocalAccess::AllowList },
    }
}

fn credential(wire: &RegistryCredential) -> Credential {
    let auth = if wire.identity_token.is_empty() {
        RegistryAuth::Basic { username: wire.username.clone(), password: Secret::new(wire.password.clone()) }
    } else {
        RegistryAuth::Identity(Secret::new(wire.identity_token.clone()))
    };
    Credential { scope: wire.registry.clone(), auth }
}

fn failure(error: &ImageError) -> ImageFailure {
    ImageFailure { reason: error.reason(), message: error.chain(), retry_after: error.retry_after() }
}

#[async_trait]
impl ImageSource for ImageStore {
    async fn is_present(&self, wish: &ImageWish) -> bool {
        let here = async |images: Images| images.get_local(&wish.reference).await.is_ok_and(|found| found.is_some());
        // What the host has for all is copied for a domain, not pulled.
        here(self.images.of_domain(&wish.domain)).await || here(self.images.of_domain("")).await
    }

    async fn ensure(&self, wish: &ImageWish, told: Told) -> Result<ReadyImage, ImageFailure> {
        let image = self.ensure_with_room(wish, adding_up(told)).await.map_err(|error| failure(&error))?;
        let layers =
            image.rootfs.layers.iter().map(|layer| Layer { id: layer.id.clone(), path: layer.path.clone() }).collect();
        Ok(ReadyImage {
            reference: image.reference,
            image_id: image.repo_digest,
            digest: image.manifest_digest.to_string(),
            config: ImageConfig {
                entrypoint: image.config.entrypoint,
                cmd: image.config.cmd,
                env: image.config.env,
                working_dir: image.config.working_dir,
                user: image.config.user,
                stop_signal: image.config.stop_signal,
            },
            layers,
            size: image.size,
            files: Arc::new(Held { rootfs: image.rootfs, _lease: image.lease }),
        })
    }

    fn adopt(&self, layers: &[String]) -> Result<Box<dyn Send + Sync>, ImageFailure> {
        self.images.adopt(layers).map(|lease| Box::new(lease) as Box<dyn Send + Sync>).map_err(|error| failure(&error))
    }

    fn allow_collection(&self) {
        self.images.allow_gc();
    }
}

/// Adds a pull's layers up: bytes that have come, and bytes in all.
fn adding_up(told: Told) -> impl Fn(Progress) + Clone + Send + Sync + 'static {
    let (told, sum) = (Arc::new(told), Sum::default());
    move |progress| {
        if let Some((done, total)) = sum.add(&progress) {
            told(done, total);
        }
    }
}

fn found(image: &image_snapshot::Image) -> Found {
    Found {
        digest: image.manifest_digest.to_string(),
        size: image.size,
        layers: u32::try_from(image.rootfs.layers.len()).unwrap_or(u32::MAX),
    }
}

#[async_trait]
impl Shelf for ImageStore {
    async fn fetch(&self, wish: &ImageWish, size: u64, told: Told) -> Result<Found, ImageFailure> {
        if let Some(percent) = self.room.fullness_with(size)
            && !self.is_present(wish).await
        {
            let high = self.room.marks.high;
            let would_be = if size == 0 { "is" } else { "would be" };
            let message = format!(
                "the disk {would_be} {percent} % full: images are pulled ahead of their use below {high} % only"
            );
            return Err(ImageFailure { reason: "DiskPressure", message, retry_after: None });
        }
        let image = self.ensure_with_room(wish, adding_up(told)).await;
        image.map(|image| found(&image)).map_err(|error| failure(&error))
    }

    async fn find(&self, reference: &str) -> Option<Found> {
        self.images.get_local(reference).await.ok().flatten().map(|image| found(&image))
    }

    fn pin(&self, names: &BTreeSet<String>) {
        self.images.pin(names.iter().map(String::as_str));
    }

    async fn let_go(&self, reference: &str) -> bool {
        let used = match self.images.list().await {
            Ok(list) => {
                // What is kept ready is the host's own copy; those of domains are their pods'.
                let named = list.iter().find(|image| image.domain.is_empty() && names(image, reference));
                if named.is_some_and(|image| image.pinned) {
                    // Wanted under another spelling of its name.
                    return true;
                }
                named.is_some_and(|image| image.in_use)
            }
            Err(_) => true,
        };
        if !used && let Err(error) = self.remove(reference, Some("")).await {
            tracing::warn!(image = reference, error = error.chain(), "an image that is wanted no more stays");
        }
        !used
    }
}

/// Whether an image goes by this name, however it is written.
pub fn names(image: &image_snapshot::ImageSummary, reference: &str) -> bool {
    reference.parse::<image_snapshot::Reference>().is_ok_and(|name| name.to_string() == image.reference)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A registry that answers everything with this status and wants to be left alone for a while.
    async fn busy_registry(status: &'static str, seconds: u32) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = format!(
                    "HTTP/1.1 {status}\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn what_a_busy_registry_asks_for_reaches_the_pod() {
        // As main does; another test may have done it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let config = image_snapshot::ImagesConfig::new(dir.path());
        let images = tokio::task::spawn_blocking(|| Images::open(config)).await.unwrap().unwrap();
        let store = ImageStore::new(images, None);
        for (status, seconds) in [("429 Too Many Requests", 120), ("503 Service Unavailable", 300)] {
            let address = busy_registry(status, seconds).await;
            let wish = ImageWish {
                reference: format!("{address}/image:1"),
                policy: PullPolicy::Always,
                credentials: Vec::new(),
                trusted: false,
                domain: String::new(),
            };
            let failure = store.ensure(&wish, Box::new(|_, _| {})).await.unwrap_err();
            assert_eq!(failure.reason, "ErrImagePull", "{failure}");
            assert_eq!(failure.retry_after, Some(Duration::from_secs(seconds.into())), "{failure}");
        }
    }
}
