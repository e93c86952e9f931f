//! `hack/quickstart --json`, as its acceptance has it: one pod from an image to its bill, and nothing left.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::cluster::repository;
use tests::stack::is_root;

#[test]
fn e2e_quickstart_runs_bills_and_leaves_nothing() {
    if !is_root("e2e_quickstart_runs_bills_and_leaves_nothing") {
        return;
    }
    let mut command = Command::new(repository().join("hack/quickstart"));
    let child = command.arg("--json").output().expect("hack/quickstart can be run");
    let complaint = String::from_utf8_lossy(&child.stderr).into_owned();
    assert!(child.status.success(), "hack/quickstart --json ended with {}: {complaint}", child.status);
    let said: Value = serde_json::from_slice(&child.stdout).expect("one JSON object and nothing else");

    assert_eq!(said["phase"], "Succeeded");
    assert_eq!(said["pod"], "default/quickstart");
    assert!(said["logs"].as_str().unwrap().contains("hello from pod quickstart"), "{said}");
    assert!(said["exec"].as_str().unwrap().contains("uid=0"), "{said}");
    for time in ["snapshot_ms", "start_ms", "first_byte_ms", "second_start_ms"] {
        let ms = said[time].as_f64().unwrap();
        assert!(ms > 0.0 && ms < 60_000.0, "{time} is {ms}");
    }
    assert!(said["start_ms"].as_f64() <= said["first_byte_ms"].as_f64(), "a byte came before the start: {said}");

    let timeline = |step: &str| said["record"]["timeline"][step].as_u64().unwrap();
    let held = timeline("released_boottime_ns") - timeline("held_boottime_ns");
    assert!(held >= 3_000_000_000, "the pod runs three seconds, {held} ns were held");
    assert_eq!(said["record"]["state"], "final");
    assert_eq!(said["record"]["duration_ns"].as_u64(), Some(held));
    assert_eq!(said["record"]["billed_seconds"].as_u64(), Some(held.div_ceil(1_000_000_000)));

    // The image's reference names the node's own directory.
    let image = said["image"].as_str().unwrap();
    let dir = image.strip_prefix("oci-layout:").and_then(|rest| rest.strip_suffix("/busybox:1.35")).unwrap();
    let name = Path::new(dir).file_name().unwrap().to_str().unwrap();
    for left in [dir.to_owned(), format!("/run/{name}"), format!("/run/netns/{name}-1")] {
        assert!(!Path::new(&left).exists(), "{left} was left");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(name), "a mount of {name} was left");
}
