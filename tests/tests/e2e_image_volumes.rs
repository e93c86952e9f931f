//! Volumes that are images, on a real API server: what containers see of them, and what a pod is told when one cannot be had.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use anyhow::ensure;
use serde_json::{Value, json};
use tests::bed::{Bed, Case, phase, same, shell, terminated, waiting, walk};
use tests::registry::Fault;
use tests::stack::is_root;

#[test]
fn e2e_image_volumes_are_pulled_as_images_are_and_mounted_read_only() {
    if !is_root("e2e_image_volumes_are_pulled_as_images_are_and_mounted_read_only") {
        return;
    }
    let bed = Bed::up("image-volumes", &[]).unwrap();
    walk(&bed, CASES);
    bed.down().unwrap();
}

const CASES: &[Case] = &[
    ("what the image holds is there, read-only and not to be executed", |bed| {
        let (own, other) = (bed.registry.image("seen-own", &[])?, bed.registry.image("seen-volume", &[])?);
        // One stream: what a log has of two is in no promised order.
        let script = "exec 2>&1; head -n 1 /etc/image /v/etc/image /part/image /file | grep seen
            touch /v/new /part/new; /v/bin/busybox true; echo $?";
        let mounts = json!([
            {"name": "v", "mountPath": "/v"},
            {"name": "v", "mountPath": "/part", "subPath": "etc"},
            {"name": "v", "mountPath": "/file", "subPath": "etc/image"},
        ]);
        bed.pod("seen", pod(&own, script, &other, mounts))?;
        bed.until("seen", "it ended", |pod| terminated(pod).is_object())?;
        let log = bed.kubectl_says(&["logs", "seen"])?;
        ensure!(log.starts_with("seen-own\nseen-volume\nseen-volume\nseen-volume\n"), "{log}");
        ensure!(log.matches("Read-only file system").count() == 2 && log.ends_with("126\n"), "{log}");
        bed.until_event_says("seen", "Normal", "Pulling", &format!("Pulling image \"{other}\""))?;
        // For the pod, not for a container of it.
        let pulled = bed.until_event("seen", "Pulled", |text| text.contains(&other))?;
        same("field path", pulled.field_path.as_str(), "")?;
        // As it is here now, it is not pulled again.
        let asked = bed.registry.requests("seen-volume").len();
        bed.pod("again", pod(&own, "head -n 1 /v/etc/image", &other, json!([{"name": "v", "mountPath": "/v"}])))?;
        bed.until("again", "it succeeded", |pod| phase(pod) == "Succeeded")?;
        same("requests", bed.registry.requests("seen-volume").len(), asked)
    }),
    ("the container waits for an image that is not there, by its name", |bed| {
        let (own, other) = (bed.registry.image("late-own", &[])?, bed.registry.reference("late-volume"));
        bed.pod("late", pod(&own, "cat /v/etc/image | head -n 1", &other, json!([{"name": "v", "mountPath": "/v"}])))?;
        bed.until("late", "the pull failed", |pod| waiting(pod)["reason"] == "ErrImagePull")?;
        let backing_off = format!("Back-off pulling image \"{other}\"");
        bed.until("late", "it backs off", |pod| {
            let state = waiting(pod);
            state["reason"] == "ImagePullBackOff" && state["message"].to_string().contains("late-volume")
        })?;
        bed.until_event_says("late", "Normal", "BackOff", &backing_off)?;
        bed.registry.image("late-volume", &[])?;
        bed.until("late", "it succeeded", |pod| phase(pod) == "Succeeded")?;
        same("log", bed.kubectl_says(&["logs", "late"])?.as_str(), "late-volume\n")
    }),
    ("one that must not be pulled is not", |bed| {
        let (own, other) = (bed.registry.image("never-own", &[])?, bed.registry.image("never-volume", &[])?);
        let mut spec = pod(&own, "true", &other, json!([{"name": "v", "mountPath": "/v"}]));
        spec["volumes"][0]["image"]["pullPolicy"] = "Never".into();
        bed.pod("never", spec)?;
        bed.until("never", "it is told", |pod| waiting(pod)["reason"] == "ErrImageNeverPull")?;
        same("requests", bed.registry.requests("never-volume"), Vec::new())
    }),
    ("a private one is pulled with the pod's secret only", |bed| {
        let own = bed.registry.image("secret-own", &[])?;
        let other = bed.registry.image("secret-volume", &[Fault::Basic("ann", "secret")])?;
        let mounts = || json!([{"name": "v", "mountPath": "/v"}]);
        bed.pod("no-secret", pod(&own, "true", &other, mounts()))?;
        bed.until("no-secret", "it is refused", |pod| {
            waiting(pod)["reason"] == "ErrImagePull" && waiting(pod)["message"].to_string().contains("401")
        })?;
        let login = json!({"auths": {bed.registry.address().to_string(): {"username": "ann", "password": "secret"}}});
        bed.create(&json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
            "metadata": {"name": "volume"}, "stringData": {".dockerconfigjson": login.to_string()},
        }))?;
        let mut spec = pod(&own, "true", &other, mounts());
        spec["imagePullSecrets"] = json!([{"name": "volume"}]);
        bed.pod("secret", spec)?;
        bed.until("secret", "it succeeded", |pod| phase(pod) == "Succeeded").map(drop)
    }),
    ("a sub path that the image does not have is told", |bed| {
        let (own, other) = (bed.registry.image("absent-own", &[])?, bed.registry.image("absent-volume", &[])?);
        bed.pod("absent", pod(&own, "true", &other, json!([{"name": "v", "mountPath": "/v", "subPath": "none"}])))?;
        bed.until("absent", "it is told", |pod| {
            let state = waiting(pod);
            state["reason"] == "CreateContainerError" && state["message"].to_string().contains("sub path none")
        })
        .map(drop)
    }),
];

/// A pod of one container, run once, with the image `volume` as its volume `v`.
fn pod(image: &str, script: &str, volume: &str, mounts: Value) -> Value {
    let mut container = shell("main", image, script);
    container["volumeMounts"] = mounts;
    json!({
        "restartPolicy": "Never",
        "volumes": [{"name": "v", "image": {"reference": volume, "pullPolicy": "IfNotPresent"}}],
        "containers": [container],
    })
}
