//! The image store as pod tasks and the service see it.

use std::sync::Arc;

use async_trait::async_trait;
use image_snapshot::{
    Credential, EnsureRequest, ImageError, Images, LocalAccess, Progress, RegistryAuth, Rootfs, Secret,
};
use sandbox::namespace::NamespaceSandboxes;
use sandbox::spec::Layer;

use crate::ports::{ImageConfig, ImageFailure, ImageSource, ImageWish, PullPolicy, ReadyImage, RootFiles};
use crate::resolved::RegistryCredential;

/// The host's images.
#[derive(Debug, Clone)]
pub struct ImageStore {
    images: Images,
    /// Holds layer mounts that must go before their files.
    mounts: Option<NamespaceSandboxes>,
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
    pub fn new(images: Images, mounts: Option<NamespaceSandboxes>) -> Self {
        Self { images, mounts }
    }

    /// The store itself.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Makes an image available and tells how it goes.
    pub async fn pull(
        &self,
        wish: &ImageWish,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<image_snapshot::Image, ImageError> {
        self.images.ensure(request(wish), progress).await
    }

    /// Forgets a name and removes what nobody needs any more.
    pub async fn remove(&self, reference: &str) -> Result<Removed, ImageError> {
        let found = self.images.remove(reference).await?;
        let report = self.images.gc().await?;
        let gone: Vec<String> = report.removed.iter().map(ToString::to_string).collect();
        if let Some(mounts) = self.mounts.as_ref().filter(|_| !gone.is_empty())
            && let Err(error) = mounts.release_layers(&gone).await
        {
            tracing::warn!(error = crate::errors::chain(&error), "mounts of removed layers stay for now");
        }
        Ok(Removed { found, freed: report.freed })
    }
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
    async fn is_present(&self, reference: &str) -> bool {
        self.images.get_local(reference).await.is_ok_and(|found| found.is_some())
    }

    async fn ensure(&self, wish: &ImageWish) -> Result<ReadyImage, ImageFailure> {
        let image = self.images.ensure(request(wish), |_| {}).await.map_err(|error| failure(&error))?;
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
            };
            let failure = store.ensure(&wish).await.unwrap_err();
            assert_eq!(failure.reason, "ErrImagePull", "{failure}");
            assert_eq!(failure.retry_after, Some(Duration::from_secs(seconds.into())), "{failure}");
        }
    }
}
