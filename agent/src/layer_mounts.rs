//! Mounts of layers go with their files. While the keeper, which outlives agents, holds one whose file was removed, the file's blocks stay
//! taken, and a layer that comes again under the same identity would be shown from the old file.
//!
//! A release that fails is owed, and tried again with the next one. What nobody remembers (an agent that ended between a removal and its
//! release, a removal that failed halfway) is found by comparing the keeper with the store: at start, and whenever the disk is looked at. A
//! release is never wrong, only dear: containers have clones of their own, and the next start mounts the layer again.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use image_snapshot::{Digest, Images};
use sandbox::contract::SandboxError;
use sandbox::namespace::NamespaceSandboxes;
use tokio::sync::Mutex;

use crate::errors::chain;

/// Who holds layers mounted.
#[async_trait]
pub trait LayerMounts: std::fmt::Debug + Send + Sync {
    /// Identities of all that are mounted.
    async fn mounted(&self) -> Result<Vec<String>, SandboxError>;
    /// Lets go of them; unknown ones are passed over.
    async fn release(&self, ids: &[String]) -> Result<(), SandboxError>;
}

#[async_trait]
impl LayerMounts for NamespaceSandboxes {
    async fn mounted(&self) -> Result<Vec<String>, SandboxError> {
        self.mounted_layers().await
    }

    async fn release(&self, ids: &[String]) -> Result<(), SandboxError> {
        self.release_layers(ids).await
    }
}

/// Mounts of layers, and which of them are still to go. Clones are the same.
#[derive(Debug, Clone)]
pub struct Mounts {
    holder: Arc<dyn LayerMounts>,
    owed: Arc<Mutex<BTreeSet<String>>>,
}

impl Mounts {
    /// Nothing is owed that we know of.
    pub fn new(holder: Arc<dyn LayerMounts>) -> Self {
        Self { holder, owed: Arc::default() }
    }

    /// Lets go of layers whose files are gone, and of what is owed.
    pub async fn release(&self, removed: impl IntoIterator<Item = String>) {
        let mut owed = self.owed.lock().await;
        owed.extend(removed);
        if owed.is_empty() {
            return;
        }
        let ids: Vec<String> = owed.iter().cloned().collect();
        match self.holder.release(&ids).await {
            Ok(()) => owed.clear(),
            Err(error) => {
                tracing::warn!(error = chain(&error), layers = ids.len(), "mounts of removed layers stay for now");
            }
        }
    }

    /// Lets go of what is mounted and not in the store, and of what is owed.
    pub async fn compare(&self, images: &Images) {
        let strays = match self.strays(images).await {
            Ok(strays) => strays,
            Err(error) => {
                tracing::warn!(error, "mounted layers cannot be compared with those that are here");
                Vec::new()
            }
        };
        if !strays.is_empty() {
            tracing::info!(layers = strays.len(), "layers are mounted whose files were removed: their mounts go");
        }
        self.release(strays).await;
    }

    async fn strays(&self, images: &Images) -> Result<Vec<String>, String> {
        // In this order: what is mounted was in the store before.
        let mounted = self.holder.mounted().await.map_err(|error| chain(&error))?;
        let here = images.layers_here().await.map_err(|error| error.chain())?;
        let stray = |id: &String| !id.parse::<Digest>().is_ok_and(|id| here.contains(&id));
        Ok(mounted.into_iter().filter(stray).collect())
    }
}

#[cfg(test)]
mod tests {
    use image_snapshot::ImagesConfig;

    use super::*;
    use crate::images::ImageStore;
    use crate::testing::{layout, wish};

    /// A keeper that can be told to fail.
    #[derive(Debug, Default)]
    struct FakeKeeper {
        mounted: std::sync::Mutex<BTreeSet<String>>,
        failing: std::sync::atomic::AtomicBool,
    }

    impl FakeKeeper {
        fn enter(&self) -> Result<std::sync::MutexGuard<'_, BTreeSet<String>>, SandboxError> {
            if self.failing.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(SandboxError::Failed { operation: "call".to_owned(), message: "told to fail".to_owned() });
            }
            Ok(self.mounted.lock().unwrap())
        }

        fn mount(&self, id: &str) {
            self.mounted.lock().unwrap().insert(id.to_owned());
        }

        fn fail(&self, failing: bool) {
            self.failing.store(failing, std::sync::atomic::Ordering::Relaxed);
        }

        fn ids(&self) -> Vec<String> {
            self.mounted.lock().unwrap().iter().cloned().collect()
        }
    }

    #[async_trait]
    impl LayerMounts for FakeKeeper {
        async fn mounted(&self) -> Result<Vec<String>, SandboxError> {
            Ok(self.enter()?.iter().cloned().collect())
        }

        async fn release(&self, ids: &[String]) -> Result<(), SandboxError> {
            self.enter()?.retain(|id| !ids.contains(id));
            Ok(())
        }
    }

    /// A store with an image in it, whose layer is mounted; the image's name and layer.
    async fn mounted(dir: &std::path::Path, keeper: &Arc<FakeKeeper>) -> (ImageStore, String, String) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let reference = layout(&dir.join("layout"));
        let images = Images::open(ImagesConfig::new(dir.join("images"))).unwrap();
        images.allow_gc();
        let store = ImageStore::new(images, Some(keeper.clone()));
        let image = store.pull(&wish(&reference), |_| {}).await.unwrap();
        let layer = image.rootfs.layers[0].id.clone();
        keeper.mount(&layer);
        (store, reference, layer)
    }

    #[tokio::test]
    async fn mounts_of_layers_that_were_removed_before_this_agent_began_go_and_those_that_are_here_stay() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Arc::new(FakeKeeper::default());
        let (store, _, layer) = mounted(dir.path(), &keeper).await;
        keeper.mount(&Digest::sha256(b"removed").to_string());
        keeper.mount("no digest");
        keeper.fail(true);
        store.compare_mounts().await;
        assert_eq!(keeper.ids().len(), 3);
        keeper.fail(false);
        store.compare_mounts().await;
        assert_eq!(keeper.ids(), [layer.as_str()]);
        // A name that needs it keeps no mount of a layer that was taken out.
        store.images().discard(&layer.parse().unwrap()).await.unwrap();
        store.compare_mounts().await;
        assert!(keeper.ids().is_empty());
    }

    #[tokio::test]
    async fn a_release_that_failed_is_tried_again_though_the_layer_has_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Arc::new(FakeKeeper::default());
        let (store, reference, layer) = mounted(dir.path(), &keeper).await;
        keeper.fail(true);
        assert!(store.remove(&reference, None).await.unwrap().freed > 0);
        let image = store.pull(&wish(&reference), |_| {}).await.unwrap();
        assert_eq!((image.rootfs.layers[0].id.clone(), keeper.ids()), (layer.clone(), vec![layer]));
        keeper.fail(false);
        store.compare_mounts().await;
        assert!(keeper.ids().is_empty(), "what is mounted is the old file");
    }
}
