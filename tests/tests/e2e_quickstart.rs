//! `hack/quickstart`, as its acceptance has it: one pod from an image to its bill, and nothing left, whatever happens.
//!
//! `NODELESS_INTERRUPTS` (8): how often a run is broken off; `NODELESS_INTERRUPT_SEED`: when.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

#[path = "e2e_quickstart/interrupt.rs"]
mod interrupt;
#[path = "e2e_quickstart/registry.rs"]
mod registry;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use interrupt::{Moments, Run, WAYS, Way};
use registry::push_for_two_architectures;
use serde_json::Value;
use tests::cluster::repository;
use tests::registry::DebianRegistry;
use tests::stack::is_root;

fn quickstart(arguments: &[&str]) -> Output {
    let mut command = Command::new(repository().join("hack/quickstart"));
    command.args(arguments).output().expect("hack/quickstart can be run")
}

/// The object that it printed; the run's promises about itself hold.
fn outcome(output: &Output) -> Value {
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "hack/quickstart --json ended with {}: {complaint}", output.status);
    let said: Value = serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else");

    let keys: BTreeSet<&str> = said.as_object().unwrap().keys().map(String::as_str).collect();
    let fixed = "pod phase image snapshot_ms start_ms first_byte_ms second_start_ms logs exec record";
    assert_eq!(keys, fixed.split(' ').collect(), "the keys of the interface");
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
    said
}

/// Of the node `nodeless-quickstart-PID`, nothing is there.
fn nothing_left(name: &str) {
    for left in [format!("/var/lib/{name}"), format!("/run/{name}"), format!("/run/netns/{name}-1")] {
        assert!(!Path::new(&left).exists(), "{left} was left");
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&format!("{name}/")), "a mount of {name} was left");
}

#[test]
fn e2e_quickstart_runs_bills_and_leaves_nothing() {
    if !is_root("e2e_quickstart_runs_bills_and_leaves_nothing") {
        return;
    }
    let said = outcome(&quickstart(&["--json"]));
    // The image's reference names the node's own directory.
    let image = said["image"].as_str().unwrap();
    let dir = image.strip_prefix("oci-layout:").and_then(|rest| rest.strip_suffix("/busybox:1.35")).unwrap();
    nothing_left(Path::new(dir).file_name().unwrap().to_str().unwrap());
}

#[test]
fn e2e_quickstart_takes_an_image_from_a_registry_by_platform() {
    if !is_root("e2e_quickstart_takes_an_image_from_a_registry_by_platform") {
        return;
    }
    let registry = DebianRegistry::plain(Ipv4Addr::LOCALHOST.into()).unwrap();
    let image = push_for_two_architectures(&registry, "team/busybox:1.35").unwrap();
    let said = outcome(&quickstart(&[&image, "--json"]));
    assert_eq!(said["image"], image.as_str());
    assert_eq!(said["record"]["images"][0], image.as_str());
    let host = said["record"]["hosts"][0].as_str().unwrap();
    nothing_left(&format!("nodeless-{}", host.trim_end_matches("-1")));

    let gone = registry.address.clone();
    let wrong = [
        (format!("{gone}/team/busybox:no-such-tag"), "no-such-tag"),
        (format!("{gone}/no/such/image"), "no/such/image"),
        ("UPPER/case".to_owned(), "UPPER/case"),
        ("oci-layout:/no/such/layout".to_owned(), "/no/such/layout"),
    ];
    for (image, named) in wrong {
        let output = quickstart(&[&image, "--json"]);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && output.stdout.is_empty(), "{image} ended with {}", output.status);
        let (first, rest) = complaint.split_once('\n').unwrap();
        assert!(first.starts_with("error: cannot make a snapshot of") && first.contains(named), "{complaint}");
        assert!(rest.is_empty(), "one line says it all: {complaint}");
    }
    registry.down().unwrap();
}

#[test]
fn e2e_quickstart_names_what_is_in_its_way() {
    if !is_root("e2e_quickstart_names_what_is_in_its_way") {
        return;
    }
    let small = tempfile::tempdir().unwrap();
    let dir = small.path().to_str().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "small", dir]).status().unwrap();
    assert!(mounted.success());
    let output = Command::new(repository().join("hack/quickstart"))
        .arg("--json")
        .env("NODELESS_STATE_ROOT", dir)
        .output()
        .expect("hack/quickstart can be run");
    let unmounted = Command::new("umount").arg(dir).status().unwrap();
    assert!(unmounted.success());
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(complaint.contains("too little disk space") && complaint.contains(dir), "{complaint}");
    assert!(complaint.contains("64 MiB are free") && complaint.contains("NODELESS_STATE_ROOT"), "{complaint}");

    let nobody = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", "bash"])
        .arg(repository().join("hack/quickstart"))
        .output()
        .expect("setpriv can be run");
    let complaint = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(!nobody.status.success() && complaint.contains("needs root"), "{complaint}");

    // As a kernel without EROFS would list its file systems, to this process alone.
    let list = std::fs::read_to_string("/proc/filesystems").unwrap().replace("\terofs\n", "");
    let hidden = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&hidden, list).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", "mount --bind \"$0\" /proc/filesystems && exec \"$1\" --json"])
        .arg(hidden.path())
        .arg(repository().join("hack/quickstart"))
        .output()
        .expect("unshare can be run");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && complaint.contains("needs a kernel with erofs"), "{complaint}");

    let output = quickstart(&["--jason"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("unknown option --jason"));
}

#[test]
fn e2e_quickstart_interrupted_at_any_moment_leaves_nothing() {
    if !is_root("e2e_quickstart_interrupted_at_any_moment_leaves_nothing") {
        return;
    }
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
    };
    let interrupts = usize::try_from(number("NODELESS_INTERRUPTS", 8)).unwrap();
    let seed = number("NODELESS_INTERRUPT_SEED", 0x5eed_0003);
    let mut moments = Moments::new(seed);
    let life = Run::start(Way::Terminal, false, 0).unwrap().until_its_end().unwrap();
    eprintln!("a whole run takes {life:?}; seed {seed}");
    for number in 1..=interrupts {
        let way = WAYS[number % WAYS.len()];
        // Most of the moments in which something is half-made are in the first part.
        let moment = if number % 2 == 0 { moments.below(life) } else { moments.below(life / 5) };
        // Every eighth is caught while it builds, or asks cargo whether to.
        let build = number % 8 == 0;
        let gaps: Vec<Duration> = match way {
            Way::TerminalAgain | Way::TerminateAgain => {
                (0..3).map(|_| moments.below(Duration::from_millis(300))).collect()
            }
            _ => Vec::new(),
        };
        let run = Run::start(way, build, number).unwrap();
        // The moment is the test's subject: nothing is waited for.
        std::thread::sleep(moment);
        match run.break_off(way, &gaps) {
            Ok(broken_off) => {
                eprintln!("{number}: {way:?} after {moment:?}{}", if broken_off { "" } else { ", which was too late" });
                assert!(broken_off || moment > life / 2, "number {number}, {way:?} after {moment:?} had no effect");
            }
            Err(error) => panic!("number {number}, {way:?} after {moment:?}, build {build}, seed {seed}: {error:#}"),
        }
    }
}
