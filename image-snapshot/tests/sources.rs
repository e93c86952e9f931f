//! Registries that mean ill, and ways to them.

#![allow(clippy::unwrap_used)] // A test program throughout.

mod support;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use image_snapshot::{Digest, ErrorKind};
use serde_json::json;
use support::{
    fake_registry::{FakeRegistry, Reply},
    images::{File, Made, Packing, pack, tar},
    leftovers, open, pull,
};

/// An image of one layer whose blob is these bytes, its archive said to be those.
fn with_blob(blob: &[u8], archive: &[u8]) -> Made {
    let filler = (tar(&[File("x", b"x")]), Packing::Gzip);
    let (digest, size) = (Digest::sha256(blob).to_string(), blob.len());
    let mut made = Made::new(&[filler], |config, manifest| {
        config["rootfs"]["diff_ids"] = json!([Digest::sha256(archive).to_string()]);
        let kind = "application/vnd.oci.image.layer.v1.tar";
        manifest["layers"] = json!([{"mediaType": kind, "digest": digest, "size": size}]);
    });
    made.put(blob.to_vec());
    made
}

#[tokio::test]
async fn a_file_system_smuggled_in_as_a_layer_is_refused() {
    let (root, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::plain().await);
    let images = open(root.path());
    let good = pull(&images, &registry.push("good", "1", &Made::simple(b"x"))).await.unwrap();
    // Our own writer's, so there is nothing wrong with it but that it came from outside.
    let erofs = std::fs::read(&good.rootfs.layers[0].path).unwrap();
    let before = leftovers(root.path());
    // As it is (the 1024 zeros that it begins with are the end of an archive), behind one more end, and without those zeros.
    let behind = [vec![0; 1024], erofs.clone()].concat();
    let bare = erofs[1024..].to_vec();
    let late = [vec![0; 1 << 20], vec![1]].concat();
    for (tag, archive) in [("plain", &erofs), ("behind", &behind), ("bare", &bare), ("late", &late)] {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let name = registry.push("evil", tag, &with_blob(&pack(archive, packing), archive));
            let error = pull(&images, &name).await.unwrap_err();
            assert_eq!((tag, error.kind()), (tag, ErrorKind::InvalidImage), "{error:?}");
        }
    }
    images.allow_gc();
    images.gc().await.unwrap();
    assert_eq!(leftovers(root.path()), before);
}

#[tokio::test]
async fn an_archive_of_nothing_but_zeros_is_an_empty_layer() {
    let (root, registry) = (tempfile::tempdir().unwrap(), FakeRegistry::plain().await);
    let images = open(root.path());
    for zeros in [1024, 10240, 1 << 20] {
        let archive = vec![0; zeros];
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let name = registry.push("empty", &zeros.to_string(), &with_blob(&pack(&archive, packing), &archive));
            let image = pull(&images, &name).await.unwrap();
            assert!(image.rootfs.read_file("x", 10).unwrap().is_none());
        }
    }
}

#[tokio::test]
async fn indexes_that_lead_back_to_themselves_end() {
    let root = tempfile::tempdir().unwrap();
    // No honest index can name its own digest; this registry sends the same bytes whatever it is asked for.
    let registry = FakeRegistry::start(|asked| {
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [{
            "mediaType": "application/vnd.oci.image.index.v1+json", "digest": Digest::sha256(b"me").to_string(), "size": 300,
            "platform": {"os": "linux", "architecture": "amd64"},
        }]});
        let digest = if asked.path.ends_with("/1") { None } else { Some(Digest::sha256(b"me").to_string()) };
        let reply = Reply::status(200)
            .with("Content-Type", "application/vnd.oci.image.index.v1+json")
            .body(index.to_string());
        Some(digest.into_iter().fold(reply, |reply, digest| reply.with("Docker-Content-Digest", &digest)))
    })
    .await;
    let error = pull(&open(root.path()), &format!("{}/loop:1", registry.address)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::InvalidImage), "{error:?}");
    assert!(registry.log().len() < 10, "{:?}", registry.log());
    assert_eq!(leftovers(root.path()), [""; 0]);
}

