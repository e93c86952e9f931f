//! Servers that are asked before a registry: one that lacks an image, and ones that send it wrongly.
#![allow(clippy::unwrap_used)] // A test program throughout.

mod support;

use std::path::Path;

use image_snapshot::{ErrorKind, Images, RegistryHost, store::Verdict};
use support::{
    config,
    fake_registry::{FakeRegistry, Reply, Request},
    images::{Made, three_layers},
    leftovers, pull,
};

fn store() -> tempfile::TempDir {
    tempfile::tempdir().expect("tempdir")
}

/// A store that asks `mirror` before `registry`.
fn mirrored(root: &Path, registry: &FakeRegistry, mirror: &FakeRegistry) -> Images {
    let mut config = config(root);
    let mirrors = vec![format!("http://{}", mirror.address)];
    config.registries = vec![RegistryHost { host: registry.address.to_string(), mirrors, ..Default::default() }];
    Images::open(config).unwrap()
}

/// What a server sends instead of a blob, to whom it is the first request and to whom it is a later one.
type Sends = fn(&[u8], &Request) -> Reply;

/// Ways to send a blob wrongly.
const WRONG: [(&str, Sends); 5] = [
    ("other bytes", |blob, _| Reply::status(200).body(spoilt(blob))),
    ("a short body", |blob, _| Reply::status(200).body(&blob[..blob.len() / 2])),
    ("a long body", |blob, _| Reply::status(200).body([blob, b"more"].concat())),
    ("half of it, and garbage for the rest", |blob, asked| {
        let half = blob.len() / 2;
        if asked.earlier == 0 {
            return Reply { cut: Some(half), ..Reply::status(200).body(blob) };
        }
        let from: usize = asked.headers["range"]["bytes=".len()..].trim_end_matches('-').parse().unwrap();
        let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
        Reply::status(206).with("Content-Range", &range).body(spoilt(&blob[from..]))
    }),
    ("half of it, and then nothing", |blob, asked| match asked.earlier {
        0 => Reply { cut: Some(blob.len() / 2), ..Reply::status(200).body(blob) },
        _ => Reply::status(404),
    }),
];

/// Other bytes of the same length.
fn spoilt(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| !byte).collect()
}

/// A registry that sends the layers of an image wrongly.
async fn wrong(made: &Made, sends: Sends) -> FakeRegistry {
    let made = made.clone();
    FakeRegistry::start(move |asked| {
        let layer = asked.path.rsplit('/').next().filter(|last| made.layers.iter().any(|layer| layer == last))?;
        Some(sends(&made.blobs[layer], asked))
    })
    .await
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_when_it_fails() {
    let (empty, full, root) = (FakeRegistry::plain().await, FakeRegistry::plain().await, store());
    let name = full.push("a", "1", &Made::simple(b"x"));
    pull(&mirrored(root.path(), &full, &empty), &name).await.unwrap();
    assert!(empty.count("/manifests/") > 0);
    assert_eq!(empty.requests().iter().filter(|r| r.headers.contains_key("authorization")).count(), 0);
}

#[tokio::test]
async fn a_layer_that_a_mirror_sends_wrongly_is_fetched_whole_from_the_registry() {
    let made = three_layers();
    for (what, sends) in WRONG {
        let (mirror, registry) = (wrong(&made, sends).await, FakeRegistry::plain().await);
        mirror.push("a", "1", &made);
        let (name, root) = (registry.push("a", "1", &made), store());
        let images = mirrored(root.path(), &registry, &mirror);
        let image = pull(&images, &name).await.unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
        assert_eq!(image.rootfs.read_file("big", 1 << 22).unwrap().unwrap().len(), 3_000_000, "{what}");
        assert_eq!(image.rootfs.read_file("etc/passwd", 100).unwrap().unwrap(), b"root:x:0:0:new", "{what}");
        let verdicts = images.verify().await.unwrap();
        assert!(verdicts.iter().all(|(_, v)| *v == Verdict::Sound), "{what}: {verdicts:?}");
        let asked = registry.requests();
        for layer in &made.layers {
            let of_layer: Vec<_> = asked.iter().filter(|r| r.path.ends_with(layer)).collect();
            assert_eq!(of_layer.len(), 1, "{what}: {of_layer:?}");
            assert!(!of_layer[0].headers.contains_key("range"), "{what}: what the mirror sent is not gone on with");
            assert!(mirror.count(layer) > 0, "{what}: the mirror was asked first");
        }
        assert!(!leftovers(root.path()).iter().any(|file| file.starts_with("ingest")), "{what}");
    }
}

#[tokio::test]
async fn a_layer_that_mirror_and_registry_send_wrongly_is_told_with_the_registrys_error() {
    let made = three_layers();
    let mirror = wrong(&made, |_, _| Reply::status(404)).await;
    let registry = wrong(&made, WRONG[0].1).await;
    mirror.push("a", "1", &made);
    let (name, root) = (registry.push("a", "1", &made), store());
    let error = pull(&mirrored(root.path(), &registry, &mirror), &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    let said = error.chain();
    assert!(said.contains(&registry.address.to_string()) && said.contains("digest is"), "{said}");
}
