//! Limits as a pod's author sees them through a real API server: what is kept on disk, resources changed in place, and the
//! bill of both.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::bed::{Bed, Case, GO, phase, same, shell, terminated, walk};
use tests::stack::{self, is_root};

const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn e2e_limits_are_kept_told_and_billed_as_a_kubelet_keeps_and_tells_them() {
    if !is_root("e2e_limits_are_kept_told_and_billed_as_a_kubelet_keeps_and_tells_them") {
        return;
    }
    let bed = Bed::up("limits", &["--capacity-cpu", "4"]).unwrap();
    walk(&bed, &[DISK, RESIZE].concat());
    bed.down().unwrap();
}

/// A container that writes so many MiB to a file and then waits.
fn writer(image: &str, path: &str, mib: u32) -> Value {
    shell("main", image, &format!("dd if=/dev/zero of={path} bs=1M count={mib} 2>/dev/null; sleep 1000"))
}

fn is_evicted(bed: &Bed, pod: &str, message: &str) -> Result<()> {
    let end = bed.until_within(PATIENCE, pod, "it is evicted", |pod| phase(pod) == "Failed")?;
    same("the reason", end["status"]["reason"].as_str(), Some("Evicted"))?;
    same("the message", end["status"]["message"].as_str(), Some(message))?;
    let code = terminated(&end)["exitCode"].as_i64().context("no exit code")?;
    ensure!([137, 143].contains(&code), "it ended with {code}");
    let conditions = end["status"]["conditions"].as_array().cloned().unwrap_or_default();
    ensure!(!conditions.iter().any(|c| c["type"] == "DisruptionTarget"), "a limit of its own is no disruption");
    bed.until_event_says(pod, "Warning", "Evicted", message)?;
    let uid = end["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    bill_is_final(bed, &uid)
}

fn bill_is_final(bed: &Bed, uid: &str) -> Result<()> {
    stack::wait("the bill is final", || {
        Ok(bed.stack.billing(&format!("/v1/pods/{uid}")).is_ok_and(|bill| bill["state"] == "final"))
    })
}

const DISK: &[Case] = &[
    ("An emptyDir above its sizeLimit ends the pod", |bed| {
        let image = bed.registry.image("empty-dir", &[])?;
        let mut main = writer(&image, "/data/x", 20);
        main["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        let volume = json!({"name": "data", "emptyDir": {"sizeLimit": "10Mi"}});
        bed.pod("empty-dir", json!({"containers": [main], "volumes": [volume]}))?;
        is_evicted(bed, "empty-dir", "Usage of EmptyDir volume \"data\" exceeds the limit \"10Mi\". ")
    }),
    ("A container's own changes above the pod's limit end the pod", |bed| {
        let image = bed.registry.image("own-changes", &[])?;
        // Which the disk does not let it write: it ends long before.
        let script = "dd if=/dev/zero of=/x bs=1M count=100 2>/dev/null || echo full; sleep 1000";
        let mut main = shell("main", &image, script);
        main["resources"] = json!({"limits": {"ephemeral-storage": "10Mi"}});
        bed.pod("own-changes", json!({"containers": [main]}))?;
        let message = "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ";
        is_evicted(bed, "own-changes", message)?;
        bed.until_logs(&["own-changes"], "full\n")
    }),
    ("One container above its own limit ends the pod", |bed| {
        let image = bed.registry.image("one-of-two", &[])?;
        let mut main = writer(&image, "/x", 20);
        main["resources"] = json!({"limits": {"ephemeral-storage": "10Mi"}});
        let mut other = shell("other", &image, "sleep 1000");
        other["resources"] = json!({"limits": {"ephemeral-storage": "100Mi"}});
        bed.pod("one-of-two", json!({"containers": [main, other]}))?;
        is_evicted(bed, "one-of-two", "Container main exceeded its local ephemeral storage limit \"10Mi\". ")
    }),
];

fn sized(mut container: Value, cpu: &str, memory: &str) -> Value {
    container["resources"] =
        json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}});
    container
}

