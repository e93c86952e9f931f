//! Pulling from a registry that behaves, and from ones that do not.
#![allow(clippy::unwrap_used)] // A test program throughout.

mod support;

use std::time::{Duration, Instant};

use image_snapshot::{ErrorKind, ImageError, LayerPhase, Progress, PullPolicy};
use serde_json::json;
use support::{
    basic, config,
    fake_registry::{FakeRegistry, Reply, Request},
    images::{File, Made, Packing, noise, tar, three_layers},
    leftovers, open, pull, pull_watched, request,
};

fn store() -> tempfile::TempDir {
    tempfile::tempdir().expect("tempdir")
}

#[tokio::test]
async fn an_image_arrives_whole_and_the_second_time_nothing_is_fetched() {
    let (registry, root) = (FakeRegistry::plain().await, store());
    let name = registry.push("team/app", "v1", &three_layers());
    let images = open(root.path());
    let (image, events) = pull_watched(&images, &name).await;
    let image = image.unwrap();
    assert_eq!(image.reference, name);
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    assert_eq!(image.config.user, "65534");
    assert_eq!(image.rootfs.layers.len(), 3);
    assert_eq!(image.repo_digest, format!("{}/team/app@{}", registry.address, image.manifest_digest));
    assert_eq!(image.rootfs.read_file("etc/passwd", 100).unwrap().unwrap(), b"root:x:0:0:new");
    assert_eq!(image.rootfs.read_file("/etc/group", 100).unwrap().unwrap(), b"root:x:0:");
    assert_eq!(image.rootfs.read_file("gone", 100).unwrap(), None);
    assert_eq!(image.rootfs.read_file("big", 1 << 22).unwrap().unwrap().len(), 3_000_000);
    assert!(matches!(&events[0], Progress::Resolved { layers, .. } if layers.iter().all(|l| !l.present)));
    assert!(matches!(events.last(), Some(Progress::Done { fetched, .. }) if *fetched > 1_000_000));
    for wanted in 0..3 {
        let mut phases: Vec<LayerPhase> = events
            .iter()
            .filter_map(|e| match e {
                Progress::Layer { index, phase, .. } if *index == wanted => Some(*phase),
                _ => None,
            })
            .collect();
        assert!(phases.is_sorted(), "{phases:?}");
        assert_eq!(phases.pop(), Some(LayerPhase::Present));
    }
    let before = registry.log().len();
    let again = images.ensure(request(&name, PullPolicy::IfNotPresent), |_| {}).await.unwrap();
    assert_eq!((again.rootfs, registry.log().len()), (image.rootfs, before));
    // Always: one question, nothing else.
    pull(&images, &name).await.unwrap();
    assert_eq!(registry.log().len(), before + 1);
    assert!(images.verify().await.unwrap().iter().all(|(_, v)| *v == image_snapshot::store::Verdict::Sound));
}

#[tokio::test]
async fn a_restart_finds_everything_and_a_tag_that_moved_brings_only_what_is_new() {
    let (registry, root) = (FakeRegistry::plain().await, store());
    let base = (tar(&[File("base", &[1; 100_000])]), Packing::Gzip);
    let image = |text: &[u8]| Made::new(&[base.clone(), (tar(&[File("x", text)]), Packing::Gzip)], |_, _| {});
    let name = registry.push("a", "latest", &image(b"one"));
    let first = pull(&open(root.path()), &name).await.unwrap();
    let images = open(root.path());
    let local = images.get_local(&name).await.unwrap().unwrap();
    assert_eq!(local.rootfs, first.rootfs);
    let two = image(b"two");
    registry.push("a", "latest", &two);
    assert_eq!(images.ensure(request(&name, PullPolicy::IfNotPresent), |_| {}).await.unwrap().rootfs, first.rootfs);
    let second = pull(&images, &name).await.unwrap();
    assert_eq!(second.rootfs.read_file("x", 10).unwrap().unwrap(), b"two");
    assert_eq!(registry.count(&two.layers[0]), 1, "the base was fetched once");
    // The first image lost its name, but its lease holds; then it goes.
    assert_eq!(images.gc().await.unwrap().removed.len(), 0, "not before it is allowed");
    images.allow_gc();
    let leased = local.lease.clone();
    drop((local, first));
    let report = images.gc().await.unwrap();
    assert_eq!((report.removed.len(), report.leased), (0, 1));
    drop(leased);
    let report = images.gc().await.unwrap();
    assert_eq!((report.removed.len(), report.leased), (1, 0));
    assert!(report.freed > 0);
    assert_eq!(second.rootfs.read_file("base", 1 << 20).unwrap().unwrap().len(), 100_000);
    assert!(images.remove(&name).await.unwrap());
    drop(second);
    assert_eq!(images.gc().await.unwrap().removed.len(), 2);
    assert_eq!(leftovers(root.path()), [""; 0]);
}

