//! What happens to an image between two steps of somebody else's.

#![allow(clippy::unwrap_used)] // A test program throughout.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use image_snapshot::PullPolicy;
use support::{fake_registry::FakeRegistry, images::Made, open, pull, request};

/// Waits for another thread.
fn until(flag: &AtomicBool) {
    let began = Instant::now();
    while !flag.load(Ordering::Acquire) {
        assert!(began.elapsed() < Duration::from_secs(60), "nobody came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_name_that_is_removed_while_it_is_checked_comes_back_with_its_documents() {
    let root = tempfile::tempdir().unwrap();
    let (asked, removed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (tell, wait) = (asked.clone(), removed.clone());
    let registry = FakeRegistry::start(move |request| {
        if request.method == "HEAD" {
            tell.store(true, Ordering::Release);
            until(&wait);
        }
        None
    })
    .await;
    let name = registry.push("app", "1", &Made::simple(b"x"));
    let mut config = support::config(root.path());
    config.timeouts.progress = Duration::from_secs(60);
    let images = image_snapshot::Images::open(config).unwrap();
    drop(pull(&images, &name).await.unwrap());
    let checking = {
        let (images, name) = (images.clone(), name.clone());
        tokio::spawn(async move { images.ensure(request(&name, PullPolicy::Always), |_| {}).await })
    };
    tokio::task::spawn_blocking(move || until(&asked)).await.unwrap();
    assert!(images.remove(&name).await.unwrap());
    images.allow_gc();
    images.gc().await.unwrap();
    removed.store(true, Ordering::Release);
    drop(checking.await.unwrap().unwrap());
    drop(images);
    let images = open(root.path());
    assert!(images.get_local(&name).await.unwrap().is_some(), "a name without its documents");
    images.ensure(request(&name, PullPolicy::Never), |_| {}).await.unwrap();
}