fn resize(bed: &Bed, pod: &str, cpu: &str, memory: &str) -> Result<()> {
    let amounts = json!({"cpu": cpu, "memory": memory});
    let resources = json!({"requests": amounts, "limits": amounts});
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}});
    bed.kubectl_says(&["patch", "pod", pod, "--subresource", "resize", "--patch", &patch.to_string()]).map(drop)
}

fn condition(pod: &Value, name: &str) -> Option<Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == name).cloned()
}

fn has(pod: &Value, cpu: &str) -> bool {
    let container = &pod["status"]["containerStatuses"][0];
    container["resources"]["limits"]["cpu"] == cpu
        && container["allocatedResources"]["cpu"] == cpu
        && condition(pod, "PodResizeInProgress").is_none()
}

/// Tells the container's CPU quota, as it sees it itself, on either kind of host, whenever it has changed.
const QUOTA: &str = "trap 'exit 0' TERM; while :; do now=$(cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || \
                     cut -d' ' -f1 /sys/fs/cgroup/cpu.max); [ \"$now\" = \"$old\" ] || echo \"$now\"; old=$now; sleep 0.1; done";

fn says(bed: &Bed, pod: &str, text: &str) -> Result<()> {
    stack::wait("the container sees its quota", || Ok(bed.kubectl_says(&["logs", pod])? == text))
}

