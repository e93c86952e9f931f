//! How registries are spoken to: how much at once, and what is said of one that speaks otherwise than expected.
#![allow(clippy::unwrap_used)] // A test program throughout.

mod support;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use image_snapshot::{Converter, ErrorKind, Images, Progress, PullPolicy, RegistryHost};
use support::{
    config,
    fake_registry::{FakeRegistry, Gate, Reply, Request},
    images::{File, Made, Packing, tar},
    leftovers, pull, request,
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
    // Of three at once one image has two; whether the other comes to two as well is the order's matter.
    let of_one = [gates[0].most(), gates[1].most()];
    assert_eq!((all.most(), of_one.into_iter().max()), (3, Some(2)), "{of_one:?}");
}

/// An image of one layer, and a registry that holds its blob back at the gate, the first so many times.
async fn held(made: &Made, gate: &Arc<Gate>, times: usize) -> FakeRegistry {
    let (made, gate) = (made.clone(), gate.clone());
    FakeRegistry::start(move |asked| {
        let (layer, at) = (made.layers[0].clone(), asked.earlier);
        let blob = &made.blobs[&layer];
        let held = asked.path.ends_with(&layer) && at < times;
        held.then(|| Reply { gates: vec![gate.clone()], ..Reply::status(200).body(blob.clone()) })
    })
    .await
}

/// Processes that this one has started.
fn children() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.map(|list| list.split_whitespace().count()).sum()
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_any_more_gives_back_its_place_and_leaves_nothing() {
    let (made, gate) = (Made::simple(b"held"), Gate::shut());
    let registry = held(&made, &gate, 1).await;
    let (slow, other) = (registry.push("slow", "1", &made), registry.push("other", "1", &Made::simple(b"other")));
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    // Longer than anybody here waits for anything.
    config.timeouts.progress = Duration::from_secs(600);
    config.concurrency.layers_in_all = 1;
    let converter = std::env::current_exe().unwrap();
    let converter = converter.parent().and_then(Path::parent).unwrap().join("examples/layer-converter");
    assert!(converter.exists(), "{converter:?} is missing: a run of all of this package's tests builds it");
    config.converter = Converter::Program { program: converter, args: Vec::new() };
    let images = Images::open(config).unwrap();
    let pulls = [0, 1].map(|_| {
        let (images, slow) = (images.clone(), slow.clone());
        tokio::spawn(async move { pull(&images, &slow).await })
    });
    until("the layer is under way", || gate.waiting() == 1 && children() == 1).await;
    for pull in pulls {
        pull.abort();
    }
    // It had the only place.
    tokio::time::timeout(Duration::from_secs(60), pull(&images, &other)).await.expect("no place").unwrap();
    until("its converter has ended", || children() == 0).await;
    until("its file is gone", || !leftovers(root.path()).iter().any(|file| file.starts_with("ingest"))).await;
    let image = pull(&images, &slow).await.unwrap();
    assert_eq!(image.rootfs.read_file("content", 10).unwrap().unwrap(), b"held");
    assert_eq!(registry.count(&made.layers[0]), 2, "it was begun anew");
}

#[tokio::test]
async fn a_pull_that_another_still_waits_for_goes_on() {
    let (made, gate) = (Made::simple(b"held"), Gate::shut());
    let registry = held(&made, &gate, 1).await;
    let name = registry.push("slow", "1", &made);
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    config.timeouts.progress = Duration::from_secs(60);
    let images = Images::open(config).unwrap();
    let told = [0, 1].map(|_| Arc::new(AtomicUsize::new(0)));
    let [gone, stays] = told.each_ref().map(|told| {
        let (images, name, told) = (images.clone(), name.clone(), told.clone());
        let tell = move |progress: Progress| {
            told.fetch_add(usize::from(matches!(progress, Progress::Layer { .. })), Ordering::SeqCst);
        };
        tokio::spawn(async move { images.ensure(request(&name, PullPolicy::Always), tell).await })
    });
    let both = || told.iter().all(|told| told.load(Ordering::SeqCst) > 0);
    until("both wait for the layer", || gate.waiting() == 1 && both()).await;
    gone.abort();
    let _ = gone.await;
    gate.open(1);
    stays.await.unwrap().unwrap();
    assert_eq!(registry.count(&made.layers[0]), 1);
}

