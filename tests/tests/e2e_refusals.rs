//! What cannot run says why, as a kubelet says it, harms nobody, and runs by itself once the cause is gone: registries that
//! fail, pods that ask for what is not there, manifests that are none. A real API server, a registry that misbehaves by order.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::bed::{Bed, Case, phase, same, shell, terminated, waiting, walk};
use tests::registry::Fault;
use tests::stack::{self, is_root};

/// Prints the image's name, so that a success says which image ran.
const WHICH: &str = "head -n 1 /etc/image";

#[test]
fn e2e_what_cannot_run_says_why_harms_nobody_and_runs_once_it_can() {
    if !is_root("e2e_what_cannot_run_says_why_harms_nobody_and_runs_once_it_can") {
        return;
    }
    // A registry that says nothing is given up after 2 s instead of 60.
    let bed = Bed::up("refusals", &["--registry-timeout-seconds", "2", "--capacity-cpu", "4"]).unwrap();
    let ticker = bed.registry.image("ticker", &[]).unwrap();
    let ticks = shell("main", &ticker, "while :; do date +%s; sleep 1; done");
    bed.pod("neighbour", json!({"terminationGracePeriodSeconds": 0, "containers": [ticks]})).unwrap();
    bed.until("neighbour", "it runs", |pod| phase(pod) == "Running").unwrap();

    walk(&bed, &[REGISTRIES, PODS, MANIFESTS].concat());

    let neighbour = bed.until("neighbour", "it still runs", |pod| phase(pod) == "Running").unwrap();
    assert_eq!(neighbour["status"]["containerStatuses"][0]["restartCount"], 0, "the neighbour was harmed");
    the_neighbour_was_never_held_up(&bed);
    // Nothing half-made: what is written is in place or gone.
    let ingest = bed.stack.path("agent-state/images/ingest");
    stack::wait("the store has no unfinished file", || Ok(std::fs::read_dir(&ingest)?.next().is_none())).unwrap();
    bed.down().unwrap();
}

/// It printed the time each second.
fn the_neighbour_was_never_held_up(bed: &Bed) {
    let log = bed.kubectl_says(&["logs", "neighbour"]).unwrap();
    let times: Vec<i64> = log.lines().map(|line| line.parse().unwrap()).collect();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    // Some seconds may be those of a machine that has much else to do.
    assert!(longest <= 15, "the neighbour stood still for {longest} s");
}