const RESIZE: &[Case] = &[
    ("A resize reaches the running container and the bill, without a restart", |bed| {
        let image = bed.registry.image("resized", &[])?;
        let main = sized(shell("main", &image, QUOTA), "100m", "64Mi");
        bed.pod("resized", json!({"terminationGracePeriodSeconds": 0, "containers": [main]}))?;
        let pod = bed.until("resized", "it runs", |pod| phase(pod) == "Running" && has(pod, "100m"))?;
        let uid = pod["metadata"]["uid"].as_str().context("no uid")?.to_owned();
        says(bed, "resized", "10000\n")?;
        resize(bed, "resized", "200m", "128Mi")?;
        let pod = bed.until("resized", "it is resized", |pod| has(pod, "200m"))?;
        same("the restart count", &pod["status"]["containerStatuses"][0]["restartCount"], &json!(0))?;
        says(bed, "resized", "10000\n20000\n")?;
        bed.until_event("resized", "ResizeStarted", |text| text.starts_with("Pod resize started: {\"containers\":["))?;
        bed.until_event("resized", "ResizeCompleted", |text| text.contains("\"cpu\":\"200m\""))?;
        bed.delete("resized", Some(0))?;
        bed.until_gone("resized")?;
        bill_is_final(bed, &uid)?;
        let bill = bed.stack.billing(&format!("/v1/pods/{uid}"))?;
        let segments = bill["segments"].as_array().cloned().unwrap_or_default();
        same("the number of segments", segments.len(), 2)?;
        same("the seam", &segments[0]["end_ns"], &segments[1]["start_ns"])?;
        same("the most that was held", &bill["held"]["milli_cpu"], &json!(200))?;
        let length = |s: &Value| s["end_ns"].as_u64().unwrap_or(0) - s["start_ns"].as_u64().unwrap_or(0);
        same("how long it was held", &bill["duration_ns"], &json!(length(&segments[0]) + length(&segments[1])))
    }),
    ("A resize without room waits, says why, and is made when there is room", |bed| {
        let image = bed.registry.image("waits", &[])?;
        let main = sized(shell("main", &image, "sleep 1000"), "100m", "64Mi");
        bed.pod("waits", json!({"terminationGracePeriodSeconds": 0, "containers": [main]}))?;
        bed.until("waits", "it runs", |pod| phase(pod) == "Running")?;
        let other = sized(shell("main", &image, "sleep 1000"), "2500m", "64Mi");
        bed.pod("takes", json!({"terminationGracePeriodSeconds": 0, "containers": [other]}))?;
        bed.until("takes", "it runs", |pod| phase(pod) == "Running")?;
        resize(bed, "waits", "2", "64Mi")?;
        let pod = bed.until("waits", "it waits", |pod| condition(pod, "PodResizePending").is_some())?;
        let pending = condition(&pod, "PodResizePending").context("no condition")?;
        same("the reason", pending["reason"].as_str(), Some("Deferred"))?;
        let message = pending["message"].as_str().unwrap_or_default().to_owned();
        let wanted = "Node didn't have enough resource: cpu, requested: 2000, used: ";
        ensure!(message.starts_with(wanted) && message.ends_with(", capacity: 4000"), "it says {message}");
        bed.until_event("waits", "ResizeDeferred", |text| text.starts_with("Pod resize Deferred: {"))?;
        bed.delete("takes", Some(0))?;
        let pod = bed.until("waits", "it is resized", |pod| has(pod, "2"))?;
        ensure!(condition(&pod, "PodResizePending").is_none(), "it still waits");
        Ok(())
    }),
    ("A resize beyond the node is refused, and another is made", |bed| {
        let image = bed.registry.image("infeasible", &[])?;
        let main = sized(shell("main", &image, "sleep 1000"), "100m", "64Mi");
        bed.pod("infeasible", json!({"terminationGracePeriodSeconds": 0, "containers": [main]}))?;
        bed.until("infeasible", "it runs", |pod| phase(pod) == "Running")?;
        // By the API server itself, of what the node says that it has.
        let refused = resize(bed, "infeasible", "5", "64Mi").err().context("it was taken")?.to_string();
        let words = "node didn't have enough allocatable resources: cpu, requested: 5000, allocatable: 4000";
        ensure!(refused.contains(words), "{refused}");
        resize(bed, "infeasible", "200m", "64Mi")?;
        let pod = bed.until("infeasible", "another is made", |pod| has(pod, "200m"))?;
        ensure!(condition(&pod, "PodResizePending").is_none(), "it still waits");
        Ok(())
    }),
    ("A resize whose policy asks for it starts the container again, once", |bed| {
        let image = bed.registry.image("again", &[])?;
        let mut main = sized(shell("main", &image, QUOTA), "100m", "64Mi");
        main["resizePolicy"] = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
        bed.pod("again", json!({"terminationGracePeriodSeconds": 5, "containers": [main]}))?;
        bed.until("again", "it runs", |pod| phase(pod) == "Running")?;
        resize(bed, "again", "200m", "64Mi")?;
        let pod = bed.until("again", "it runs again", |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1 && has(pod, "200m")
        })?;
        ensure!(pod["status"]["containerStatuses"][0]["ready"] == true, "it is not ready");
        says(bed, "again", "20000\n")?;
        bed.until_event_says("again", "Normal", "Killing", "Container main resize requires restart")
    }),
    ("Memory below what is used is refused until it is free, and nothing is killed", |bed| {
        let image = bed.registry.image("below", &[])?;
        let script = format!(
            "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null; echo ready; \
             until [ -e {GO} ]; do sleep 0.1; done; rm /dev/shm/x; sleep 1000"
        );
        let main = sized(shell("main", &image, &script), "100m", "128Mi");
        bed.pod("below", json!({"terminationGracePeriodSeconds": 0, "containers": [main]}))?;
        bed.until("below", "it runs", |pod| phase(pod) == "Running")?;
        bed.until_logs(&["below"], "ready\n")?;
        resize(bed, "below", "100m", "32Mi")?;
        let pod = bed.until("below", "it says why not", |pod| {
            condition(pod, "PodResizeInProgress").is_some_and(|c| c["reason"] == "Error")
        })?;
        let progress = condition(&pod, "PodResizeInProgress").context("no condition")?;
        let message = progress["message"].as_str().unwrap_or_default();
        ensure!(message.contains("below current usage"), "it says {message}");
        let limits = &pod["status"]["containerStatuses"][0]["resources"]["limits"];
        same("what it has", limits["memory"].as_str(), Some("128Mi"))?;
        bed.go("below")?;
        let pod = bed.until("below", "it is resized", |pod| {
            pod["status"]["containerStatuses"][0]["resources"]["limits"]["memory"] == "32Mi"
                && condition(pod, "PodResizeInProgress").is_none()
        })?;
        same("the restart count", &pod["status"]["containerStatuses"][0]["restartCount"], &json!(0))
    }),
];