#[tokio::test]
async fn other_places_that_a_manifest_names_for_its_layers_are_never_asked() {
    let (root, elsewhere, registry) =
        (tempfile::tempdir().unwrap(), FakeRegistry::plain().await, FakeRegistry::plain().await);
    let (address, tar) = (elsewhere.address, tar(&[File("f", b"foreign")]));
    let made = Made::new(&[(tar, Packing::Gzip)], |_, manifest| {
        let digest = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
        manifest["layers"][0]["urls"] = json!([format!("http://{address}/v2/a/blobs/{digest}")]);
    });
    elsewhere.push("a", "1", &made);
    // Here, it is taken from here.
    let images = open(root.path());
    drop(pull(&images, &registry.push("a", "1", &made)).await.unwrap());
    // Not here, it is not taken from there.
    let mut without = made.clone();
    without.blobs.remove(&made.layers[0]);
    let poor = FakeRegistry::plain().await;
    let other = tempfile::tempdir().unwrap();
    let error = pull(&open(other.path()), &poor.push("a", "1", &without)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert_eq!(elsewhere.log(), [""; 0]);
    assert_eq!(leftovers(other.path()), [""; 0]);
}

#[tokio::test]
async fn answers_to_ranges_that_are_lies_never_become_an_image() {
    let made = Made::new(
        &[(tar(&[File("f", &(0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>())]), Packing::Plain)],
        |_, _| {},
    );
    let layer = made.layers[0].clone();
    let size = made.blobs[&layer].len();
    type Lie = fn(&[u8], usize) -> Reply;
    let lies: [(&str, Lie); 5] = [
        ("other bytes", |body, from| {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            Reply::status(206).with("Content-Range", &range).body(body[..body.len() - from].to_vec())
        }),
        ("more than there is", |body, from| {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            Reply::status(206).with("Content-Range", &range).body([&body[from..], b"and more"].concat())
        }),
        ("no range at all", |body, from| Reply::status(206).body(body[from..].to_vec())),
        ("nothing", |body, from| {
            Reply::status(206).with("Content-Range", &format!("bytes {from}-{}/{}", body.len() - 1, body.len()))
        }),
        ("no such range", |body, _| Reply::status(416).with("Content-Range", &format!("bytes */{}", body.len()))),
    ];
    for (what, lie) in lies {
        let registry = FakeRegistry::start({
            let (made, layer) = (made.clone(), layer.clone());
            move |asked| {
                if !asked.path.ends_with(&layer) {
                    return None;
                }
                let body = &made.blobs[&layer];
                let from =
                    asked.headers.get("range").and_then(|v| v.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
                Some(match from {
                    None => Reply { cut: Some(size / 3), ..Reply::status(200).body(body.clone()) },
                    Some(from) => lie(body, from),
                })
            }
        })
        .await;
        let root = tempfile::tempdir().unwrap();
        let error = pull(&open(root.path()), &registry.push("a", "1", &made)).await.unwrap_err();
        assert_ne!(error.kind(), ErrorKind::Store, "{what}: {error:?}");
        assert_eq!(leftovers(root.path()), [""; 0], "{what}");
        assert!(registry.count(&layer) < 20, "{what}: asked {} times", registry.count(&layer));
    }
}

#[tokio::test]
async fn a_layer_that_is_sent_from_here_to_there_and_back_is_given_up() {
    let made = Made::simple(b"x");
    let registry = FakeRegistry::start(|asked| {
        let (here, there) = ("/blobs/", "/elsewhere/");
        let to =
            if asked.path.contains(here) { asked.path.replace(here, there) } else { asked.path.replace(there, here) };
        (asked.path.contains(here) || asked.path.contains(there)).then(|| Reply::status(307).with("Location", &to))
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let error = pull(&open(root.path()), &registry.push("a", "1", &made)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(registry.log().len() < 20, "{:?}", registry.log());
}

/// The example program: proxies are settings of a process.
fn pull_with(env: &[(&str, &str)], store: &Path, reference: &str) -> std::process::Output {
    let exe = std::env::current_exe().unwrap();
    let program = exe.parent().and_then(Path::parent).unwrap().join("examples/pull");
    assert!(program.exists(), "{program:?} is missing: a run of all of this package's tests builds it");
    let mut command = Command::new(program);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    let host = reference.split('/').next().unwrap();
    command.arg(store).arg(reference).arg(host).envs(env.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_asked_where_the_environment_names_one_and_not_where_it_says_not_to() {
    let proxy = FakeRegistry::plain().await;
    proxy.push("app", "1", &Made::simple(b"by proxy"));
    let (root, url) = (tempfile::tempdir().unwrap(), format!("http://me:word@{}", proxy.address));
    // No such host: only the proxy can know it.
    let name = "registry.invalid/app:1";
    let run = |env: Vec<(&'static str, String)>, name: &'static str| {
        let root = root.path().to_owned();
        tokio::task::spawn_blocking(move || {
            let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, &**value)).collect();
            pull_with(&env, &root, name)
        })
    };
    let done = run(vec![("HTTP_PROXY", url.clone())], name).await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let seen = proxy.requests();
    assert!(!seen.is_empty() && seen.iter().all(|r| r.path.starts_with("http://registry.invalid/v2/")), "{seen:?}");
    let authorized = |r: &support::fake_registry::Request| {
        r.headers.get("proxy-authorization").map(String::as_str) == Some("Basic bWU6d29yZA==")
    };
    assert!(seen.iter().all(authorized), "{seen:?}");
    let done = run(vec![("HTTP_PROXY", url.clone()), ("NO_PROXY", "other.test,registry.invalid".to_owned())], name)
        .await
        .unwrap();
    assert!(!done.status.success());
    assert_eq!(proxy.requests().len(), seen.len(), "asked in spite of NO_PROXY");
    assert!(!String::from_utf8_lossy(&done.stderr).contains("word"), "the proxy's password is told");
}
