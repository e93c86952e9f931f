//! Images and registries for tests.
#![allow(dead_code)] // Each test program uses its own part.

pub(crate) mod fake_registry;
pub(crate) mod images;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use image_snapshot::{
    Credential, EnsureRequest, Image, ImageError, Images, ImagesConfig, LocalAccess, Progress, PullPolicy,
    RegistryAuth, Secret, Timeouts,
};

/// Impatient settings.
pub(crate) fn config(root: &Path) -> ImagesConfig {
    // Another test of this program may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut config = ImagesConfig::new(root);
    config.timeouts = Timeouts {
        connect: Duration::from_secs(2),
        progress: Duration::from_millis(400),
        layer: Duration::from_secs(120),
        attempts: 3,
        backoff: Duration::from_millis(5),
        backoff_max: Duration::from_secs(2),
    };
    config
}

pub(crate) fn open(root: &Path) -> Images {
    Images::open(config(root)).expect("open store")
}

pub(crate) fn request(reference: &str, policy: PullPolicy) -> EnsureRequest {
    EnsureRequest { reference: reference.to_owned(), policy, credentials: Vec::new(), local: LocalAccess::Trusted }
}

pub(crate) fn basic(scope: &str, username: &str, password: &str) -> Credential {
    Credential {
        scope: scope.to_owned(),
        auth: RegistryAuth::Basic { username: username.to_owned(), password: Secret::new(password) },
    }
}

pub(crate) async fn pull(images: &Images, reference: &str) -> Result<Image, ImageError> {
    images.ensure(request(reference, PullPolicy::Always), |_| {}).await
}

/// Pulls and keeps what was told on the way.
pub(crate) async fn pull_watched(images: &Images, reference: &str) -> (Result<Image, ImageError>, Vec<Progress>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let keep = seen.clone();
    let result = images
        .ensure(request(reference, PullPolicy::Always), move |event| keep.lock().expect("lock").push(event))
        .await;
    let events = std::mem::take(&mut *seen.lock().expect("lock"));
    (result, events)
}

/// Files in the store besides its own bookkeeping.
pub(crate) fn leftovers(root: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for dir in ["ingest", "layers/sha256", "blobs/sha256", "refs"] {
        for entry in std::fs::read_dir(root.join(dir)).expect("list") {
            out.push(format!("{dir}/{}", entry.expect("entry").file_name().to_string_lossy()));
        }
    }
    out
}
