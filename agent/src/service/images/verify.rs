//! What is on the disk compared with what was written, and brought anew where it is not that.

use agent_api::proto;
use image_snapshot::store::Verdict;
use image_snapshot::{Digest, ImageError, ImageSummary};

use super::failed;
use crate::images::{Discarded, ImageStore};
use crate::ports::{ImageWish, PullPolicy};
use crate::service::{Answers, answers};

/// What an operator can do about an image that this host is not given.
const KEPT: &str = "nothing was removed; give the host credentials (--docker-config) or its registry back, and repair again, or remove the \
                    image (nodeless images rm): the next pod with the right to pull it brings it anew";

/// What an operator can do while the keeper does not let go.
const MOUNTED: &str = "its mount cannot be let go of now, and pods would be given it instead of what comes anew: see the agent's log, and repair again";

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
        Verdict::Missing | Verdict::Damaged if repair => mend(images, layer, verdict, &of).await?,
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

/// Removes a layer that is damaged, and pulls an image that needs it. What was done, and why no more. Nothing is removed before a source has
/// said that this host may have this very image: pods may have pulled it with secrets that the host does not have, and a tag may have moved.
async fn mend(
    images: &ImageStore,
    layer: &Digest,
    verdict: Verdict,
    of: &[&ImageSummary],
) -> Result<(String, String), ImageError> {
    let said = |action: &str, message: String| Ok((action.to_owned(), message));
    let (mut to_be_had, mut problems) = (Vec::new(), Vec::new());
    for image in of {
        match ask(images, image).await {
            Ok(wish) => to_be_had.push((image, wish)),
            Err(problem) => problems.push(problem),
        }
    }
    if to_be_had.is_empty() && !of.is_empty() {
        return said("failed", format!("{}: {KEPT}", problems.join("; ")));
    }
    // Of one that is missing there is nothing to remove; and somebody may have brought it by now.
    if verdict == Verdict::Damaged {
        match images.discard(layer).await? {
            Discarded::Gone => {}
            Discarded::InUse => return said("in use", "a pod runs on it: delete the pod, then repair".to_owned()),
            Discarded::Mounted => return said("failed", MOUNTED.to_owned()),
        }
    }
    for (image, wish) in to_be_had {
        match bring(images, image, &wish).await {
            Ok(()) if images.images().layers_here().await?.contains(layer) => return said("repaired", String::new()),
            Ok(()) => problems.push(format!("{} came without it", wish.reference)),
            // The next pod that has the right to brings it anew.
            Err(error) => problems.push(error.chain()),
        }
    }
    said(if verdict == Verdict::Damaged { "removed" } else { "failed" }, problems.join("; "))
}

/// Its names, the best first: as it is here, whatever its tag means by now, then what the tag means.
fn wishes(image: &ImageSummary) -> Vec<ImageWish> {
    // What comes from a path of this host has no digest of a repository.
    let exact = (image.repo_digest.contains('@') && image.repo_digest != image.reference).then_some(&image.repo_digest);
    exact.into_iter().chain([&image.reference]).map(|reference| wish(reference, &image.domain)).collect()
}

/// Under which of its names the source has it for this host, or what was said of each.
async fn ask(images: &ImageStore, image: &ImageSummary) -> Result<ImageWish, String> {
    let mut problems = Vec::new();
    for wish in wishes(image) {
        match images.ask(&wish).await {
            Ok(digest) if digest == image.manifest_digest => return Ok(wish),
            Ok(digest) => problems.push(format!("{} is another image by now ({digest})", wish.reference)),
            Err(error) => problems.push(error.chain()),
        }
    }
    Err(problems.join("; "))
}

