//! `ImageSnapshot` on a real cluster with two hosts: images are there before any pod asks, and kept there.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::bed::{Bed, phase, shell, terminated, waiting};
use tests::dev::{Dev, until};
use tests::registry::Fault;
use tests::stack::is_root;

fn snapshot(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "nodeless.dev/v1alpha1", "kind": "ImageSnapshot", "metadata": {"name": name}, "spec": spec})
}

fn deployment(image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 4,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "main", "image": image, "command": ["sleep", "1000"]}],
                },
            },
        },
    })
}

fn get(dev: &Dev, name: &str) -> Result<Value> {
    let text = dev.kubectl(&["get", "imagesnapshot", name, "-o", "json"])?;
    serde_json::from_str(&text).context("kubectl's JSON")
}

/// Waits until an object's phase is this; the object.
fn until_phase(dev: &Dev, name: &str, phase: &str) -> Value {
    let look = || {
        let object = get(dev, name)?;
        let status = &object["status"];
        let current = status["observedGeneration"] == object["metadata"]["generation"];
        ensure!(current && status["phase"] == phase, "{status:#}");
        Ok(object)
    };
    until(&format!("{name} is {phase}"), look).unwrap()
}

/// The hosts that have an image of this repository.
fn hosts_with(dev: &Dev, repository: &str) -> Result<Vec<String>> {
    let list = dev.client(&["images"])?;
    let items = list.as_array().context("a list")?;
    let has = |item: &&Value| item["references"].to_string().contains(repository);
    let mut hosts: Vec<String> =
        items.iter().filter(has).filter_map(|item| item["host"].as_str().map(str::to_owned)).collect();
    hosts.sort();
    Ok(hosts)
}

fn events(dev: &Dev, kind: &str, field: &str) -> Result<String> {
    let selector = format!("involvedObject.kind={kind}");
    let path = format!("jsonpath={{range .items[*]}}{{{field}}}{{\"\\n\"}}{{end}}");
    dev.kubectl(&["get", "events", "--namespace", "default", "--field-selector", &selector, "-o", &path])
}

fn what_is_kept_ready_goes_by_nobodys_hand(dev: &Dev, image: &str) {
    let refused = dev.client_text(&["images", "rm", image]).unwrap_err().to_string();
    assert_eq!(refused.matches("is kept ready by an ImageSnapshot: delete that").count(), 2, "{refused}");
    dev.client_text(&["images", "gc", "--unused-for", "0"]).unwrap();
    let listed = dev.client_text(&["images", "ls"]).unwrap();
    let rows: Vec<&str> = listed.lines().filter(|line| line.contains(image)).collect();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.ends_with("   pinned")), "{listed}");
    let verified = dev.client_text(&["images", "verify"]).unwrap();
    let sound = verified.trim().strip_suffix(" layers are sound").and_then(|text| text.split_once(" of "));
    assert!(sound.is_some_and(|(sound, all)| sound == all && sound != "0"), "{verified}");
}

