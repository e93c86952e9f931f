//! Images that are volumes: brought before the containers that mount them, once for the pod, as a kubelet does.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use sandbox::spec::Layer;

use super::World;
use super::pull::{self, Teller};
use crate::intent::{Intent, Source};
use crate::pod::plan;
use crate::ports::{ImageFailure, ImageWish, ReadyImage};

/// A volume's image that could not be had.
#[derive(Debug)]
pub(super) struct Missing {
    /// As the pod writes it.
    pub(super) reference: String,
    pub(super) failure: ImageFailure,
}

/// The images that are here, held while this lives.
#[derive(Debug, Default)]
pub(super) struct VolumeImages {
    here: Mutex<BTreeMap<String, ReadyImage>>,
    /// One at a time: whoever comes second finds what the first has brought.
    bringing: tokio::sync::Mutex<()>,
}

impl VolumeImages {
    /// Brings the images that the container mounts and that are not here yet, and says so to the pod.
    pub(super) async fn bring(
        &self,
        world: &World,
        intent: &Intent,
        container: &Container,
        teller: &Teller,
    ) -> Result<(), Missing> {
        for (name, source) in mounted(&intent.pod, container) {
            let _one = self.bringing.lock().await;
            if self.lock().contains_key(name) {
                continue;
            }
            let wish = wish(intent, source);
            let brought = pull::image(world, &wish, teller).await;
            let image = brought.map_err(|failure| Missing { reference: wish.reference, failure })?;
            self.lock().insert(name.to_owned(), image);
        }
        Ok(())
    }

    /// Layers of each image that is here, by volume.
    pub(super) fn layers(&self) -> BTreeMap<String, Vec<Layer>> {
        self.lock().iter().map(|(name, image)| (name.clone(), image.layers.clone())).collect()
    }

    /// Ids of the layers that the container mounts.
    pub(super) fn layers_of(&self, pod: &Pod, container: &Container) -> Vec<String> {
        let here = self.lock();
        let images = mounted(pod, container).filter_map(|(name, _)| here.get(name));
        images.flat_map(|image| image.layers.iter().map(|layer| layer.id.clone())).collect()
    }

    /// Lets go of them.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, ReadyImage>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pod's volumes that are images and that the container mounts, each once.
fn mounted<'a>(pod: &'a Pod, container: &'a Container) -> impl Iterator<Item = (&'a str, &'a ImageVolumeSource)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let source = volume.image.as_ref()?;
        let mut mounts = container.volume_mounts.iter().flatten();
        mounts.any(|mount| mount.name == volume.name).then_some((volume.name.as_str(), source))
    })
}

fn wish(intent: &Intent, source: &ImageVolumeSource) -> ImageWish {
    let reference = source.reference.clone().unwrap_or_default();
    ImageWish {
        policy: plan::pull_policy(source.pull_policy.as_deref(), &reference),
        reference,
        credentials: intent.resolved.credentials.clone(),
        trusted: intent.source == Source::Manifest,
        domain: intent.namespace().to_owned(),
    }
}