/// Pulls it under one of its names. A name that nobody has asked for does not stay.
async fn bring(images: &ImageStore, image: &ImageSummary, wish: &ImageWish) -> Result<(), ImageError> {
    let known = images.images().list().await?;
    let held = images.pull(wish, |_| {}).await?;
    let named = |known: &ImageSummary| known.reference == held.reference && known.domain == image.domain;
    if !known.iter().any(named) {
        images.images().remove_copy(&held.reference, &image.domain).await?;
    }
    Ok(())
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
    use std::path::Path;

    use axum::http::{HeaderMap, StatusCode, Uri, header};
    use axum::response::{IntoResponse as _, Response};
    use image_snapshot::{Images, ImagesConfig};
    use serde_json::{Value, json};
    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::resolved::RegistryCredential;
    use crate::testing::{layout, layout_of};

    /// What a private registry says of an image in a layout.
    fn said(layout: &Path, uri: &Uri, headers: &HeaderMap) -> Response {
        if headers.get(header::AUTHORIZATION).is_none_or(|value| value != "Basic dXNlcjpzZWNyZXQ=") {
            return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"x\"")]).into_response();
        }
        let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        let manifest = index["manifests"][0]["digest"].as_str().unwrap();
        let last = uri.path().rsplit('/').next().unwrap();
        let digest = if last == "1" { manifest } else { last };
        let kind =
            if digest == manifest { "application/vnd.oci.image.manifest.v1+json" } else { "application/octet-stream" };
        match std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))) {
            Ok(bytes) => ([(header::CONTENT_TYPE, kind)], bytes).into_response(),
            Err(_) => StatusCode::NOT_FOUND.into_response(),
        }
    }

    /// Puts other bytes in a file's place: nobody writes to the file itself.
    fn damage(file: &Path) -> Vec<u8> {
        let mut bytes = std::fs::read(file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        let other = file.with_extension("other");
        std::fs::write(&other, &bytes).unwrap();
        std::fs::rename(&other, file).unwrap();
        bytes
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
        let wish = wish(&reference, "");
        let held = images.pull(&wish, |_| {}).await.unwrap();
        let sound = ("sound".to_owned(), String::new());
        let damaged = |action: &str| ("damaged".to_owned(), action.to_owned());
        assert_eq!(verified(&images, true).await, sound);

        let layer: Digest = held.rootfs.layers[0].id.parse().unwrap();
        let file = held.rootfs.layers[0].path.clone();
        let bytes = damage(&file);
        assert_eq!(verified(&images, false).await, damaged(""));
        assert_eq!(verified(&images, true).await, damaged("in use"));
        drop(held);
        assert_eq!(verified(&images, true).await, damaged("repaired"));
        assert_eq!(verified(&images, false).await, sound);
        assert_ne!(std::fs::read(&file).unwrap(), bytes);
        // One that is gone and needed is no better than a damaged one; one that is gone and not needed is none.
        assert_eq!(images.discard(&layer).await.unwrap(), Discarded::Gone);
        let missing = |action: &str| ("missing".to_owned(), action.to_owned());
        assert_eq!(verified(&images, false).await, missing(""));
        assert_eq!(verified(&images, true).await, missing("repaired"));
        assert_eq!(verified(&images, false).await, sound);
        images.images().allow_gc();
        images.remove(&wish.reference, None).await.unwrap();
        assert!(images.images().layers().await.unwrap().is_empty());
        assert!(look(&images, &layer, false).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_bad_layer_of_an_image_whose_name_means_another_by_now_is_told_and_kept() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("layout");
        let reference = layout(&from);
        let images = ImageStore::new(Images::open(ImagesConfig::new(dir.path().join("images"))).unwrap(), None);
        let file = images.pull(&wish(&reference, ""), |_| {}).await.unwrap().rootfs.layers[0].path.clone();
        let bytes = damage(&file);
        layout_of(&from, vec![0; 2048]);
        let told = verify(images.clone(), true).next().await.unwrap().unwrap();
        assert_eq!((told.verdict.as_str(), told.action.as_str()), ("damaged", "failed"));
        assert!(told.message.contains("is another image by now"), "{}", told.message);
        assert_eq!(std::fs::read(&file).unwrap(), bytes);
        let list = images.images().list().await.unwrap();
        assert_eq!(list.len(), 1);
        assert!(list[0].complete, "the name means what it meant");
        layout(&from);
        assert_eq!(verified(&images, true).await, ("damaged".to_owned(), "repaired".to_owned()));
    }

    /// A keeper that does not let go.
    #[derive(Debug)]
    struct Clinging;

    #[async_trait::async_trait]
    impl crate::layer_mounts::LayerMounts for Clinging {
        async fn mounted(&self) -> Result<Vec<String>, sandbox::contract::SandboxError> {
            Ok(Vec::new())
        }

        async fn release(&self, _: &[String]) -> Result<(), sandbox::contract::SandboxError> {
            let (operation, message) = ("call".to_owned(), "told to fail".to_owned());
            Err(sandbox::contract::SandboxError::Failed { operation, message })
        }
    }

    #[tokio::test]
    async fn a_bad_layer_that_pods_would_go_on_to_be_given_is_told_and_kept() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let reference = layout(&dir.path().join("layout"));
        let images = Images::open(ImagesConfig::new(dir.path().join("images"))).unwrap();
        let images = ImageStore::new(images, Some(std::sync::Arc::new(Clinging)));
        let file = images.pull(&wish(&reference, ""), |_| {}).await.unwrap().rootfs.layers[0].path.clone();
        let bytes = damage(&file);
        let told = verify(images.clone(), true).next().await.unwrap().unwrap();
        assert_eq!((told.action.as_str(), told.message.as_str()), ("failed", MOUNTED));
        assert_eq!(std::fs::read(&file).unwrap(), bytes);
    }

    #[tokio::test]
    async fn a_bad_layer_of_an_image_that_the_host_may_not_pull_is_told_and_kept() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("layout");
        layout(&from);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = listener.local_addr().unwrap().to_string();
        let answer = move |uri: Uri, headers: HeaderMap| async move { said(&from, &uri, &headers) };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });

        let images = ImageStore::new(Images::open(ImagesConfig::new(dir.path().join("images"))).unwrap(), None);
        let secret = RegistryCredential {
            registry: registry.clone(),
            username: "user".to_owned(),
            password: "secret".to_owned(),
            identity_token: String::new(),
        };
        let of_pod = ImageWish { credentials: vec![secret], ..wish(&format!("{registry}/private:1"), "") };
        let file = images.pull(&of_pod, |_| {}).await.unwrap().rootfs.layers[0].path.clone();
        let bytes = damage(&file);

        let mut answers = verify(images.clone(), true);
        let told = answers.next().await.unwrap().unwrap();
        assert_eq!((told.verdict.as_str(), told.action.as_str()), ("damaged", "failed"));
        assert!(told.message.contains("401") && told.message.contains("--docker-config"), "{}", told.message);
        assert_eq!(std::fs::read(&file).unwrap(), bytes);

        let config = dir.path().join("docker.json");
        let auths = json!({"auths": {(registry): {"auth": "dXNlcjpzZWNyZXQ="}}});
        std::fs::write(&config, auths.to_string()).unwrap();
        let images = images.with_host_credentials(Some(config));
        assert_eq!(verified(&images, true).await, ("damaged".to_owned(), "repaired".to_owned()));
        assert_ne!(std::fs::read(&file).unwrap(), bytes);
    }
}
