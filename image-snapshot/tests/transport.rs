//! How registries are spoken to: how much at once, and what is said of one that speaks otherwise than expected.
#![allow(clippy::unwrap_used)] // A test program throughout.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use image_snapshot::{ErrorKind, Images, RegistryHost};
use support::{
    config,
    fake_registry::{FakeRegistry, Gate, Reply, Request},
    images::{File, Made, Packing, tar},
    pull,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// An image of four layers of its own.
fn four_layers(seed: u8) -> Made {
    let layer = |i: u8| (tar(&[File("content", &[seed, i])]), Packing::Gzip);
    Made::new(&[layer(0), layer(1), layer(2), layer(3)], |_, _| {})
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn no_more_layers_are_fetched_at_once_than_the_settings_say() {
    let (all, done) = (Gate::shut(), Arc::new(AtomicUsize::new(0)));
    let made = [("one", four_layers(1)), ("two", four_layers(2))];
    let mut gates = Vec::new();
    let mut layers: BTreeMap<String, (Vec<u8>, Arc<Gate>)> = BTreeMap::new();
    for (_, image) in &made {
        let gate = Gate::shut();
        // It only counts.
        gate.open(1000);
        layers.extend(image.layers.iter().map(|layer| (layer.clone(), (image.blobs[layer].clone(), gate.clone()))));
        gates.push(gate);
    }
    let of_all = all.clone();
    let held = move |asked: &Request| {
        let (bytes, gate) = layers.get(asked.path.rsplit('/').next()?)?;
        let gates = vec![of_all.clone(), gate.clone()];
        Some(Reply { gates, ..Reply::status(200).body(bytes.clone()) })
    };
    let registry = FakeRegistry::start(held).await;
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    config.timeouts.progress = Duration::from_secs(60);
    config.concurrency.layers_in_all = 3;
    config.concurrency.layers_per_image = 2;
    let images = Images::open(config).unwrap();
    for (name, image) in &made {
        let (images, name, done) = (images.clone(), registry.push(name, "1", image), done.clone());
        tokio::spawn(async move {
            pull(&images, &name).await.unwrap();
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    until("three layers are under way", || all.waiting() == 3).await;
    for _ in 0..8 {
        // Time for one too many.
        tokio::time::sleep(Duration::from_millis(20)).await;
        until("a layer waits", || all.waiting() > 0).await;
        all.open(1);
    }
    until("both images are here", || done.load(Ordering::SeqCst) == 2).await;
    assert_eq!((all.most(), gates[0].most(), gates[1].most()), (3, 2, 2));
}

/// Answers whatever comes as a web server answers what it does not understand; how often somebody came.
async fn web_server() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, came) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = came.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
        }
    });
    (address, came)
}

#[tokio::test]
async fn a_registry_in_plain_http_is_told_with_the_setting_that_it_needs_and_not_asked_again() {
    let (address, came) = web_server().await;
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    // As any registry that is not on loopback: in HTTPS.
    config.registries = vec![RegistryHost { host: address.to_string(), unverified: true, ..RegistryHost::default() }];
    let images = Images::open(config).unwrap();
    let error = pull(&images, &format!("{address}/a:1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let said = error.chain();
    assert!(said.contains(&format!("{address} speaks plain HTTP, not HTTPS")), "{said}");
    assert!(said.contains("insecure-registry"), "{said}");
    assert_eq!(came.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_told_with_the_setting_that_it_needs() {
    let (registry, _) = FakeRegistry::over_tls().await;
    let name = registry.push("a", "1", &Made::simple(b"x"));
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let ca_certificates = vec![stranger.cert.pem().into_bytes()];
    config.registries =
        vec![RegistryHost { host: registry.address.to_string(), ca_certificates, ..RegistryHost::default() }];
    let said = pull(&Images::open(config).unwrap(), &name).await.unwrap_err().chain();
    assert!(said.contains(&format!("the certificate of {} is not trusted", registry.address)), "{said}");
    assert!(said.contains("the setting registries") && said.contains("invalid peer certificate"), "{said}");
    assert_eq!(said.matches("invalid peer certificate").count(), 1, "{said}");
}
