//! Images as volumes: layers merged, read-only, parts of them, and nothing of the host through their links.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;

use sandbox::contract::{SandboxError, Sandboxes as _};
use sandbox::spec::{Layer, Mount};
use support::{Host, image};

fn layer(name: &str, fill: impl FnOnce(&Path)) -> Layer {
    Layer { id: format!("sha256:{name}"), path: image::layer_of(name, fill) }
}

fn volume(layers: &[Layer], sub_path: &str, destination: &str) -> Mount {
    Mount {
        source: "".into(),
        sub_path: sub_path.into(),
        destination: destination.into(),
        read_only: true,
        no_exec: true,
        idmap: true,
        exclusive: false,
        layers: layers.to_vec(),
    }
}

/// `test` keeps the files of tests that run at once apart.
fn lower(test: &str) -> Layer {
    layer(&format!("{test}-lower"), |root| {
        std::fs::create_dir_all(root.join("models/tiny")).unwrap();
        std::fs::write(root.join("models/tiny/weights"), "old\n").unwrap();
        std::fs::write(root.join("models/readme"), "lower\n").unwrap();
        symlink("/models/tiny", root.join("current")).unwrap();
        symlink("../../../../../../etc", root.join("out")).unwrap();
        std::fs::copy("/bin/busybox", root.join("program")).unwrap();
    })
}

fn upper(test: &str) -> Layer {
    layer(&format!("{test}-upper"), |root| {
        std::fs::create_dir_all(root.join("models/tiny")).unwrap();
        std::fs::write(root.join("models/tiny/weights"), "new\n").unwrap();
    })
}

/// What the layers say together is seen, owned as the image says, and cannot be changed or executed.
#[tokio::test]
async fn privileged_an_image_volume_is_its_layers_merged_and_read_only() {
    privileged!("privileged_an_image_volume_is_its_layers_merged_and_read_only");
    let host = Host::new().await;
    let id = host.sandbox("image-volume").await;
    let (lower, upper) = (lower("merged"), upper("merged"));
    let script = "cat /v/models/tiny/weights /v/models/readme /tiny/weights /w /one/models/tiny/weights
        stat -c '%u %g' /v/models
        echo x > /v/new; echo x > /v/models/readme; mkdir /one/d
        /v/program true; echo program $?
        mount -o remount,rw,exec /v; echo remount $?";
    let mut spec = host.shell("c", script);
    spec.mounts = vec![
        volume(&[lower.clone(), upper.clone()], "", "/v"),
        volume(&[lower.clone(), upper.clone()], "current", "/tiny"),
        volume(&[lower.clone(), upper], "models/tiny/weights", "/w"),
        volume(&[lower], "", "/one"),
    ];
    host.run(&id, &spec).await;
    let log = host.log(&id, "c", 0);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..6], ["new", "lower", "new", "new", "old", "0 0"], "{log}");
    assert_eq!(log.matches("Read-only file system").count(), 3, "{log}");
    assert!(log.contains("program 126") && !log.contains("remount 0"), "{log}");
    // The container runs anew: nothing was left that stands in its way.
    spec.attempt = 1;
    host.run(&id, &spec).await;
    assert!(host.log(&id, "c", 1).starts_with("new\nlower\n"));
    host.sandboxes().destroy(&id).await.unwrap();
}

/// Two images beside an ordinary volume keep their places among the descriptors, and one may lie in the other.
#[tokio::test]
async fn privileged_image_volumes_and_others_are_mounted_in_their_order() {
    privileged!("privileged_image_volumes_and_others_are_mounted_in_their_order");
    let host = Host::new().await;
    let id = host.sandbox("image-volumes").await;
    let data = host.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("own"), "own\n").unwrap();
    let mut spec = host.shell("c", "cat /a/own /b/readme /b/tiny/weights && echo y > /a/more && cat /a/more");
    let (lower, upper) = (lower("order"), upper("order"));
    spec.mounts = vec![
        volume(&[lower.clone(), upper.clone()], "models", "/b"),
        Mount { source: data, layers: Vec::new(), read_only: false, no_exec: false, ..volume(&[], "", "/a") },
        volume(&[upper], "models/tiny", "/b/tiny"),
    ];
    let exit = host.run(&id, &spec).await;
    assert_eq!((exit.code, host.log(&id, "c", 0).as_str()), (0, "own\nlower\nnew\ny"));
    host.sandboxes().destroy(&id).await.unwrap();
}

/// A sub path stays in the image, and nothing is made for one that is missing.
#[tokio::test]
async fn privileged_a_sub_path_that_an_image_does_not_have_is_refused() {
    privileged!("privileged_a_sub_path_that_an_image_does_not_have_is_refused");
    let host = Host::new().await;
    let id = host.sandbox("image-sub-path").await;
    let (lower, upper) = (lower("absent"), upper("absent"));
    for sub_path in ["none", "models/readme/x", "out/passwd", "../../../../etc/passwd"] {
        for layers in [&[lower.clone()][..], &[lower.clone(), upper.clone()]] {
            let mut spec = host.shell("c", "true");
            spec.mounts = vec![volume(layers, sub_path, "/v")];
            let error = host.sandboxes().start(&id, &spec).await.unwrap_err();
            assert!(matches!(&error, SandboxError::Invalid { .. }), "{sub_path}: {error:?}");
            assert!(error.to_string().contains("does not exist"), "{error}");
        }
    }
    host.sandboxes().destroy(&id).await.unwrap();
}