#[tokio::test]
async fn adopted_layers_stay_and_missing_ones_are_told() {
    let (registry, root) = (FakeRegistry::plain().await, store());
    let name = registry.push("a", "1", &three_layers());
    let ids: Vec<String> = {
        let image = pull(&open(root.path()), &name).await.unwrap();
        image.rootfs.layers.iter().map(|l| l.id.clone()).collect()
    };
    let images = open(root.path());
    let lease = images.adopt(&ids).unwrap();
    images.allow_gc();
    images.remove(&name).await.unwrap();
    assert_eq!(images.gc().await.unwrap().leased, 3);
    drop(lease);
    assert_eq!(images.gc().await.unwrap().removed.len(), 3);
    assert!(images.adopt(&ids).is_err());
    assert!(images.adopt(&["nonsense".to_owned()]).is_err());
}

#[tokio::test]
async fn many_pods_share_one_download() {
    let (registry, root) = (FakeRegistry::plain().await, store());
    let made = three_layers();
    let name = registry.push("a", "1", &made);
    let images = open(root.path());
    let pulls = (0..20).map(|_| pull(&images, &name));
    for result in futures::future::join_all(pulls).await {
        result.unwrap();
    }
    for layer in &made.layers {
        assert_eq!(registry.count(layer), 1);
    }
}

/// Bytes of the disk that a directory takes.
fn blocks_of(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let below = std::fs::read_dir(dir).unwrap().map(|entry| {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            blocks_of(&entry.path())
        } else {
            entry.metadata().unwrap().blocks() * 512
        }
    });
    std::fs::metadata(dir).unwrap().blocks() * 512 + below.sum::<u64>()
}

#[tokio::test]
async fn ten_images_on_one_base_fetch_and_keep_it_once() {
    const BASE: usize = 12_000_000;
    const TOP: usize = 200_000;
    let (registry, root) = (FakeRegistry::plain().await, store());
    let base = (tar(&[File("base", &noise(1, BASE))]), Packing::Gzip);
    let images = open(root.path());
    let mut held = Vec::new();
    for number in 0..10 {
        let top = (tar(&[File("top", &noise(2 * number + 3, TOP))]), Packing::Gzip);
        let made = Made::new(&[base.clone(), top], |_, _| {});
        let name = registry.push(&format!("team/app{number}"), "1", &made);
        held.push(pull(&images, &name).await.unwrap());
        assert_eq!(registry.count(&made.layers[0]), 1, "image {number}");
    }
    let first = &held[0].rootfs.layers;
    for image in &held {
        assert_eq!(image.rootfs.layers[0].path, first[0].path);
        assert_eq!(image.rootfs.read_file("top", 1 << 20).unwrap().unwrap().len(), TOP);
    }
    let (taken, content) = (blocks_of(root.path()), (BASE + 10 * TOP) as u64);
    assert!(taken > content && taken * 100 <= content * 103, "{taken} bytes of the disk for {content} of the files");
}