/// What is said of a layer of which only ten bytes come, or so many milliseconds apart.
async fn said_of_slow(layer: Duration, progress: Duration, reply: Reply) -> (String, String) {
    let made = Made::simple(b"x");
    let (blob, bytes) = (made.layers[0].clone(), made.blobs[&made.layers[0]].clone());
    let registry = FakeRegistry::start(move |asked| {
        asked.path.ends_with(&blob).then(|| Reply { status: 200, body: bytes.clone(), ..reply.clone() })
    })
    .await;
    let name = registry.push("a", "1", &made);
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    (config.timeouts.layer, config.timeouts.progress) = (layer, progress);
    let error = pull(&Images::open(config).unwrap(), &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{}", error.chain());
    assert!(error.is_retryable());
    let url = format!("GET http://{}/v2/a/blobs/{}", registry.address, made.layers[0]);
    (error.chain(), url)
}

#[tokio::test]
async fn a_layer_that_takes_longer_than_its_size_allows_is_given_up_with_its_registry_bytes_and_time() {
    let minute = Duration::from_secs(60);
    let reply = Reply { hang: Some(10), ..Reply::default() };
    let (said, url) = said_of_slow(Duration::from_millis(300), minute, reply).await;
    let size = Made::simple(b"x").blobs[&Made::simple(b"x").layers[0]].len();
    let words = format!("{url}: only 10 of {size} bytes came in 300ms, the most that they may take");
    assert!(said.contains(&words), "{said}");
    // It drips, whereupon a new connection drips as well.
    let reply = Reply { drip: Some(20), ..Reply::default() };
    let (said, url) = said_of_slow(minute, Duration::from_millis(200), reply).await;
    assert!(said.contains(&format!("{url}: only ")) && said.contains("bytes came in 200ms, of at least 873"), "{said}");
}

#[tokio::test]
async fn only_so_many_layers_wait_for_one_below_and_the_lowest_ones_go_on() {
    let layer = |i: usize| (tar(&[File(&format!("file-{i}"), &i.to_le_bytes())]), Packing::Gzip);
    let made = Made::new(&(0..60).map(layer).collect::<Vec<_>>(), |_, _| {});
    let gate = Gate::shut();
    let registry = held(&made, &gate, 1).await;
    let name = registry.push("deep", "1", &made);
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    config.timeouts.progress = Duration::from_secs(600);
    let images = Images::open(config).unwrap();
    let deep = {
        let (images, name) = (images.clone(), name.clone());
        tokio::spawn(async move { pull(&images, &name).await })
    };
    let asked = || made.layers.iter().filter(|layer| registry.count(layer) > 0).count();
    until("the lowest and what may come before it are asked for", || gate.waiting() == 1 && asked() >= 17).await;
    // Others of several layers have no room ahead, and come all the same, one layer after the other.
    for seed in 0..3 {
        let other = registry.push(&format!("other-{seed}"), "1", &four_layers(seed));
        let pulled = tokio::time::timeout(Duration::from_secs(60), pull(&images, &other)).await;
        pulled.expect("an image of which each layer could be next").unwrap();
    }
    assert_eq!(asked(), 17);
    gate.open(1);
    let image = tokio::time::timeout(Duration::from_secs(60), deep).await.expect("a circle").unwrap().unwrap();
    assert_eq!(image.rootfs.layers.len(), 60);
    assert_eq!(image.rootfs.read_file("file-59", 10).unwrap().unwrap(), 59_usize.to_le_bytes());
}

#[tokio::test]
async fn a_retry_after_the_lowest_layer_failed_goes_on_with_what_the_others_have_brought() {
    let (made, gate) = (four_layers(1), Gate::shut());
    let (layers, held) = (made.clone(), gate.clone());
    let registry = FakeRegistry::start(move |asked| {
        let blob = asked.path.rsplit('/').next()?;
        match layers.layers.iter().position(|layer| layer == blob)? {
            // Trouble, but not such that is tried again at once.
            0 if asked.earlier == 0 => Some(Reply::status(418)),
            1 => Some(Reply { gates: vec![held.clone()], ..Reply::status(200).body(layers.blobs[blob].clone()) }),
            _ => None,
        }
    })
    .await;
    let name = registry.push("a", "1", &made);
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    config.timeouts.progress = Duration::from_secs(600);
    let images = Images::open(config).unwrap();
    assert_eq!(pull(&images, &name).await.unwrap_err().kind(), ErrorKind::Unavailable);
    until("the second layer is under way", || gate.waiting() == 1).await;
    let again = {
        let (images, name) = (images.clone(), name.clone());
        tokio::spawn(async move { pull(&images, &name).await })
    };
    until("the lowest is there", || registry.count(&made.layers[0]) == 2).await;
    gate.open(1);
    let image = tokio::time::timeout(Duration::from_secs(60), again).await.expect("it waits").unwrap().unwrap();
    assert_eq!(image.rootfs.read_file("content", 10).unwrap().unwrap(), [1, 3]);
    let counts: Vec<usize> = made.layers.iter().map(|layer| registry.count(layer)).collect();
    assert_eq!(counts, [2, 1, 1, 1]);
}

#[tokio::test]
async fn of_an_image_of_which_a_layer_is_not_to_be_had_nothing_stays_under_way() {
    let (made, gate) = (four_layers(1), Gate::shut());
    let (layers, held) = (made.clone(), gate.clone());
    let registry = FakeRegistry::start(move |asked| {
        let blob = asked.path.rsplit('/').next()?;
        match layers.layers.iter().position(|layer| layer == blob)? {
            0 => Some(Reply { gates: vec![held.clone()], ..Reply::status(404) }),
            _ => None,
        }
    })
    .await;
    let name = registry.push("a", "1", &made);
    let root = tempfile::tempdir().unwrap();
    let images = Images::open(config(root.path())).unwrap();
    let pulled = {
        let (images, name) = (images.clone(), name.clone());
        tokio::spawn(async move { pull(&images, &name).await })
    };
    until("others are here but for the lowest", || registry.count(&made.layers[2]) == 1 && gate.waiting() == 1).await;
    gate.open(1);
    assert_eq!(pulled.await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    until("their files are gone", || !leftovers(root.path()).iter().any(|file| file.starts_with("ingest"))).await;
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