#[test]
fn e2e_an_image_snapshot_is_ready_on_both_hosts_and_pods_of_it_start_with_no_registry() {
    if !is_root("e2e_an_image_snapshot_is_ready_on_both_hosts_and_pods_of_it_start_with_no_registry") {
        return;
    }
    let dev = Dev::up("snap", 2).unwrap();
    let image = dev.busybox("test/web:1", 3).unwrap();
    let other = dev.busybox("test/other:1", 1).unwrap();

    // What is no such object is refused by the API server.
    for bad in [json!({"images": []}), json!({"images": ["a"], "replicas": "some"}), json!({"images": ["a", "a"]})] {
        assert!(dev.apply(&snapshot("bad", &bad)).is_err(), "{bad} was taken");
    }

    dev.apply(&snapshot("web", &json!({"images": [image, other], "retention": {"whenDone": "Remove"}}))).unwrap();
    dev.kubectl(&["wait", "--for=condition=Ready", "imagesnapshot/web", "--timeout=120s"]).unwrap();
    let object = until_phase(&dev, "web", "Ready");
    let status = &object["status"];
    assert_eq!(status["ready"], "2/2", "{status:#}");
    assert_eq!(status["hosts"].as_array().unwrap().len(), 2, "{status:#}");
    assert!(status["images"][0]["digests"][0].as_str().unwrap().starts_with("sha256:"), "{status:#}");
    assert_eq!(status["images"][0]["layers"], 3, "{status:#}");
    assert!(status["sizeBytes"].as_i64().unwrap() > 500_000, "{status:#}");
    let printed = dev.kubectl(&["get", "imagesnapshots"]).unwrap();
    let (head, row) = printed.split_once('\n').unwrap();
    assert_eq!(head.split_whitespace().collect::<Vec<_>>(), ["NAME", "PHASE", "HOSTS", "SIZE", "IMAGES", "AGE"]);
    let row: Vec<&str> = row.split_whitespace().collect();
    let images = json!([image, other]).to_string();
    assert_eq!((row.len(), &row[..3], row[4]), (6, &["web", "Ready", "2/2"][..], &*images), "{printed}");
    assert!(row[3].ends_with("Mi") && row[5].ends_with('s'), "{printed}");
    let wide = dev.kubectl(&["get", "imagesnapshots", "-o", "wide"]).unwrap();
    assert!(wide.lines().next().unwrap().ends_with("MESSAGE"), "{wide}");
    what_is_kept_ready_goes_by_nobodys_hand(&dev, &image);
    until("both hosts are told in Events", || {
        let told = events(&dev, "ImageSnapshot", ".reason")?;
        let count = told.lines().filter(|reason| *reason == "HostReady").count();
        // A host that was away for a moment is told again.
        ensure!(count >= 2 && told.lines().any(|reason| reason == "Ready"), "{told}");
        Ok(())
    })
    .unwrap();

    // One host, by its name; then one that there is not, which is told and mended.
    let one = hosts_with(&dev, "test/web").unwrap()[0].clone();
    let third = dev.busybox("test/third:1", 1).unwrap();
    let selected = json!({"images": [third], "hostSelector": {"matchLabels": {"nodeless.dev/host": one}}});
    dev.apply(&snapshot("one", &selected)).unwrap();
    assert_eq!(until_phase(&dev, "one", "Ready")["status"]["ready"], "1/1");
    assert_eq!(hosts_with(&dev, "test/third").unwrap(), [one]);
    dev.apply(&snapshot("few", &json!({"images": [format!("{third}-is-not-there")], "replicas": 1}))).unwrap();
    let failing = until_phase(&dev, "few", "Failing");
    assert!(failing["status"]["message"].as_str().unwrap().contains("ErrImagePull"), "{failing:#}");
    dev.apply(&snapshot("few", &json!({"images": [third], "replicas": 1}))).unwrap();
    assert_eq!(until_phase(&dev, "few", "Ready")["status"]["ready"], "1/1");

    // Without a registry pods of it start on both hosts.
    dev.end_registry().unwrap();
    dev.apply(&deployment(&image)).unwrap();
    dev.kubectl(&["wait", "--for=condition=Available", "deployment/web", "--timeout=120s"]).unwrap();
    let told = events(&dev, "Pod", ".reason").unwrap();
    assert!(!told.lines().any(|reason| reason == "Pulling" || reason == "Failed"), "{told}");
    let present = format!("Container image \"{image}\" already present on machine");
    until("each pod is told that its image is there", || {
        let told = events(&dev, "Pod", ".message")?;
        ensure!(told.lines().filter(|message| message.starts_with(&present)).count() == 4, "{told}");
        Ok(())
    })
    .unwrap();

    // Deleted, it is removed as soon as no pod uses it.
    dev.kubectl(&["delete", "imagesnapshot", "web"]).unwrap();
    dev.kubectl(&["delete", "deployment", "web", "--wait=true"]).unwrap();
    until("the images are gone", || {
        let left = [hosts_with(&dev, "test/web")?, hosts_with(&dev, "test/other")?].concat();
        ensure!(left.is_empty(), "on {left:?}");
        Ok(())
    })
    .unwrap();
    assert!(!hosts_with(&dev, "test/third").unwrap().is_empty(), "what others name stays");
}

