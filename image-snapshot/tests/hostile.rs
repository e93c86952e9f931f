//! Images that must not be: thousands of them, generated, each bad in one way. All are refused as the image's own fault, and nothing stays.
#![allow(clippy::unwrap_used)] // A test program throughout.

#[path = "hostile/archives.rs"]
mod archives;
#[path = "hostile/documents.rs"]
mod documents;
#[path = "hostile/random.rs"]
mod random;
mod support;

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use archives::{ARCHIVES, BLOBS};
use documents::{DOCUMENTS, Parts};
use image_snapshot::{ErrorKind, Images, Limits, store::Verdict};
use random::Random;
use support::{config, images::Made, leftovers, pull};

const IMAGES: u64 = 5200;

/// Small enough that breaking them costs little.
fn limits() -> Limits {
    Limits {
        layer_bytes: 4 << 20,
        ratio: 50,
        ratio_from: 256 << 10,
        entries: 100,
        header_bytes: 96 << 10,
        document_bytes: 32 << 10,
        zstd_window_log: 21,
        layers: 12,
        ..Limits::default()
    }
}

/// The image of a seed, and which way it is bad.
fn image(seed: u64) -> (&'static str, Parts) {
    let mut random = Random::new(seed);
    let all = ARCHIVES.len() + BLOBS.len() + DOCUMENTS.len();
    let which = (seed as usize) % all;
    if let Some((name, make)) = ARCHIVES.get(which) {
        return (name, Parts::of_archive(make(&mut random), &mut random));
    }
    let which = which - ARCHIVES.len();
    if let Some((name, make)) = BLOBS.get(which) {
        let archive = archives::good(&mut random);
        return (name, Parts::of_blob(make(&archive, &mut random), &archive));
    }
    let (name, make) = DOCUMENTS[which - BLOBS.len()];
    let mut parts = Parts::of_archive(archives::good(&mut random), &mut random);
    make(&mut parts, &mut random);
    (name, parts)
}

#[tokio::test]
async fn five_thousand_bad_images_are_refused_and_leave_nothing() {
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut config = config(root.path());
    config.limits = limits();
    let images = Images::open(config).unwrap();
    // A neighbour that none of this may touch.
    let good = dir.path().join("good");
    Made::simple(b"neighbour").write_layout(&good, "1");
    let neighbour = pull(&images, &format!("oci-layout:{}", good.display())).await.unwrap();
    images.allow_gc();
    let baseline = sorted(leftovers(root.path()));
    let mut by_kind: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..IMAGES {
        let (kind, parts) = image(seed);
        let layout = dir.path().join("bad");
        parts.write(&layout);
        match pull(&images, &format!("oci-layout:{}", layout.display())).await {
            Ok(_) => panic!("seed {seed}: {kind}: taken"),
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::InvalidImage | ErrorKind::Corrupt | ErrorKind::NotFound),
                "seed {seed}: {kind}: {:?}: {}",
                error.kind(),
                error.chain()
            ),
        }
        std::fs::remove_dir_all(&layout).unwrap();
        *by_kind.entry(kind).or_default() += 1;
        if seed % 400 == 399 || seed + 1 == IMAGES {
            is_again(&images, root.path(), &baseline).await;
        }
    }
    assert!(by_kind.len() > 60 && by_kind.values().all(|n| *n >= 50), "{by_kind:?}");
    let verdicts = images.verify().await.unwrap();
    assert!(verdicts.iter().all(|(_, verdict)| *verdict == Verdict::Sound), "{verdicts:?}");
    assert_eq!(neighbour.rootfs.read_file("content", 100).unwrap().unwrap(), b"neighbour");
    // The last ones may still be on their way out.
    let deadline = Instant::now() + Duration::from_secs(60);
    while converter_threads() > 0 {
        assert!(Instant::now() < deadline, "{} converter threads stay", converter_threads());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_the_bad_images_are_made_from_is_good() {
    let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut config = config(root.path());
    config.limits = limits();
    let images = Images::open(config).unwrap();
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let layout = dir.path().join(seed.to_string());
        Parts::of_archive(archives::good(&mut random), &mut random).write(&layout);
        let taken = pull(&images, &format!("oci-layout:{}", layout.display())).await;
        assert!(taken.is_ok(), "seed {seed}: {}", taken.unwrap_err().chain());
    }
}

/// Waits until the store is what it was. Sound layers below a bad one are taken in, if need be after the bad one was refused; nobody needs
/// them.
async fn is_again(images: &Images, root: &Path, baseline: &[String]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        images.gc().await.unwrap();
        let now = sorted(leftovers(root));
        if now == baseline {
            return;
        }
        assert!(Instant::now() < deadline, "{now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

fn converter_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("layer-")).count()
}
