//! Layers that are here are known by names that are no secret: who may have them without fetching them, and who shares their files.

#![allow(clippy::unwrap_used)] // A test program throughout.

mod support;

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use image_snapshot::{Copies, ErrorKind, Image, Images, PullPolicy};
use serde_json::json;
use support::{
    basic, config,
    fake_registry::{FakeRegistry, Reply, Request},
    images::{File, Made, Packing, tar},
    leftovers, open, pull, request,
};

const ALICE: &str = "Basic YWxpY2U6c2VjcmV0";
const BOB: &str = "Basic Ym9iOnNlY3JldA==";

/// Two layers: a base and one that is secret.
fn secret() -> Made {
    Made::new(
        &[
            (tar(&[File("base", &[1; 5000])]), Packing::Gzip),
            (tar(&[File("secret", b"the crown jewels"), File("fill", &[2; 5000])]), Packing::Gzip),
        ],
        |_, _| {},
    )
}

/// A registry in which each repository is for one `Authorization` only, and holds the blobs of its own image only.
async fn guarded(repositories: &[(&'static str, &'static str, &Made)]) -> FakeRegistry {
    type Rule = (String, &'static str, BTreeMap<String, Vec<u8>>);
    let rules: Vec<Rule> =
        repositories.iter().map(|(name, who, made)| (format!("/v2/{name}/"), *who, made.blobs.clone())).collect();
    let rules = Arc::new(rules);
    let registry = FakeRegistry::start(move |asked: &Request| {
        let (prefix, who, blobs) = rules.iter().find(|(prefix, ..)| asked.path.starts_with(prefix))?;
        if asked.headers.get("authorization").map(String::as_str) != Some(who) {
            return Some(Reply::status(401).with("WWW-Authenticate", r#"Basic realm="x""#));
        }
        let blob = asked.path.strip_prefix(&format!("{prefix}blobs/"))?;
        (!blobs.contains_key(blob)).then(|| Reply::status(404))
    })
    .await;
    for (name, _, made) in repositories {
        registry.push(name, "1", made);
    }
    registry
}

async fn pull_as(images: &Images, name: &str, user: &str) -> Result<Image, image_snapshot::ImageError> {
    let mut wish = request(name, PullPolicy::Always);
    let registry = name.split('/').next().unwrap();
    wish.credentials = vec![basic(registry, user, "secret")];
    images.ensure(wish, |_| {}).await
}

/// An image that names the archives of another, and these blobs as theirs.
fn forged(of: &Made, blobs: &[(String, usize)]) -> Made {
    let diff_ids =
        serde_json::from_slice::<serde_json::Value>(&of.blobs[&of.config]).unwrap()["rootfs"]["diff_ids"].clone();
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let layers: Vec<_> =
        blobs.iter().map(|(digest, size)| json!({"mediaType": kind, "digest": digest, "size": size})).collect();
    let filler = (tar(&[File("x", b"x")]), Packing::Gzip);
    Made::new(&[filler], |config, manifest| {
        config["rootfs"]["diff_ids"] = diff_ids;
        manifest["layers"] = json!(layers);
    })
}

#[tokio::test]
async fn who_knows_the_names_of_a_private_images_layers_does_not_get_them() {
    let (made, root) = (secret(), tempfile::tempdir().unwrap());
    let true_blobs: Vec<(String, usize)> = made.layers.iter().map(|l| (l.clone(), made.blobs[l].len())).collect();
    let junk = vec![7; 100];
    let junk_digest = image_snapshot::Digest::sha256(&junk).to_string();
    let mut by_junk = forged(&made, &[(junk_digest.clone(), 100), (junk_digest.clone(), 100)]);
    by_junk.put(junk);
    let by_name = forged(&made, &true_blobs);
    let registry =
        guarded(&[("alice/app", ALICE, &made), ("bob/junk", BOB, &by_junk), ("bob/named", BOB, &by_name)]).await;
    // One that says yes to everything, but has nothing.
    let evil = FakeRegistry::start({
        let by_name = by_name.clone();
        move |asked| {
            let which = asked.path.rsplit('/').next().unwrap_or_default();
            let known = which == "1" || by_name.blobs.contains_key(which);
            (!known).then(|| Reply::status(200).body(vec![0; 100]))
        }
    })
    .await;
    let at_evil = evil.push("app", "1", &by_name);
    let images = open(root.path());
    let at = |name: &str| format!("{}/{name}:1", registry.address);
    let mine = pull_as(&images, &at("alice/app"), "alice").await.unwrap();
    let before = leftovers(root.path());
    for (name, user) in [(at("bob/junk"), "bob"), (at("bob/named"), "bob"), (at_evil, "bob")] {
        // Also when nobody uses the image, and after a restart.
        let error = pull_as(&images, &name, user).await.unwrap_err();
        assert!(
            matches!(
                error.kind(),
                ErrorKind::Corrupt | ErrorKind::InvalidImage | ErrorKind::NotFound | ErrorKind::Unavailable
            ),
            "{name}: {error:?}"
        );
        assert!(images.get_local(&name).await.unwrap().is_none());
    }
    let error = pull_as(&images, &at("alice/app"), "bob").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    // Layers of a refused image that are on their way are brought to their end.
    let began = Instant::now();
    while leftovers(root.path()) != before {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", leftovers(root.path()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(mine.rootfs.read_file("secret", 100).unwrap().unwrap(), b"the crown jewels");
}

#[tokio::test]
async fn a_layer_that_the_same_registry_gives_the_caller_too_is_not_fetched_again() {
    let (made, root) = (secret(), tempfile::tempdir().unwrap());
    let base = (tar(&[File("base", &[1; 5000])]), Packing::Gzip);
    let mine = Made::new(&[base, (tar(&[File("own", b"bob's")]), Packing::Gzip)], |_, _| {});
    assert_eq!(mine.layers[0], made.layers[0]);
    let registry = guarded(&[("alice/app", ALICE, &made), ("bob/app", BOB, &mine)]).await;
    let images = open(root.path());
    drop(pull_as(&images, &format!("{}/alice/app:1", registry.address), "alice").await.unwrap());
    let image = pull_as(&images, &format!("{}/bob/app:1", registry.address), "bob").await.unwrap();
    assert_eq!(image.rootfs.read_file("own", 100).unwrap().unwrap(), b"bob's");
    let of_base =
        |method: &str, user: &str| registry.count(&format!("{method} /v2/{user}/app/blobs/{}", made.layers[0]));
    assert_eq!((of_base("GET", "alice"), of_base("GET", "bob")), (1, 0));
    assert!(of_base("HEAD", "bob") > 0);
}

#[tokio::test]
async fn a_layer_from_another_registry_is_his_who_brings_it_and_is_kept_once() {
    let (made, root) = (secret(), tempfile::tempdir().unwrap());
    let private = guarded(&[("alice/app", ALICE, &made)]).await;
    let public = FakeRegistry::plain().await;
    let elsewhere = public.push("copy", "1", &made);
    let images = open(root.path());
    let first = pull_as(&images, &format!("{}/alice/app:1", private.address), "alice").await.unwrap();
    let number =
        |image: &Image| image.rootfs.layers.iter().map(|l| l.path.metadata().unwrap().ino()).collect::<Vec<_>>();
    let inodes = number(&first);
    let second = pull(&images, &elsewhere).await.unwrap();
    assert_eq!(number(&second), inodes, "a layer that is in use was replaced");
    for layer in &made.layers {
        assert_eq!(public.count(&format!("GET /v2/copy/blobs/{layer}")), 1);
    }
    // Now it is public: nobody need show anything.
    pull(&images, &elsewhere).await.unwrap();
    let third = guarded(&[("bob/app", BOB, &made)]).await;
    pull_as(&images, &format!("{}/bob/app:1", third.address), "bob").await.unwrap();
    for layer in &made.layers {
        assert_eq!(public.count(&format!("GET /v2/copy/blobs/{layer}")), 1);
        assert_eq!(third.count(&format!("/blobs/{layer}")), 0);
    }
}

fn separate(root: &std::path::Path) -> Images {
    let mut config = config(root);
    config.copies = Copies::PerDomain;
    Images::open(config).unwrap()
}

#[tokio::test]
async fn domains_that_keep_copies_of_their_own_share_no_file_and_no_download() {
    let (made, root) = (secret(), tempfile::tempdir().unwrap());
    let registry = FakeRegistry::plain().await;
    let name = registry.push("app", "1", &made);
    let images = separate(root.path());
    let (red, blue) = (images.of_domain("red"), images.of_domain("blue"));
    let (first, second) = (pull(&red, &name).await.unwrap(), pull(&blue, &name).await.unwrap());
    for (a, b) in first.rootfs.layers.iter().zip(&second.rootfs.layers) {
        assert_ne!(a.id, b.id);
        assert_ne!(a.path.metadata().unwrap().ino(), b.path.metadata().unwrap().ino());
        assert_eq!(std::fs::read(&a.path).unwrap(), std::fs::read(&b.path).unwrap());
    }
    // Neither learns from how long it takes whether the other has it.
    for layer in &made.layers {
        assert_eq!(registry.count(&format!("GET /v2/app/blobs/{layer}")), 2);
    }
    assert!(images.get_local(&name).await.unwrap().is_none());
    let green = images.of_domain("green");
    let error = green.ensure(request(&name, PullPolicy::Never), |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeverPull);
    // Each keeps its own from collection; a name goes from all.
    drop(second);
    images.allow_gc();
    assert!(images.list().await.unwrap().iter().all(|image| image.complete && image.in_use == (image.domain == "red")));
    assert!(images.remove(&name).await.unwrap());
    assert_eq!(images.gc().await.unwrap().removed.len(), 2);
    assert_eq!(first.rootfs.read_file("secret", 100).unwrap().unwrap(), b"the crown jewels");
    drop(first);
    images.gc().await.unwrap();
    assert_eq!(leftovers(root.path()), [""; 0]);
}

#[tokio::test]
async fn what_is_prepared_for_all_is_copied_for_who_has_the_right_to_it() {
    let (made, root) = (secret(), tempfile::tempdir().unwrap());
    let (open_to_all, guarded) = (FakeRegistry::plain().await, guarded(&[("alice/app", ALICE, &made)]).await);
    let public = open_to_all.push("app", "1", &made);
    let private = format!("{}/alice/app:1", guarded.address);
    let images = separate(root.path());
    drop(pull_as(&images, &private, "alice").await.unwrap());
    let red = images.of_domain("red");
    // Not to be had without the right to it …
    let mut wish = request(&private, PullPolicy::IfNotPresent);
    assert_eq!(red.ensure(wish.clone(), |_| {}).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    assert!(red.get_local(&private).await.unwrap().is_none());
    // … and with it without a blob being fetched again.
    wish.credentials = vec![basic(&guarded.address.to_string(), "alice", "secret")];
    let before = guarded.count("GET");
    let copy = red.ensure(wish, |_| {}).await.unwrap();
    assert_eq!(guarded.count("GET"), before);
    assert_eq!(copy.rootfs.read_file("secret", 100).unwrap().unwrap(), b"the crown jewels");
    let own = images.get_local(&private).await.unwrap().unwrap();
    for (a, b) in own.rootfs.layers.iter().zip(&copy.rootfs.layers) {
        assert_ne!(a.path.metadata().unwrap().ino(), b.path.metadata().unwrap().ino());
    }
    // A public one, without the registry.
    drop(pull(&images, &public).await.unwrap());
    let before = open_to_all.log().len();
    red.ensure(request(&public, PullPolicy::IfNotPresent), |_| {}).await.unwrap();
    assert_eq!(open_to_all.log().len(), before);
    // One that has rotted is not copied.
    drop((own, copy));
    images.remove(&private).await.unwrap();
    images.allow_gc();
    images.gc().await.unwrap();
    let blue = images.of_domain("blue");
    let rotten = images.get_local(&public).await.unwrap().unwrap().rootfs.layers[1].path.clone();
    let mut bytes = std::fs::read(&rotten).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::remove_file(&rotten).unwrap();
    std::fs::write(&rotten, bytes).unwrap();
    let image = blue.ensure(request(&public, PullPolicy::IfNotPresent), |_| {}).await.unwrap();
    assert_eq!(image.rootfs.read_file("secret", 100).unwrap().unwrap(), b"the crown jewels");
}
