//! What is on the disk compared with what was written, and brought anew where it is not that.

use agent_api::proto;
use image_snapshot::store::Verdict;
use image_snapshot::{Digest, ImageError, ImageSummary};

use super::failed;
use crate::images::ImageStore;
use crate::ports::{ImageWish, PullPolicy};
use crate::service::{Answers, answers};

/// Tells of each layer as soon as it has been read; all that is looked at ends when nobody listens any more.
pub(super) fn verify(images: ImageStore, repair: bool) -> Answers<proto::VerifiedLayer> {
    let (sender, stream) = answers();
    tokio::spawn(async move {
        let work = async {
            for layer in images.images().layers().await? {
                let Some(told) = look(&images, &layer, repair).await? else { continue };
                if sender.send(Ok(told)).await.is_err() {
                    break;
                }
            }
            Ok::<_, ImageError>(())
        };
        if let Err(error) = work.await {
            let _ = sender.send(Err(failed(&error))).await;
        }
    });
    stream
}

/// What is to be told of a layer; nothing, if it has gone and nobody needs it.
async fn look(images: &ImageStore, layer: &Digest, repair: bool) -> Result<Option<proto::VerifiedLayer>, ImageError> {
    let verdict = images.images().verify_layer(layer).await?;
    // Asked for afterwards: whoever removes an image takes its name first.
    let list = images.images().list().await?;
    let of: Vec<&ImageSummary> = list.iter().filter(|image| image.layers.contains(layer)).collect();
    if verdict == Verdict::Missing && of.is_empty() {
        return Ok(None);
    }
    let (action, message) = match verdict {
        Verdict::Sound => Default::default(),
        Verdict::Missing | Verdict::Damaged if repair => mend(images, layer, &of).await?,
        Verdict::Missing | Verdict::Damaged => Default::default(),
    };
    let verdict = match verdict {
        Verdict::Sound => "sound",
        Verdict::Missing => "missing",
        Verdict::Damaged => "damaged",
    };
    let references = of.iter().map(|image| image.reference.clone()).collect();
    let layer = layer.to_string();
    Ok(Some(proto::VerifiedLayer { layer, verdict: verdict.to_owned(), references, action, message }))
}

/// Removes a layer that is not what was written, and pulls an image that needs it. What was done, and why no more.
async fn mend(images: &ImageStore, layer: &Digest, of: &[&ImageSummary]) -> Result<(String, String), ImageError> {
    if !images.discard(layer).await? {
        return Ok(("in use".to_owned(), "a pod runs on it: delete the pod, then repair".to_owned()));
    }
    let mut problems = Vec::new();
    for image in of {
        match bring(images, image).await {
            Ok(()) => return Ok(("repaired".to_owned(), String::new())),
            // The next pod that has the right to brings it anew.
            Err(error) => problems.push(error.chain()),
        }
    }
    Ok(("removed".to_owned(), problems.join("; ")))
}

/// Pulls an image as it is here, whatever its tag means by now; if its registry has that no more, what the tag means.
async fn bring(images: &ImageStore, image: &ImageSummary) -> Result<(), ImageError> {
    // What comes from a path of this host has no digest of a repository.
    if image.repo_digest.contains('@') && image.repo_digest != image.reference {
        let known = images.images().list().await?;
        let wish = wish(&image.repo_digest, &image.domain);
        if let Ok(held) = images.pull(&wish, |_| {}).await {
            let named = |known: &ImageSummary| known.reference == held.reference && known.domain == image.domain;
            if !known.iter().any(named) {
                // A name that nobody has asked for.
                images.images().remove_copy(&held.reference, &image.domain).await?;
            }
            return Ok(());
        }
    }
    images.pull(&wish(&image.reference, &image.domain), |_| {}).await.map(drop)
}

fn wish(reference: &str, domain: &str) -> ImageWish {
    ImageWish {
        reference: reference.to_owned(),
        policy: PullPolicy::IfNotPresent,
        credentials: Vec::new(),
        trusted: true,
        domain: domain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use image_snapshot::{Images, ImagesConfig};
    use serde_json::{Value, json};
    use tokio_stream::StreamExt as _;

    use super::*;

    /// An image of one empty layer, in an OCI layout.
    fn layout(dir: &Path) -> String {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let put = |kind: &str, bytes: Vec<u8>| {
            let digest = Digest::sha256(&bytes);
            std::fs::write(blobs.join(digest.hex()), &bytes).unwrap();
            json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": bytes.len()})
        };
        let layer = put("layer.v1.tar", vec![0; 1024]);
        let architecture = ImagesConfig::new(dir).platform.architecture;
        let rootfs = json!({"type": "layers", "diff_ids": [layer["digest"]]});
        let config = json!({"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs});
        let config = put("config.v1+json", config.to_string().into_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer]});
        let mut entry: Value = put("manifest.v1+json", manifest.to_string().into_bytes());
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
        std::fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
        std::fs::write(dir.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string()).unwrap();
        format!("oci-layout:{}:1", dir.display())
    }

    async fn verified(images: &ImageStore, repair: bool) -> (String, String) {
        let mut answers = verify(images.clone(), repair);
        let mut all = Vec::new();
        while let Some(layer) = answers.next().await {
            let layer = layer.unwrap();
            assert_eq!(layer.references.len(), 1, "{layer:?}");
            all.push((layer.verdict, layer.action));
        }
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    #[tokio::test]
    async fn a_damaged_layer_is_told_kept_while_somebody_uses_it_and_brought_anew() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let reference = layout(&dir.path().join("layout"));
        let root = dir.path().join("images");
        let images = ImageStore::new(Images::open(ImagesConfig::new(&root)).unwrap(), None);
        let wish = ImageWish {
            reference,
            policy: PullPolicy::IfNotPresent,
            credentials: Vec::new(),
            trusted: true,
            domain: String::new(),
        };
        let held = images.pull(&wish, |_| {}).await.unwrap();
        let sound = ("sound".to_owned(), String::new());
        let damaged = |action: &str| ("damaged".to_owned(), action.to_owned());
        assert_eq!(verified(&images, true).await, sound);

        let layer: Digest = held.rootfs.layers[0].id.parse().unwrap();
        let file: PathBuf = held.rootfs.layers[0].path.clone();
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        // Nobody writes to it, so it is put in its place.
        let other = dir.path().join("other");
        std::fs::write(&other, &bytes).unwrap();
        std::fs::rename(&other, &file).unwrap();
        assert_eq!(verified(&images, false).await, damaged(""));
        assert_eq!(verified(&images, true).await, damaged("in use"));
        drop(held);
        assert_eq!(verified(&images, true).await, damaged("repaired"));
        assert_eq!(verified(&images, false).await, sound);
        assert_ne!(std::fs::read(&file).unwrap(), bytes);
        // One that is gone and needed is no better than a damaged one; one that is gone and not needed is none.
        assert!(images.discard(&layer).await.unwrap());
        let missing = |action: &str| ("missing".to_owned(), action.to_owned());
        assert_eq!(verified(&images, false).await, missing(""));
        assert_eq!(verified(&images, true).await, missing("repaired"));
        assert_eq!(verified(&images, false).await, sound);
        images.images().allow_gc();
        images.remove(&wish.reference, None).await.unwrap();
        assert!(images.images().layers().await.unwrap().is_empty());
        assert!(look(&images, &layer, false).await.unwrap().is_none());
    }
}