const REGISTRIES: &[Case] = &[
    ("an unknown image is told and pulled once it exists", |bed| {
        let image = bed.registry.reference("unknown");
        bed.pod("unknown", once(&image))?;
        is_waited_for(bed, "unknown", &image, &["not found", "NAME_UNKNOWN"])?;
        bed.registry.image("unknown", &[])?;
        runs_by_itself(bed, "unknown", &image)
    }),
    ("an unknown tag is told", |bed| {
        let image = format!("{}:nosuch", bed.registry.image("untagged", &[])?.trim_end_matches(":1"));
        bed.pod("untagged", once(&image))?;
        is_waited_for(bed, "untagged", &image, &["not found", "MANIFEST_UNKNOWN"])
    }),
    ("another manifest than its digest says is refused", |bed| {
        breaks(bed, "other-manifest", Fault::OtherManifest, &["digest is sha256:", "not sha256:"])
    }),
    ("another layer than its digest says is refused", |bed| {
        breaks(bed, "other-layer", Fault::OtherLayer, &["layer sha256:", "digest is sha256:"])
    }),
    ("half a layer is no layer", |bed| breaks(bed, "half-layer", Fault::HalfLayer, &["layer sha256:"])),
    ("a registry that answers 403 is told", |bed| {
        breaks(bed, "forbidden", Fault::Status(403, "DENIED"), &["not authorized (status 403)", "DENIED"])
    }),
    ("a registry that asks to slow down is asked again later", |bed| {
        breaks(bed, "slow-down", Fault::SlowDown(60), &["too many requests", "TOOMANYREQUESTS"])?;
        // It was not asked again while it had asked for a minute's rest within one pull.
        let asked = bed.registry.requests("slow-down");
        ensure!(asked.len() < 12, "it was asked {} times: {asked:?}", asked.len());
        Ok(())
    }),
    ("a registry that answers 500 is asked again", |bed| {
        breaks(bed, "broken", Fault::Status(500, "UNKNOWN"), &["status 500", "UNKNOWN"])?;
        let asked = bed.registry.requests("broken").len();
        ensure!(asked > 5, "it was asked only {asked} times");
        Ok(())
    }),
    ("a registry that never answers is given up in time", |bed| {
        breaks(bed, "silent", Fault::Silence, &["no progress for 2s"])
    }),
    ("a registry that does not listen is told", |bed| {
        let door = bed.registry.closed_door()?;
        let image = format!("{}/behind-a-door:1", door.address);
        bed.pod("behind-a-door", once(&image))?;
        is_waited_for(bed, "behind-a-door", &image, &["could not talk to the registry", "Connection refused"])?;
        bed.registry.image("behind-a-door", &[])?;
        bed.registry.open(door)?;
        runs_by_itself(bed, "behind-a-door", &image)
    }),
    ("without credentials a private image is refused", |bed| {
        breaks(
            bed,
            "private",
            Fault::Basic("ann", "secret"),
            &["not authorized (status 401)", "authentication required"],
        )
    }),
    ("with the right pull secret a private image runs", |bed| {
        let image = bed.registry.image("basic", &[Fault::Basic("ann", "secret")])?;
        pull_secret(bed, "right-basic", "ann", "secret")?;
        bed.pod("basic", with_secret(once(&image), "right-basic"))?;
        runs_by_itself(bed, "basic", &image)
    }),
    ("with the right pull secret a token service gives its token", |bed| {
        let image = bed.registry.image("bearer", &[Fault::Bearer("bob", "word")])?;
        pull_secret(bed, "right-bearer", "bob", "word")?;
        bed.pod("bearer", with_secret(once(&image), "right-bearer"))?;
        runs_by_itself(bed, "bearer", &image)
    }),
    ("a wrong pull secret is told, and a corrected one is used", |bed| {
        let image = bed.registry.image("wrong", &[Fault::Bearer("bob", "word")])?;
        pull_secret(bed, "corrected", "bob", "wrong")?;
        bed.pod("wrong", with_secret(once(&image), "corrected"))?;
        is_waited_for(bed, "wrong", &image, &["not authorized (status 401)", "wrong name or password"])?;
        bed.kubectl_says(&["delete", "secret", "corrected"])?;
        pull_secret(bed, "corrected", "bob", "word")?;
        runs_by_itself(bed, "wrong", &image)
    }),
    ("a pull secret that is missing is told", |bed| {
        let image = bed.registry.image("no-secret", &[])?;
        bed.pod("no-secret", with_secret(once(&image), "nowhere"))?;
        let event = bed.until_event("no-secret", "FailedToRetrieveImagePullSecret", |text| text.contains("nowhere"))?;
        same("the Event's type", event.kind.as_str(), "Warning")?;
        runs_by_itself(bed, "no-secret", &image)
    }),
    ("an image name that is none is told, and a corrected one runs", |bed| {
        let image = "Upper/Case:1";
        bed.pod("no-name", once(image))?;
        let pod = bed.until("no-name", "it waits", |pod| waiting(pod)["reason"] == "InvalidImageName")?;
        let message = waiting(&pod)["message"].as_str().unwrap_or_default().to_owned();
        let begin = format!("Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": ");
        ensure!(message.starts_with(&begin), "{message}");
        bed.until_event_says("no-name", "Warning", "InspectFailed", &message)?;
        bed.until_event_says("no-name", "Warning", "Failed", "Error: InvalidImageName")?;
        // Its author corrects the name; the pod need not be made anew.
        let image = bed.registry.image("renamed", &[])?;
        bed.kubectl_says(&["set", "image", "pod/no-name", &format!("main={image}")])?;
        runs_by_itself(bed, "no-name", &image)
    }),
    ("an image that must not be pulled waits until another pod brings it", |bed| {
        let image = bed.registry.image("never", &[])?;
        let mut spec = once(&image);
        spec["containers"][0]["imagePullPolicy"] = "Never".into();
        bed.pod("never", spec)?;
        let pod = bed.until("never", "it waits", |pod| waiting(pod)["reason"] == "ErrImageNeverPull")?;
        let message = format!("Container image \"{image}\" is not present with pull policy of Never");
        same("the message", waiting(&pod)["message"].as_str(), Some(message.as_str()))?;
        bed.until_event_says("never", "Warning", "ErrImageNeverPull", &message)?;
        bed.until_event_says("never", "Warning", "Failed", "Error: ErrImageNeverPull")?;
        bed.pod("brings", once(&image))?;
        runs_by_itself(bed, "brings", &image)?;
        bed.until("never", "it runs", |pod| phase(pod) == "Succeeded").map(drop)
    }),
];

const PODS: &[Case] = &[
    ("a pod that no host has room for waits and runs when there is room", |bed| {
        let image = bed.registry.image("room", &[])?;
        let asks = |cpu: &str, script: &str| {
            let mut container = shell("main", &image, script);
            container["resources"] = json!({"requests": {"cpu": cpu}});
            json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]})
        };
        bed.pod("holder", asks("3", "sleep 1000"))?;
        bed.until("holder", "it runs", |pod| phase(pod) == "Running")?;
        bed.pod("too-big", asks("2", WHICH))?;
        let words = "0/1 hosts are available: 1 with insufficient cpu.";
        bed.until_event_says("too-big", "Warning", "FailedScheduling", words)?;
        let pod = bed.until("too-big", "it says why it waits", |pod| waiting(pod)["message"] == words)?;
        same("the phase", phase(&pod), "Pending")?;
        bed.delete("holder", None)?;
        runs_by_itself(bed, "too-big", &image)
    }),
    ("a pod that asks for more than the whole node has is refused as a kubelet refuses it", |bed| {
        let image = bed.registry.image("oversize", &[])?;
        let mut container = shell("main", &image, "true");
        container["resources"] = json!({"requests": {"cpu": "5"}});
        bed.pod("oversize", json!({"containers": [container]}))?;
        let pod = bed.until("oversize", "it is refused", |pod| phase(pod) == "Failed")?;
        same("the reason", pod["status"]["reason"].as_str(), Some("OutOfcpu"))?;
        let message = pod["status"]["message"].as_str().unwrap_or_default();
        let words = "Pod was rejected: Node didn't have enough resource: cpu, requested: 5000, used: ";
        ensure!(message.starts_with(words) && message.ends_with(", capacity: 4000"), "it says {message}");
        bed.until_event("oversize", "OutOfcpu", |text| text.starts_with(words)).map(drop)
    }),
    ("a command that does not exist is a StartError", |bed| {
        let image = bed.registry.image("no-command", &[])?;
        let container = json!({"name": "main", "image": image, "command": ["nosuchprogram", "-x"]});
        bed.pod("no-command", json!({"restartPolicy": "Never", "containers": [container]}))?;
        let pod = bed.until("no-command", "it has failed", |pod| phase(pod) == "Failed")?;
        same("the reason", &terminated(&pod)["reason"], &json!("StartError"))?;
        same("the exit code", &terminated(&pod)["exitCode"], &json!(128))?;
        let message = terminated(&pod)["message"].as_str().unwrap_or_default().to_owned();
        ensure!(message.contains("exec: \"nosuchprogram\": executable file not found in $PATH"), "{message}");
        bed.until_event_says("no-command", "Warning", "Failed", &format!("Error: {message}"))
    }),
    ("a program that may not be executed is a StartError", |bed| {
        let image = bed.registry.image("no-program", &[])?;
        let container = json!({"name": "main", "image": image, "command": ["/etc/image"]});
        bed.pod("no-program", json!({"restartPolicy": "Never", "containers": [container]}))?;
        let pod = bed.until("no-program", "it has failed", |pod| phase(pod) == "Failed")?;
        let end = terminated(&pod);
        same("the end", (&end["reason"], &end["exitCode"]), (&json!("StartError"), &json!(128)))?;
        let message = end["message"].as_str().unwrap_or_default();
        ensure!(message.contains("exec: \"/etc/image\": permission denied"), "{message}");
        Ok(())
    }),
    ("a missing ConfigMap is waited for", |bed| {
        let image = bed.registry.image("no-map", &[])?;
        let mut spec = once(&image);
        spec["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "later"}}]);
        bed.pod("no-map", spec)?;
        config_error(bed, "no-map", "configmap \"later\" not found")?;
        bed.create(&config_map("later", json!({"A": "1"})))?;
        runs_by_itself(bed, "no-map", &image)
    }),
    ("a missing key of a ConfigMap is waited for", |bed| {
        let image = bed.registry.image("no-key", &[])?;
        bed.create(&config_map("half", json!({"other": "1"})))?;
        let mut spec = once(&image);
        let from = json!({"configMapKeyRef": {"name": "half", "key": "wanted"}});
        spec["containers"][0]["env"] = json!([{"name": "W", "valueFrom": from}]);
        bed.pod("no-key", spec)?;
        config_error(bed, "no-key", &format!("couldn't find key wanted in ConfigMap {}/half", bed.namespace))?;
        bed.kubectl_says(&["patch", "configmap", "half", "-p", r#"{"data":{"wanted":"2"}}"#])?;
        runs_by_itself(bed, "no-key", &image)
    }),
    ("optional references may be missing", |bed| {
        let image = bed.registry.image("optional", &[])?;
        bed.create(&config_map("some", json!({"A": "1"})))?;
        let key = |kind: &str, name: &str, key: &str| json!({kind: {"name": name, "key": key, "optional": true}});
        let mut spec = once(&image);
        spec["containers"][0]["command"] =
            json!(["sh", "-c", "echo \"[$A$B${C-unset}${D-unset}]\"; ls /empty | wc -l"]);
        spec["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "nowhere", "optional": true}}]);
        spec["containers"][0]["env"] = json!([
            {"name": "A", "valueFrom": key("configMapKeyRef", "some", "A")},
            {"name": "B", "value": "2"},
            {"name": "C", "valueFrom": key("configMapKeyRef", "some", "nokey")},
            {"name": "D", "valueFrom": key("secretKeyRef", "nowhere", "x")},
        ]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/empty"}]);
        spec["volumes"] = json!([{"name": "v", "configMap": {"name": "nomap", "optional": true}}]);
        bed.pod("optional", spec)?;
        bed.until("optional", "it succeeds", |pod| phase(pod) == "Succeeded")?;
        same("what it prints", bed.kubectl_says(&["logs", "optional"])?.as_str(), "[12unsetunset]\n0\n")
    }),
    ("runAsNonRoot refuses an image that runs as root", |bed| {
        let image = bed.registry.image("as-root", &[])?;
        bed.pod("as-root", non_root(&image))?;
        runs_as_root(bed, "as-root", "container has runAsNonRoot and image will run as root")
    }),
    ("runAsNonRoot refuses an image whose user is a name", |bed| {
        let image = bed.registry.image_of("as-name", "nobody", &[])?;
        bed.pod("as-name", non_root(&image))?;
        let words =
            "container has runAsNonRoot and image has non-numeric user (nobody), cannot verify user is non-root";
        runs_as_root(bed, "as-name", words)
    }),
    ("runAsNonRoot runs an image whose user is a number", |bed| {
        let image = bed.registry.image_of("as-number", "1000", &[])?;
        bed.pod("as-number", non_root(&image))?;
        runs_by_itself(bed, "as-number", &image)
    }),
    ("host network is refused by name", |bed| {
        let image = bed.registry.image("host-network", &[])?;
        let mut spec = once(&image);
        spec["hostNetwork"] = true.into();
        bed.pod("host-network", spec)?;
        is_refused(bed, "host-network", "spec.hostNetwork")
    }),
    ("a persistent volume is refused by name", |bed| {
        let image = bed.registry.image("claim", &[])?;
        let mut spec = once(&image);
        spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        bed.pod("claim", spec)?;
        is_refused(bed, "claim", "spec.volumes[data].persistentVolumeClaim")
    }),
    ("a sandbox kind that no host has is told by name", |bed| {
        let image = bed.registry.image("microvm", &[])?;
        let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": {"name": "nodeless-vm"}, "handler": "nodeless-vm"});
        let _ = bed.create(&class);
        let mut spec = once(&image);
        spec["runtimeClassName"] = "nodeless-vm".into();
        bed.pod("microvm", spec)?;
        bed.until_event("microvm", "FailedScheduling", |text| text.contains("runtimeClassName"))?;
        let says = |pod: &Value| waiting(pod)["message"].as_str().is_some_and(|text| text.contains("runtimeClassName"));
        bed.until("microvm", "its status says so", says)?;
        bed.kubectl_says(&["delete", "runtimeclass", "nodeless-vm"]).map(drop)
    }),
    ("an over-eater is OOMKilled and its neighbour in the pod lives", |bed| {
        let image = bed.registry.image("eater", &[])?;
        let mut eater = shell("eater", &image, "sleep 1; tail /dev/zero");
        eater["resources"] = json!({"limits": {"memory": "24Mi"}});
        let mut lively = shell("lively", &image, "while :; do echo here; sleep 0.2; done");
        lively["resources"] = json!({"limits": {"memory": "24Mi"}});
        let containers = json!([eater, lively]);
        bed.pod(
            "eater",
            json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": containers}),
        )?;
        let pod = bed.until("eater", "the eater is dead", |pod| terminated(pod)["exitCode"].is_i64())?;
        same("the reason", &terminated(&pod)["reason"], &json!("OOMKilled"))?;
        same("the exit code", &terminated(&pod)["exitCode"], &json!(137))?;
        let seen = bed.kubectl_says(&["logs", "eater", "-c", "lively"])?.len();
        stack::wait(
            "its neighbour goes on",
            || Ok(bed.kubectl_says(&["logs", "eater", "-c", "lively"])?.len() > seen),
        )?;
        let pod = bed.until("eater", "it runs on", |pod| phase(pod) == "Running")?;
        ensure!(pod["status"]["containerStatuses"][1]["state"]["running"].is_object(), "{}", pod["status"]);
        Ok(())
    }),
];

const MANIFESTS: &[Case] = &[("bad manifests are named and good ones go on", |bed| {
    let image = bed.registry.image("manifests", &[])?;
    let pod = |name: &str| {
        let containers = json!([shell("main", &image, "sleep 1000")]);
        let spec = json!({"terminationGracePeriodSeconds": 0, "containers": containers});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    };
    let dir = bed.stack.path("manifests");
    let write = |file: &str, text: &str| -> Result<()> {
        // Whole at once, as an editor or a tool that cares would.
        let temporary = bed.stack.path(file);
        std::fs::write(&temporary, text)?;
        std::fs::rename(temporary, dir.join(file)).context("put a manifest")
    };
    bed.stack.put_manifest("good", &pod("good"))?;
    write("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: broken\n spec: [\n")?;
    write(
        "typo.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: typo}\nspec:\n  containers:\n  - {name: a, imagge: b}\n",
    )?;
    write(
        "wrong-type.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: wrong}\nspec:\n  containers:\n  - name: a\n    image: [b]\n",
    )?;
    write("service.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n")?;
    write("huge.yaml", &format!("# {}\n", "x".repeat(4 << 20)))?;
    bed.stack.put_manifest("second", &pod("good"))?;
    bed.stack.put_manifest("other", &pod("other"))?;
    // Pods of the cluster are listed too.
    let is_named = |pod: &Value, name: &str| pod["name"] == name && pod["namespace"] == "default";
    let runs = |name: &str| -> Result<bool> {
        let pods = bed.stack.client(&["ps"])?;
        Ok(stack::items(&pods).iter().any(|pod| is_named(pod, name) && pod["display"] == "Running"))
    };
    stack::wait("the good ones run", || Ok(runs("good")? && runs("other")?))?;
    // Each problem: which file, where in it, and what to do.
    let problems = [
        ("broken.yaml", "line 5", "not valid YAML"),
        ("typo.yaml", "spec.containers[0].imagge", "correct or remove it"),
        ("wrong-type.yaml", "line 7", "spec.containers[0].image"),
        ("service.yaml", "\"Service\"", "use a Pod, ConfigMap or Secret"),
        ("huge.yaml", "larger than 3 MiB", "make it smaller"),
        ("second.json", "good.json", "rename"),
    ];
    for (file, place, advice) in problems {
        let mut told = String::new();
        let found = stack::wait(&format!("{file} is told"), || {
            told = problem(bed, file)?;
            Ok(told.contains(place) && told.contains(advice))
        });
        found.with_context(|| format!("{file} is to be told with {place} and {advice}; told: {told}"))?;
    }
    // A corrected file becomes a pod; a removed one ends its pod, and the successor of a name takes its place.
    let corrected = pod("broken").to_string();
    write("broken.yaml", &corrected)?;
    stack::wait("the corrected one runs", || runs("broken"))?;
    bed.stack.remove_manifest("other")?;
    let has = |name: &str| -> Result<bool> {
        Ok(stack::items(&bed.stack.client(&["ps"])?).iter().any(|pod| is_named(pod, name)))
    };
    stack::wait("the pod of the removed file is gone", || Ok(!has("other")?))?;
    bed.stack.remove_manifest("good")?;
    stack::wait("the second file's pod runs", || Ok(problem(bed, "second.json")?.is_empty() && runs("good")?))?;
    for file in ["second.json", "broken.yaml", "typo.yaml", "wrong-type.yaml", "service.yaml", "huge.yaml"] {
        std::fs::remove_file(dir.join(file))?;
    }
    stack::wait("all pods of the directory are gone", || Ok(!has("good")? && !has("broken")?))
})];

/// What `nodeless ps` warns of a manifest.
fn problem(bed: &Bed, file: &str) -> Result<String> {
    let mut command = std::process::Command::new(&bed.stack.programs().client);
    let output = command.arg("--socket").arg(bed.stack.path("vk-run/vkubelet.sock")).arg("ps").output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find(|line| line.starts_with("warning: ") && line.contains(&format!("/{file}: ")));
    Ok(line.unwrap_or_default().to_owned())
}

/// A pod that runs once and prints its image's name.
fn once(image: &str) -> Value {
    json!({"restartPolicy": "Never", "containers": [shell("main", image, WHICH)]})
}

fn with_secret(mut spec: Value, name: &str) -> Value {
    spec["imagePullSecrets"] = json!([{"name": name}]);
    spec
}

fn non_root(image: &str) -> Value {
    let mut spec = once(image);
    spec["securityContext"] = json!({"runAsNonRoot": true});
    spec
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn pull_secret(bed: &Bed, name: &str, user: &str, password: &str) -> Result<()> {
    let server = format!("--docker-server={}", bed.registry.address());
    let (user, password) = (format!("--docker-username={user}"), format!("--docker-password={password}"));
    bed.kubectl_says(&["create", "secret", "docker-registry", name, &server, &user, &password]).map(drop)
}

/// A pod of a repository with this fault is told as a kubelet tells it, and runs when the fault is gone.
fn breaks(bed: &Bed, name: &str, fault: Fault, words: &[&str]) -> Result<()> {
    let image = bed.registry.image(name, &[fault])?;
    bed.pod(name, once(&image))?;
    is_waited_for(bed, name, &image, words)?;
    bed.registry.heal(name);
    runs_by_itself(bed, name, &image)
}

/// The kubelet's words for an image that cannot be had: first `ErrImagePull` with the cause, then `ImagePullBackOff` with the
/// same cause, and the Events of both.
fn is_waited_for(bed: &Bed, name: &str, image: &str, words: &[&str]) -> Result<()> {
    let pod = bed.until(name, "it backs off", |pod| waiting(pod)["reason"] == "ImagePullBackOff")?;
    let message = waiting(&pod)["message"].as_str().unwrap_or_default();
    let begin = format!("Back-off pulling image \"{image}\": ErrImagePull: ");
    let cause = message.strip_prefix(&begin).with_context(|| format!("{message:?} does not begin with {begin:?}"))?;
    for word in words.iter().chain([&image]) {
        ensure!(cause.contains(word), "{cause:?} does not name {word:?}");
    }
    same("the phase", phase(&pod), "Pending")?;
    let told = |version: &Value| waiting(version)["reason"] == "ErrImagePull" && waiting(version)["message"] == cause;
    ensure!(bed.versions(name).iter().any(told), "it never said ErrImagePull with that cause");
    bed.until_event_says(name, "Normal", "Pulling", &format!("Pulling image \"{image}\""))?;
    bed.until_event_says(name, "Warning", "Failed", &format!("Failed to pull image \"{image}\": {cause}"))?;
    bed.until_event_says(name, "Warning", "Failed", "Error: ErrImagePull")?;
    bed.until_event_says(name, "Normal", "BackOff", &format!("Back-off pulling image \"{image}\""))?;
    bed.until_event_says(name, "Warning", "Failed", "Error: ImagePullBackOff")
}

/// The pod succeeds without anybody's help, and it was this image.
fn runs_by_itself(bed: &Bed, name: &str, image: &str) -> Result<()> {
    let pod = bed.until(name, "it succeeds", |pod| phase(pod) == "Succeeded")?;
    same("the restart count", &pod["status"]["containerStatuses"][0]["restartCount"], &json!(0))?;
    same("the image", pod["status"]["containerStatuses"][0]["image"].as_str(), Some(image))?;
    let repository = image.rsplit_once('/').and_then(|(_, rest)| rest.split(':').next()).unwrap_or_default();
    same("what it prints", bed.kubectl_says(&["logs", name])?.as_str(), format!("{repository}\n").as_str())
}

fn config_error(bed: &Bed, name: &str, words: &str) -> Result<()> {
    let pod = bed.until(name, "it waits", |pod| waiting(pod)["reason"] == "CreateContainerConfigError")?;
    let message = waiting(&pod)["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with(words), "{message:?} does not begin with {words:?}");
    let words = words.to_owned();
    bed.until_event(name, "MandatoryConfigMapNotFound", |text| text.starts_with(&words)).map(drop)
}

fn runs_as_root(bed: &Bed, name: &str, words: &str) -> Result<()> {
    let pod = bed.until(name, "it waits", |pod| waiting(pod)["reason"] == "CreateContainerConfigError")?;
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let message = format!("{words} (pod: \"{name}_{}({uid})\", container: main)", bed.namespace);
    same("the message", waiting(&pod)["message"].as_str(), Some(message.as_str()))?;
    bed.until_event_says(name, "Warning", "Failed", &format!("Error: {message}"))?;
    // It stays so, and is not restarted: the pod itself would have to change.
    let later = bed.until_within(Duration::from_secs(1), name, "it waits", |_| true)?;
    same("the restart count", &later["status"]["containerStatuses"][0]["restartCount"], &json!(0))
}

fn is_refused(bed: &Bed, name: &str, field: &str) -> Result<()> {
    let pod = bed.until(name, "it is refused", |pod| phase(pod) == "Failed")?;
    same("the reason", pod["status"]["reason"].as_str(), Some("UnsupportedPodField"))?;
    let message = pod["status"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains(field), "{message:?} does not name {field}");
    let message = message.to_owned();
    let event = bed.until_event(name, "UnsupportedPodField", |text| message.contains(text))?;
    ensure!(event.kind == "Warning" && event.message.contains(field), "{event}");
    Ok(())
}
