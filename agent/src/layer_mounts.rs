//! Mounts of layers go with their files. While the keeper, which outlives agents, holds one whose file was removed, the file's blocks stay
//! taken, and a layer that comes again under the same identity would be shown from the old file.
//!
//! A release is owed from right before the removal, whoever has the layer removed and whether or not he waits for it; one that fails is tried
//! again with the next one. What nobody remembers (an agent that ended between a removal and its release) is found by comparing the keeper
//! with the store: at start, and whenever the disk is looked at. A release is never wrong, only dear: containers have clones of their own, and
//! the next start mounts the layer again.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

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
    owed: Arc<std::sync::Mutex<BTreeSet<String>>>,
    /// One release at a time.
    turn: Arc<Mutex<()>>,
}

impl Mounts {
    /// Nothing is owed that we know of.
    pub fn new(holder: Arc<dyn LayerMounts>) -> Self {
        Self { holder, owed: Arc::default(), turn: Arc::default() }
    }

    /// These are to go with the next release.
    pub fn owe(&self, ids: impl IntoIterator<Item = String>) {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }

    /// Lets go of what is owed. False: it stays owed.
    pub async fn release(&self) -> bool {
        let _turn = self.turn.lock().await;
        // What is owed meanwhile is owed anew.
        let owed = std::mem::take(&mut *self.owed.lock().unwrap_or_else(PoisonError::into_inner));
        if owed.is_empty() {
            return true;
        }
        let back = Back { owed: &self.owed, ids: owed.into_iter().collect() };
        match self.holder.release(&back.ids).await {
            Ok(()) => {
                back.done();
                true
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), layers = back.ids.len(), "mounts of removed layers stay for now");
                false
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
        self.owe(strays);
        self.release().await;
    }

    async fn strays(&self, images: &Images) -> Result<Vec<String>, String> {
        // In this order: what is mounted was in the store before.
        let mounted = self.holder.mounted().await.map_err(|error| chain(&error))?;
        let here = images.layers_here().await.map_err(|error| error.chain())?;
        let stray = |id: &String| !id.parse::<Digest>().is_ok_and(|id| here.contains(&id));
        Ok(mounted.into_iter().filter(stray).collect())
    }
}

/// What a release is under way of: owed again if nobody sees it through.
struct Back<'a> {
    owed: &'a std::sync::Mutex<BTreeSet<String>>,
    ids: Vec<String>,
}

impl Back<'_> {
    fn done(mut self) {
        self.ids.clear();
    }
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).extend(self.ids.drain(..));
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
    async fn what_is_removed_while_nobody_waits_for_it_or_before_a_failure_is_let_go_of_though_it_has_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Arc::new(FakeKeeper::default());
        let (store, reference, layer) = mounted(dir.path(), &keeper).await;
        // As for one who has gone before it was done: by the store itself, which tells nobody else.
        store.images().remove(&reference).await.unwrap();
        assert_eq!(store.images().gc().await.unwrap().removed.len(), 1);
        let image = store.pull(&wish(&reference), |_| {}).await.unwrap();
        assert_eq!(image.rootfs.layers[0].id, layer);
        assert_eq!(keeper.ids(), [layer.as_str()]);
        store.compare_mounts().await;
        assert!(keeper.ids().is_empty(), "what is mounted is the old file");
    }

    #[tokio::test]
    async fn a_release_that_nobody_sees_through_stays_owed() {
        /// Never answers.
        #[derive(Debug)]
        struct Silent;
        #[async_trait]
        impl LayerMounts for Silent {
            async fn mounted(&self) -> Result<Vec<String>, SandboxError> {
                Ok(Vec::new())
            }
            async fn release(&self, _: &[String]) -> Result<(), SandboxError> {
                std::future::pending().await
            }
        }
        let mounts = Mounts::new(Arc::new(Silent));
        mounts.owe(["a".to_owned()]);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), mounts.release()).await.is_err());
        assert_eq!(mounts.owed.lock().unwrap().iter().collect::<Vec<_>>(), ["a"]);
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