/// The layers that a registry was asked for.
fn layers_asked(bed: &Bed, repository: &str) -> usize {
    bed.registry.requests(repository).iter().filter(|r| r.starts_with("GET") && r.contains("/blobs/")).count()
}

#[test]
fn e2e_a_private_image_that_is_ready_is_only_for_pods_with_the_right_to_pull_it() {
    if !is_root("e2e_a_private_image_that_is_ready_is_only_for_pods_with_the_right_to_pull_it") {
        return;
    }
    let bed = Bed::up("private", &[]).unwrap();
    let manifests = bed.stack.vkubelet_manifests("test-node").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let apply_in = |namespace: &str, text: &str| {
        let path = scratch.path().join("objects.yaml");
        std::fs::write(&path, text).unwrap();
        bed.kubectl_says(&["--namespace", namespace, "apply", "-f", path.to_str().unwrap()])
    };
    let apply = |text: &str| apply_in(&bed.namespace, text);
    apply_in("nodeless-system", &manifests).unwrap();
    let image = bed.registry.image("private", &[Fault::Basic("ann", "secret")]).unwrap();
    let server = format!("--docker-server={}", bed.registry.address());
    let secret = |namespace: &str, name: &str, password: &str| {
        let password = format!("--docker-password={password}");
        let make = ["--namespace", namespace, "create", "secret", "docker-registry", name, &server];
        bed.kubectl_says(&[&make[..], &["--docker-username=ann", &password]].concat()).unwrap();
    };
    let name = format!("private-{}", std::process::id());
    secret("nodeless-system", &name, "secret");
    let spec = json!({"images": [image], "imagePullSecrets": [{"name": name}]});
    apply(&snapshot(&name, &spec).to_string()).unwrap();
    bed.kubectl_says(&["wait", "--for=condition=Ready", &format!("imagesnapshot/{name}"), "--timeout=90s"]).unwrap();
    let fetched = layers_asked(&bed, "private");
    assert!(fetched > 0);

    let once = |pull_secret: Option<&str>, account: Option<&str>| {
        let mut spec = json!({"restartPolicy": "Never", "containers": [shell("main", &image, "exit 0")]});
        if let Some(secret) = pull_secret {
            spec["imagePullSecrets"] = json!([{"name": secret}]);
        }
        if let Some(account) = account {
            spec["serviceAccountName"] = account.into();
        }
        spec
    };
    let namespace = bed.namespace.clone();
    secret(&namespace, "right", "secret");
    secret(&namespace, "wrong", "guess");
    bed.pod("stranger", once(None, None)).unwrap();
    bed.pod("guesser", once(Some("wrong"), None)).unwrap();
    for pod in ["stranger", "guesser"] {
        let refused = |pod: &Value| {
            let reason = waiting(pod)["reason"].as_str().unwrap_or_default();
            reason == "ErrImagePull" || reason == "ImagePullBackOff"
        };
        bed.until(pod, "it has no right to the image", refused).unwrap();
    }
    bed.pod("owner", once(Some("right"), None)).unwrap();
    bed.until("owner", "it ran", |pod| phase(pod) == "Succeeded").unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "puller", "namespace": namespace},
        "imagePullSecrets": [{"name": "right"}]});
    apply(&account.to_string()).unwrap();
    bed.pod("account", once(None, Some("puller"))).unwrap();
    bed.until("account", "it ran", |pod| phase(pod) == "Succeeded").unwrap();
    for pod in ["stranger", "guesser"] {
        let ran = bed.versions(pod).iter().any(|pod| !terminated(pod).is_null() || phase(pod) == "Running");
        assert!(!ran, "{pod} ran");
    }
    assert_eq!(layers_asked(&bed, "private"), fetched, "nothing is fetched again for those who may");
    bed.kubectl_says(&["delete", "imagesnapshot", &name]).unwrap();
    bed.kubectl_says(&["--namespace", "nodeless-system", "delete", "secret", &name]).unwrap();
    bed.down().unwrap();
}
