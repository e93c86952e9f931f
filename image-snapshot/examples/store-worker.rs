//! What tests of the store kill: `store-worker life STORE LAYOUTS` takes two images of LAYOUTS (`a`, `b`; `bad` is none) through all that can happen to them and ends
//! with both there; `ensure|remove|evict|verify STORE [NAME]` do one thing as soon as the store is free.

use std::{os::unix::fs::FileExt as _, path::Path, process::ExitCode, time::Duration};

use image_snapshot::{
    Copies, EnsureRequest, ErrorKind, Eviction, Images, ImagesConfig, LocalAccess, PullPolicy,
    store::{
        StoreError, Verdict,
        faults::{Point, passed},
    },
};

type Done = Result<(), Box<dyn std::error::Error>>;

/// Everything that nobody uses goes, however young.
const ALL: Eviction = Eviction { bytes: u64::MAX, min_age: Duration::ZERO, max_age: None };

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let done = match args[..] {
        ["life", store, layouts] => life(Path::new(store), Path::new(layouts)).await,
        [what, store, ref rest @ ..] => one(what, Path::new(store), rest.first().copied()).await,
        _ => Err("usage: store-worker life STORE LAYOUTS | ensure|remove|evict|verify STORE [NAME]".into()),
    };
    match done {
        Ok(()) => {
            for (step, times) in passed() {
                println!("{step} {times}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("store-worker: {error}, of {} steps", Point::ALL.len());
            ExitCode::FAILURE
        }
    }
}

fn config(store: &Path) -> ImagesConfig {
    let mut config = ImagesConfig::new(store);
    // So that steps come in the same order each time.
    config.concurrency.layers_per_image = 1;
    config.copies = Copies::PerDomain;
    config
}

async fn ensure(images: &Images, name: &str, policy: PullPolicy) -> Result<image_snapshot::Image, String> {
    let request =
        EnsureRequest { reference: name.to_owned(), policy, credentials: Vec::new(), local: LocalAccess::Trusted };
    images.ensure(request, |_| {}).await.map_err(|error| error.chain())
}

/// Discards what is damaged and says how much.
async fn repair(images: &Images) -> Result<usize, Box<dyn std::error::Error>> {
    let mut damaged = 0;
    for (layer, verdict) in images.verify().await? {
        if verdict != Verdict::Sound {
            damaged += 1;
            images.discard(&layer).await?;
        }
    }
    Ok(damaged)
}

async fn life(store: &Path, layouts: &Path) -> Done {
    let name = |image: &str| format!("oci-layout:{}", layouts.join(image).display());
    let (a, b, bad) = (name("a"), name("b"), name("bad"));
    let images = Images::open(config(store))?;
    images.allow_gc();
    ensure(&images, &a, PullPolicy::IfNotPresent).await?;
    ensure(&images, &b, PullPolicy::IfNotPresent).await?;
    ensure(&images, &b, PullPolicy::Always).await?;
    if ensure(&images, &bad, PullPolicy::IfNotPresent).await.is_ok() {
        return Err("an image that is none was taken in".into());
    }
    ensure(&images.of_domain("tenant"), &a, PullPolicy::IfNotPresent).await?;
    // Used again, and kept from collection while it is.
    let held = ensure(&images, &a, PullPolicy::IfNotPresent).await?;
    images.remove(&a).await?;
    images.evict(ALL).await?;
    if images.verify().await?.len() < held.rootfs.layers.len() {
        return Err("a leased layer was collected".into());
    }
    drop(held);
    images.gc().await?;
    // A layer rots, and is brought anew.
    let image = ensure(&images, &b, PullPolicy::IfNotPresent).await?;
    let top = image.rootfs.layers.last().ok_or("no layers")?.clone();
    drop(image);
    rot(&top.path)?;
    if repair(&images).await? != 1 {
        return Err("damage was not found".into());
    }
    ensure(&images, &b, PullPolicy::IfNotPresent).await?;
    // One whose size tells.
    std::fs::OpenOptions::new().write(true).open(&top.path)?.set_len(4096)?;
    ensure(&images, &b, PullPolicy::IfNotPresent).await?;
    images.remove(&b).await?;
    ensure(&images, &a, PullPolicy::IfNotPresent).await?;
    images.gc().await?;
    // What a crash leaves: it is planted here and found when the store is opened.
    drop(images);
    std::fs::write(store.join("ingest/1-1"), b"torn")?;
    std::fs::write(store.join("layers/sha256").join(format!("{:064}.erofs", 7)), b"without a record")?;
    std::fs::write(store.join("layers/sha256").join(format!("{:064}.json", 8)), b"{")?;
    std::fs::write(store.join("refs").join(format!("{:064}.json", 9)), [0; 512])?;
    let images = Images::open(config(store))?;
    for name in [&a, &b] {
        ensure(&images, name, PullPolicy::IfNotPresent).await?;
    }
    Ok(())
}

fn rot(path: &Path) -> std::io::Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let at = file.metadata()?.len() - 8000;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[if byte[0] == b'?' { b'!' } else { b'?' }], at)
}

async fn one(what: &str, store: &Path, name: Option<&str>) -> Done {
    let images = loop {
        match Images::open(config(store)) {
            Ok(images) => break images,
            Err(image_snapshot::ImageError::Store(error)) if matches!(*error, StoreError::InUse { .. }) => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => return Err(error.chain().into()),
        }
    };
    images.allow_gc();
    match (what, name) {
        ("ensure", Some(name)) => drop(ensure(&images, name, PullPolicy::Always).await?),
        ("remove", Some(name)) => drop(images.remove(name).await?),
        ("evict", _) => {
            images.pin(name);
            images.evict(ALL).await?;
        }
        ("verify", _) => {
            let bad = images.verify().await?.iter().filter(|(_, verdict)| *verdict != Verdict::Sound).count();
            if bad > 0 {
                return Err(format!("{bad} layers are damaged").into());
            }
        }
        _ => return Err(format!("{:?}: what is {what}?", ErrorKind::InvalidName).into()),
    }
    Ok(())
}