#[tokio::test]
async fn an_index_gives_this_platforms_image_and_a_digest_is_never_asked_for_again() {
    let (registry, root) = (FakeRegistry::plain().await, store());
    let mut made = Made::simple(b"x");
    let size = made.blobs[&made.manifest].len();
    let entry = |digest: &str, architecture: &str| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
               "platform": {"os": "linux", "architecture": architecture}})
    };
    let other = image_snapshot::Digest::sha256(b"other").to_string();
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(&other, "s390x"), entry(&made.manifest, "amd64")]});
    let manifest = made.manifest.clone();
    made.manifest = made.put(index.to_string().into_bytes());
    registry.push("multi", "1", &made);
    let by_digest = format!("{}/multi@{}", registry.address, made.manifest);
    let images = open(root.path());
    // The fake calls everything a manifest; a registry that mislabels is refused.
    let error = pull(&images, &by_digest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error:?}");
    let registry = FakeRegistry::start({
        let made = made.clone();
        move |r| {
            let index = r.path.ends_with(&made.manifest) || r.path.ends_with("manifests/1");
            index.then(|| {
                Reply::status(200)
                    .with("Content-Type", "application/vnd.oci.image.index.v1+json")
                    .body(made.blobs[&made.manifest].clone())
            })
        }
    })
    .await;
    registry.push("multi", "1", &made);
    let by_digest = format!("{}/multi@{}", registry.address, made.manifest);
    let image = pull(&images, &by_digest).await.unwrap();
    assert_eq!(image.manifest_digest.to_string(), manifest);
    assert_eq!(image.repo_digest, by_digest);
    let before = registry.log().len();
    pull(&images, &by_digest).await.unwrap();
    assert_eq!(registry.log().len(), before);
}

/// A registry that wants a token, which its service gives to `user:secret` only.
async fn guarded(made: Made) -> (FakeRegistry, String) {
    let registry = FakeRegistry::start(|r| {
        let host = r.headers.get("host").cloned().unwrap_or_default();
        let authorization = r.headers.get("authorization").map(String::as_str);
        if r.path.starts_with("/token") {
            return Some(match authorization {
                // user:secret
                Some("Basic dXNlcjpzZWNyZXQ=") => Reply::status(200).body(r#"{"token":"good","expires_in":60}"#),
                None => Reply::status(200).body(r#"{"access_token":"anonymous"}"#),
                Some(_) => Reply::status(401).body(r#"{"errors":[{"code":"DENIED","message":"wrong password"}]}"#),
            });
        }
        (authorization != Some("Bearer good")).then(|| {
            let challenge = format!(r#"Bearer realm="http://{host}/token",service="s",scope="repository:a:pull""#);
            Reply::status(401).with("WWW-Authenticate", &challenge)
        })
    })
    .await;
    let name = registry.push("private/a", "1", &made);
    (registry, name)
}

#[tokio::test]
async fn a_private_image_needs_the_right_credentials_and_one_token_serves_all_requests() {
    let (registry, name) = guarded(three_layers()).await;
    let root = store();
    let images = open(root.path());
    let error = pull(&images, &name).await.unwrap_err();
    assert_eq!((error.kind(), error.reason()), (ErrorKind::Unauthorized, "ErrImagePull"));
    let host = registry.address.to_string();
    let with = |credentials, policy| {
        let mut request = request(&name, policy);
        request.credentials = credentials;
        images.ensure(request, |_| {})
    };
    let error = with(vec![basic(&host, "user", "wrong")], PullPolicy::IfNotPresent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_eq!(leftovers(root.path()), [""; 0]);
    let before = registry.count("/token");
    let creds = || vec![basic(&host, "user", "wrong"), basic("elsewhere.io", "x", "y"), basic(&host, "user", "secret")];
    with(creds(), PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(registry.count("/token") - before, 2, "the wrong one, the right one");
    let query = registry.requests().into_iter().find(|r| r.path.starts_with("/token")).unwrap().path;
    assert!(query.contains("service=s") && query.contains("scope=repository%3Aprivate%2Fa%3Apull"), "{query}");

    // It is here now; but not for everybody.
    let asked = registry.log().len();
    with(creds(), PullPolicy::IfNotPresent).await.unwrap();
    with(creds(), PullPolicy::Never).await.unwrap();
    assert_eq!(registry.log().len(), asked, "a right once shown is remembered");
    let error = with(vec![], PullPolicy::IfNotPresent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let error = with(vec![basic(&host, "user", "wrong")], PullPolicy::Never).await.unwrap_err();
    assert!(matches!(error, ImageError::NeverPull { .. }));
    assert_eq!(error.reason(), "ErrImageNeverPull");
    // The memory outlives the process, and holds no secret.
    drop(images);
    let images = open(root.path());
    let mut again = request(&name, PullPolicy::Never);
    again.credentials = creds();
    images.ensure(again, |_| {}).await.unwrap();
    for file in leftovers(root.path()) {
        let bytes = std::fs::read(root.path().join(file)).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"secret"));
    }
}

#[tokio::test]
async fn a_token_that_expires_midway_is_renewed() {
    let registry = FakeRegistry::start(|r| {
        let host = r.headers.get("host").cloned().unwrap_or_default();
        if r.path.starts_with("/token") {
            return Some(Reply::status(200).body(format!(r#"{{"token":"t{}"}}"#, r.earlier)));
        }
        let want = if r.path.contains("/blobs/") { "Bearer t1" } else { "Bearer t0" };
        let challenge = format!(r#"Bearer realm="http://{host}/token""#);
        (r.headers.get("authorization").map(String::as_str) != Some(want))
            .then(|| Reply::status(401).with("WWW-Authenticate", &challenge))
    })
    .await;
    let name = registry.push("a", "1", &Made::simple(b"x"));
    pull(&open(store().path()), &name).await.unwrap();
    assert_eq!(registry.count("/token"), 2);
}

#[tokio::test]
async fn basic_credentials_do_without_a_token() {
    let registry = FakeRegistry::start(|r| {
        (r.headers.get("authorization").map(String::as_str) != Some("Basic dXNlcjpzZWNyZXQ="))
            .then(|| Reply::status(401).with("WWW-Authenticate", r#"Basic realm="x""#))
    })
    .await;
    let name = registry.push("a", "1", &Made::simple(b"x"));
    let root = store();
    let images = open(root.path());
    assert_eq!(pull(&images, &name).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    let mut request = request(&name, PullPolicy::Always);
    request.credentials = vec![basic(&registry.address.to_string(), "user", "secret")];
    images.ensure(request, |_| {}).await.unwrap();
}

#[tokio::test]
async fn of_two_names_for_one_registry_the_second_is_tried_when_the_first_is_refused_without_a_challenge() {
    let registry = FakeRegistry::start(|r| match r.headers.get("authorization").map(String::as_str) {
        Some("Basic dXNlcjpzZWNyZXQ=") => None,
        // It is known, and may not have this image.
        Some("Basic b3RoZXI6cGFzcw==") => Some(Reply::status(403)),
        _ => Some(Reply::status(401).with("WWW-Authenticate", r#"Basic realm="x""#)),
    })
    .await;
    let name = registry.push("a", "1", &Made::simple(b"x"));
    let root = store();
    let images = open(root.path());
    let host = registry.address.to_string();
    let with = |credentials| {
        let mut request = request(&name, PullPolicy::Always);
        request.credentials = credentials;
        images.ensure(request, |_| {})
    };
    let (other, user) = (basic(&host, "other", "pass"), basic(&host, "user", "secret"));
    let error = with(vec![other.clone()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    with(vec![other, user]).await.unwrap();
}

#[tokio::test]
async fn who_is_known_and_refused_is_told_why_though_nobody_else_is_let_in_either() {
    let registry = FakeRegistry::start(|r| {
        let host = r.headers.get("host").cloned().unwrap_or_default();
        let authorization = r.headers.get("authorization").map(String::as_str);
        if r.path.starts_with("/token") {
            let token = if authorization.is_some() { "known" } else { "anonymous" };
            return Some(Reply::status(200).body(format!(r#"{{"token":"{token}"}}"#)));
        }
        Some(match authorization {
            Some("Bearer known") => Reply::status(403)
                .body(r#"{"errors":[{"code":"DENIED","message":"blocked by the policy on severity"}]}"#),
            _ => Reply::status(401).with("WWW-Authenticate", &format!(r#"Bearer realm="http://{host}/token""#)),
        })
    })
    .await;
    let name = registry.push("a", "1", &Made::simple(b"x"));
    let mut request = request(&name, PullPolicy::Always);
    request.credentials = vec![basic(&registry.address.to_string(), "user", "secret")];
    let root = store();
    let error = open(root.path()).ensure(request, |_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.chain().contains("blocked by the policy on severity"), "{}", error.chain());
    assert_eq!(registry.count("/token"), 2, "anybody's right was tried too");
}

#[tokio::test]
async fn unknown_names_are_told_in_the_registrys_words() {
    let registry = FakeRegistry::plain().await;
    let root = store();
    let images = open(root.path());
    let error = pull(&images, &format!("{}/no/such:tag", registry.address)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.chain().contains("MANIFEST_UNKNOWN"), "{}", error.chain());
    let error = pull(&images, "Not/A/Name").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.reason(), error.is_retryable()),
        (ErrorKind::InvalidName, "InvalidImageName", false)
    );
    let error = images.ensure(request("127.0.0.1:1/x", PullPolicy::Never), |_| {}).await.unwrap_err();
    assert_eq!(error.reason(), "ErrImageNeverPull");
    let error = pull(&images, "127.0.0.1:1/x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn trouble_that_passes_is_waited_out() {
    let registry = FakeRegistry::start(|r| match (r.path.contains("/manifests/"), r.earlier) {
        (true, 0) => Some(Reply::status(429).with("Retry-After", "1")),
        (true, 1) => Some(Reply::status(500)),
        (false, 0) => Some(Reply::status(503)),
        _ => None,
    })
    .await;
    let name = registry.push("a", "1", &Made::simple(b"x"));
    let start = Instant::now();
    let (result, events) = pull_watched(&open(store().path()), &name).await;
    result.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "Retry-After was honoured");
    let retries = events.iter().filter(|e| matches!(e, Progress::Retrying { .. })).count();
    assert_eq!(retries, 4, "manifest twice, configuration and layer once each");
}

#[tokio::test]
async fn trouble_that_stays_is_given_up_with_its_class() {
    for (status, kind, retry_after) in [
        (429, ErrorKind::RateLimited, Some("3600")),
        (500, ErrorKind::Unavailable, None),
        (401, ErrorKind::Unauthorized, None),
        (403, ErrorKind::Unauthorized, None),
        (418, ErrorKind::Unavailable, None),
    ] {
        let registry = FakeRegistry::start(move |_| {
            let reply = Reply::status(status).body("<html>no</html>");
            Some(match retry_after {
                Some(value) => reply.with("Retry-After", value),
                None => reply,
            })
        })
        .await;
        let root = store();
        let error = pull(&open(root.path()), &format!("{}/a", registry.address)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert_eq!(error.retry_after().map(|d| d.as_secs().to_string()).as_deref(), retry_after);
        assert_eq!(registry.log().len(), if status == 500 { 3 } else { 1 });
        assert_eq!(leftovers(root.path()), [""; 0]);
    }
}

#[tokio::test]
async fn a_registry_that_hangs_or_drips_is_not_waited_for() {
    let made = three_layers();
    for (part, hang, drip) in [
        ("/manifests/", Some(0), None),
        ("/manifests/", Some(10), None),
        ("/manifests/", None, Some(20)),
        ("/blobs/", Some(0), None),
        ("/blobs/", Some(100), None),
        ("/blobs/", None, Some(20)),
    ] {
        let registry = FakeRegistry::start({
            let made = made.clone();
            move |r| {
                if !r.path.contains(part) {
                    return None;
                }
                let last = r.path.rsplit('/').next().unwrap_or_default();
                let body = made.blobs.get(last).unwrap_or(&made.blobs[&made.manifest]).clone();
                Some(Reply { hang, drip, ..Reply::status(200).body(body) })
            }
        })
        .await;
        let name = registry.push("a", "1", &made);
        let root = store();
        let start = Instant::now();
        let error = pull(&open(root.path()), &name).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{part} {hang:?} {drip:?}: {error:?}");
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}

#[tokio::test]
async fn a_connection_that_breaks_again_and_again_is_resumed() {
    let made = three_layers();
    let big = made.layers[0].clone();
    let size = made.blobs[&big].len();
    let registry = FakeRegistry::start({
        let made = made.clone();
        move |r| {
            let last = r.path.rsplit('/').next().unwrap_or_default();
            if last != big || r.earlier > 8 {
                return None;
            }
            let from: usize = r
                .headers
                .get("range")
                .and_then(|v| v.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
                .unwrap_or(0);
            let body = made.blobs[last][from..].to_vec();
            let range = format!("bytes {from}-{}/{size}", size - 1);
            let status = if from > 0 { 206 } else { 200 };
            Some(Reply { cut: Some(size / 10), ..Reply::status(status).with("Content-Range", &range).body(body) })
        }
    })
    .await;
    let name = registry.push("a", "1", &made);
    let root = store();
    let image = pull(&open(root.path()), &name).await.unwrap();
    assert_eq!(image.rootfs.read_file("big", 1 << 22).unwrap().unwrap().len(), 3_000_000);
    assert!(registry.count(&made.layers[0]) >= 9);
}

#[tokio::test]
async fn registries_without_ranges_and_with_wrong_ones() {
    let made = three_layers();
    let layer = made.layers[0].clone();
    for lies in [false, true] {
        let registry = FakeRegistry::start({
            let (made, layer) = (made.clone(), layer.clone());
            move |r| {
                let body = made.blobs[&layer].clone();
                let at_layer = r.path.ends_with(&layer);
                match (at_layer, r.earlier) {
                    (false, _) => None,
                    (true, 0) => Some(Reply { cut: Some(body.len() / 2), ..Reply::status(200).body(body) }),
                    (true, _) if lies => Some(Reply::status(206).with("Content-Range", "bytes 0-9/10").body(body)),
                    (true, _) => Some(Reply::status(200).body(body)),
                }
            }
        })
        .await;
        let name = registry.push("a", "1", &made);
        let result = pull(&open(store().path()), &name).await;
        assert_eq!(result.is_ok(), !lies, "{result:?}");
    }
}

#[tokio::test]
async fn other_bytes_than_promised_never_become_an_image() {
    let made = three_layers();
    let spoil = |which: String, change: fn(&mut Vec<u8>)| {
        let made = made.clone();
        async move {
            let registry = FakeRegistry::start({
                let made = made.clone();
                move |r| {
                    r.path.ends_with(&which).then(|| {
                        let mut body = made.blobs[&which].clone();
                        change(&mut body);
                        Reply::status(200).body(body)
                    })
                }
            })
            .await;
            let name = registry.push("a", "1", &made);
            let root = store();
            let error = pull(&open(root.path()), &name).await.unwrap_err();
            let images: Vec<_> = leftovers(root.path()).into_iter().filter(|f| f.starts_with("refs")).collect();
            assert_eq!(images, [""; 0]);
            error.kind()
        }
    };
    let flip: fn(&mut Vec<u8>) = |b| {
        let middle = b.len() / 2;
        b[middle] ^= 1;
    };
    assert_eq!(spoil(made.layers[0].clone(), flip).await, ErrorKind::Corrupt);
    assert_eq!(spoil(made.layers[2].clone(), flip).await, ErrorKind::Corrupt);
    assert_eq!(spoil(made.config.clone(), flip).await, ErrorKind::Corrupt);
    assert_eq!(spoil(made.layers[1].clone(), |b| b.truncate(20)).await, ErrorKind::Corrupt);
    assert_eq!(spoil(made.layers[1].clone(), |b| b.push(0)).await, ErrorKind::InvalidImage);
}

#[tokio::test]
async fn a_tags_manifest_must_have_the_digest_that_comes_with_it() {
    let made = Made::simple(b"x");
    let wrong = image_snapshot::Digest::sha256(b"something else").to_string();
    let registry = FakeRegistry::start({
        let made = made.clone();
        move |r| {
            r.path.contains("/manifests/").then(|| {
                Reply::status(200).with("Docker-Content-Digest", &wrong).body(made.blobs[&made.manifest].clone())
            })
        }
    })
    .await;
    let name = registry.push("a", "1", &made);
    assert_eq!(pull(&open(store().path()), &name).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn images_that_contradict_themselves_are_refused() {
    let layer = || vec![(tar(&[File("x", b"1")]), Packing::Gzip)];
    let cases: Vec<(&str, ErrorKind, Made)> = vec![
        (
            "diff id",
            ErrorKind::Corrupt,
            Made::new(&layer(), |c, _| {
                c["rootfs"]["diff_ids"][0] = json!(image_snapshot::Digest::sha256(b"no").to_string());
            }),
        ),
        ("too few diff ids", ErrorKind::InvalidImage, Made::new(&layer(), |c, _| c["rootfs"]["diff_ids"] = json!([]))),
        ("platform", ErrorKind::InvalidImage, Made::new(&layer(), |c, _| c["architecture"] = json!("s390x"))),
        (
            "media type",
            ErrorKind::InvalidImage,
            Made::new(&layer(), |_, m| m["layers"][0]["mediaType"] = json!("application/vnd.erofs.layer")),
        ),
        (
            "claims to be huge",
            ErrorKind::InvalidImage,
            Made::new(&layer(), |_, m| m["layers"][0]["size"] = json!(1_u64 << 50)),
        ),
        ("no layers", ErrorKind::InvalidImage, Made::new(&[], |_, _| {})),
        ("both index and manifest", ErrorKind::InvalidImage, Made::new(&layer(), |_, m| m["manifests"] = json!([]))),
        ("hostile layer", ErrorKind::InvalidImage, Made::new(&[(bad_tar(), Packing::Gzip)], |_, _| {})),
        ("not a tar", ErrorKind::InvalidImage, Made::new(&[(vec![7; 2000], Packing::Gzip)], |_, _| {})),
    ];
    for (what, kind, made) in cases {
        let registry = FakeRegistry::plain().await;
        let name = registry.push("a", "1", &made);
        let root = store();
        let error = pull(&open(root.path()), &name).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {}", error.chain());
        assert_eq!(leftovers(root.path()), [""; 0], "{what}");
    }
}

fn bad_tar() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..9].copy_from_slice(b"../escape");
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[tokio::test]
async fn gigantic_documents_and_endless_redirects_are_cut_off() {
    let registry = FakeRegistry::start(|r| match &r.path {
        p if p.contains("/big/") => Some(Reply::status(200).body(vec![b' '; 5 << 20])),
        p if p.contains("/claims/") => Some(Reply::status(200).with("Content-Length", "99999999999")),
        p if p.contains("/loop/") => Some(Reply::status(307).with("Location", &r.path)),
        _ => Some(Reply::status(500).body(vec![b'x'; 3 << 20])),
    })
    .await;
    let root = store();
    let images = open(root.path());
    let at = |name: &str| format!("{}/{name}:1", registry.address);
    assert_eq!(pull(&images, &at("big")).await.unwrap_err().kind(), ErrorKind::InvalidImage);
    assert_eq!(pull(&images, &at("claims")).await.unwrap_err().kind(), ErrorKind::InvalidImage);
    assert_eq!(pull(&images, &at("loop")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(registry.count("/loop/") < 10);
    assert!(pull(&images, &at("error")).await.unwrap_err().chain().len() < 500);
}

#[tokio::test]
async fn a_gigantic_token_is_not_read_to_its_end() {
    let ask = |asked: &Request, reply: fn() -> Reply| {
        let host = asked.headers.get("host").cloned().unwrap_or_default();
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="s""#);
        let answer = || Reply::status(401).with("WWW-Authenticate", &challenge);
        Some(if asked.path.starts_with("/token") { reply() } else { answer() })
    };
    let long = || Reply::status(200).body([br#"{"token":""#.to_vec(), vec![b'x'; 3 << 20]].concat());
    let claims = || Reply::status(200).with("Content-Length", "99999999999");
    for reply in [long as fn() -> Reply, claims] {
        let registry = FakeRegistry::start(move |asked| ask(asked, reply)).await;
        let root = store();
        let error = pull(&open(root.path()), &registry.push("a", "1", &Made::simple(b"x"))).await.unwrap_err();
        assert!(error.chain().contains("1048576"), "{}", error.chain());
        assert!(error.chain().contains("/token"), "{}", error.chain());
    }
}

#[tokio::test]
async fn a_blob_may_be_elsewhere_and_the_password_stays_here() {
    let made = Made::simple(b"x");
    let elsewhere = FakeRegistry::plain().await;
    elsewhere.push("a", "1", &made);
    let other = elsewhere.address.to_string();
    let registry = FakeRegistry::start(move |r| {
        if r.headers.get("authorization").map(String::as_str) != Some("Basic dXNlcjpzZWNyZXQ=") {
            return Some(Reply::status(401).with("WWW-Authenticate", r#"Basic realm="x""#));
        }
        let location = format!("http://{other}{}?signed=1", r.path);
        r.path.contains("/blobs/").then(|| Reply::status(307).with("Location", &location))
    })
    .await;
    let name = registry.push("a", "1", &made);
    let root = store();
    let images = open(root.path());
    let mut wish = request(&name, PullPolicy::Always);
    wish.credentials = vec![basic(&registry.address.to_string(), "user", "secret")];
    images.ensure(wish, |_| {}).await.unwrap();
    let seen = elsewhere.requests();
    assert!(!seen.is_empty());
    assert!(seen.iter().all(|r| !r.headers.contains_key("authorization")), "{seen:?}");
}

#[tokio::test]
async fn https_needs_a_certificate_that_we_trust() {
    let (registry, pem) = FakeRegistry::over_tls().await;
    let name = registry.push("a", "1", &Made::simple(b"x"));
    let root = store();
    let host = |certificates: Vec<Vec<u8>>| {
        let mut config = config(root.path());
        config.registries = vec![image_snapshot::RegistryHost {
            host: registry.address.to_string(),
            ca_certificates: certificates,
            ..Default::default()
        }];
        image_snapshot::Images::open(config).unwrap()
    };
    let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let error = pull(&host(vec![stranger.cert.pem().into_bytes()]), &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().to_lowercase().contains("certificate"), "{}", error.chain());
    pull(&host(vec![pem]), &name).await.unwrap();
    let error = pull(&host(vec![b"no pem".to_vec()]), &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

/// A store that does not verify a registry.
fn unverifying(root: &std::path::Path, registry: &FakeRegistry) -> image_snapshot::Images {
    let mut config = config(root);
    let host = registry.address.to_string();
    config.registries = vec![image_snapshot::RegistryHost { host, unverified: true, ..Default::default() }];
    image_snapshot::Images::open(config).unwrap()
}

#[tokio::test]
async fn a_registry_of_any_certificate_is_asked_by_setting_and_no_other() {
    let (registry, _) = FakeRegistry::over_tls().await;
    let name = registry.push("a", "1", &Made::simple(b"x"));
    let root = store();
    let images = unverifying(root.path(), &registry);
    assert!(pull(&images, &name).await.unwrap().rootfs.read_file("content", 10).unwrap().is_some());
    // Another one, with a certificate that is no better.
    let (other, _) = FakeRegistry::over_tls().await;
    let name = other.push("a", "1", &Made::simple(b"y")).replacen("127.0.0.1", "localhost", 1);
    let second = store();
    let mut config = config(second.path());
    let host = |address: String, unverified: bool, mirror: Option<String>| image_snapshot::RegistryHost {
        host: address,
        unverified,
        mirrors: mirror.into_iter().collect(),
        ..Default::default()
    };
    // As a mirror of a name that is spoken to otherwise, so that its own name does not decide.
    let mirror = format!("https://{}", other.address);
    config.registries = vec![
        host(registry.address.to_string(), true, None),
        host(name.split('/').next().unwrap().to_owned(), false, Some(mirror)),
    ];
    let images = image_snapshot::Images::open(config).unwrap();
    pull(&images, &name).await.unwrap_err();
    assert!(other.log().is_empty(), "{:?}", other.log());
}

#[tokio::test]
async fn a_registry_that_is_not_verified_leads_nowhere_else() {
    let (elsewhere, _) = FakeRegistry::over_tls().await;
    let made = Made::simple(b"x");
    elsewhere.push("a", "1", &made);
    let target = elsewhere.address;
    let lead = move |asked: &Request| {
        let away = asked.path.contains("/blobs/");
        away.then(|| Reply::status(307).with("Location", &format!("https://{target}{}", asked.path)))
    };
    let registry = FakeRegistry::over_tls_with(lead).await;
    let name = registry.push("a", "1", &made);
    let root = store();
    let error = pull(&unverifying(root.path(), &registry), &name).await.unwrap_err();
    assert!(error.chain().contains("redirect"), "{}", error.chain());
    assert!(elsewhere.log().is_empty(), "{:?}", elsewhere.log());

    // Nor do credentials go to a token service that could be anybody.
    let ask = move |_: &Request| {
        let challenge = format!("Bearer realm=\"https://{target}/token\",service=\"s\"");
        Some(Reply::status(401).with("WWW-Authenticate", &challenge))
    };
    let registry = FakeRegistry::over_tls_with(ask).await;
    let name = registry.push("a", "1", &made);
    let root = store();
    let mut request = request(&name, PullPolicy::Always);
    request.credentials = vec![basic(&registry.address.to_string(), "ann", "secret")];
    let error = unverifying(root.path(), &registry).ensure(request, |_| {}).await.unwrap_err();
    assert!(elsewhere.log().is_empty(), "{:?} {}", elsewhere.log(), error.chain());
}
