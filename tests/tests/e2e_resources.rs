//! What a host has few of, asked for through a real API server: devices by extended resource, huge pages, CPUs of one's own.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::bed::{Bed, Case, phase, same, shell, walk};
use tests::stack::{self, is_root};

const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

#[test]
fn e2e_devices_and_huge_pages_are_given_counted_and_given_again() {
    const NAME: &str = "e2e_devices_and_huge_pages_are_given_counted_and_given_again";
    if !is_root(NAME) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let policy = scratch.path().join("devices.toml");
    let text = "[\"a.com/own\"]\ndevices = [\"/dev/full\", \"/dev/zero\"]\npath = \"/dev/own/\"\naccess = \"r\"\n";
    std::fs::write(&policy, text).unwrap();
    let bed = Bed::up("resources", &["--device-policy", &policy.display().to_string(), "--capacity-cpu", "4"]).unwrap();
    let pages = std::fs::read_to_string(Path::new(PAGES).join("nr_hugepages"));
    if pages.is_ok_and(|count| count.trim().parse::<u64>().is_ok_and(|count| count >= 2)) {
        walk(&bed, &[DEVICES, HUGE_PAGES].concat());
    } else {
        eprintln!("SKIPPED {NAME}: huge pages: this host has set none of 2 MiB aside (nr_hugepages)");
        walk(&bed, &[DEVICES, NO_HUGE_PAGES].concat());
    }
    bed.down().unwrap();
}

#[test]
fn e2e_whole_cpus_are_a_guaranteed_containers_own() {
    const NAME: &str = "e2e_whole_cpus_are_a_guaranteed_containers_own";
    if !is_root(NAME) {
        return;
    }
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let Some(last) = online.trim().strip_prefix("0-").and_then(|last| last.parse::<u32>().ok()) else {
        return eprintln!("SKIPPED {NAME}: one CPU must stay reserved, and the CPUs online here are {}", online.trim());
    };
    let flags = ["--cpu-manager-policy", "static", "--reserved-cpus", "0", "--capacity-cpu", &last.to_string()];
    let bed = Bed::up("cpus", &flags).unwrap();
    walk(&bed, CPUS);
    bed.down().unwrap();
}

fn limited(mut container: Value, limits: Value) -> Value {
    container["resources"] = json!({"limits": limits});
    container
}

fn pod(bed: &Bed, name: &str, container: &Value) -> Result<()> {
    bed.pod(name, json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}))
}

fn allocatable(bed: &Bed, name: &str) -> Result<Option<String>> {
    let node: Value = serde_json::from_str(&bed.kubectl_says(&["get", "node", "test-node", "-o", "json"])?)?;
    Ok(node["status"]["allocatable"][name].as_str().map(str::to_owned))
}

/// What a pod's only container says in all.
fn says(bed: &Bed, name: &str) -> Result<String> {
    bed.until(name, "it has ended", |pod| ["Succeeded", "Failed"].contains(&phase(pod)))?;
    bed.kubectl_says(&["logs", name])
}

const DEVICES: &[Case] = &[
    ("the node tells its devices, and a container has those that it was given, as the policy says", |bed| {
        stack::wait("the node tells its devices", || {
            Ok(allocatable(bed, "a.com/own")?.as_deref() == Some("2") && allocatable(bed, "hugepages-2Mi").is_ok())
        })?;
        let image = bed.registry.image("device", &[])?;
        let script = "ls /dev/own; for d in /dev/own/*; do head -c 1 $d | wc -c; echo x > $d || echo read only; done 2>/dev/null";
        pod(bed, "device", &limited(shell("main", &image, script), json!({"a.com/own": "1"})))?;
        let said = says(bed, "device")?;
        // To /dev/zero every container may write, whatever it is called.
        ensure!(["full\n1\nread only\n", "zero\n1\n"].contains(&said.as_str()), "it says {said:?}");
        Ok(())
    }),
    (
        "a unit is one pod's until its end, who asks for more waits, and who asks for more than there is is refused",
        |bed| {
            let image = bed.registry.image("units", &[])?;
            let asks = |units: &str, script: &str| limited(shell("main", &image, script), json!({"a.com/own": units}));
            pod(bed, "both", &asks("2", "sleep 1000"))?;
            bed.until("both", "it runs", |pod| phase(pod) == "Running")?;
            pod(bed, "waits", &asks("1", "ls /dev/own | wc -l"))?;
            bed.until_event_says(
                "waits",
                "Warning",
                "FailedScheduling",
                "0/1 hosts are available: 1 with insufficient a.com/own.",
            )?;
            pod(bed, "greedy", &asks("3", "true"))?;
            let end = bed.until("greedy", "it is refused", |pod| phase(pod) == "Failed")?;
            same("the reason", end["status"]["reason"].as_str(), Some("OutOfa.com/own"))?;
            bed.delete("both", Some(0))?;
            same("what it has", says(bed, "waits")?.as_str(), "1\n")
        },
    ),
    ("a container that asks for none has none", |bed| {
        let image = bed.registry.image("none", &[])?;
        pod(bed, "none", &shell("main", &image, "ls /dev/own 2>&1 || echo none"))?;
        ensure!(says(bed, "none")?.ends_with("none\n"), "it has some");
        Ok(())
    }),
];

const HUGE_PAGES: &[Case] = &[("a container has the huge pages that it asks for, in a volume and no more", |bed| {
    let image = bed.registry.image("pages", &[])?;
    let script = "df -m /pages | tail -n 1; cat /sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes 2>/dev/null || \
                  cat /sys/fs/cgroup/hugetlb.2MB.max";
    let mut main = limited(shell("main", &image, script), json!({"hugepages-2Mi": "4Mi", "memory": "32Mi"}));
    main["volumeMounts"] = json!([{"name": "pages", "mountPath": "/pages"}]);
    let volume = json!({"name": "pages", "emptyDir": {"medium": "HugePages"}});
    bed.pod("pages", json!({"restartPolicy": "Never", "containers": [main], "volumes": [volume]}))?;
    let said = says(bed, "pages")?;
    ensure!(said.lines().last() == Some("4194304"), "it says {said}");
    Ok(())
})];

const NO_HUGE_PAGES: &[Case] = &[("huge pages that the node does not have are refused by name", |bed| {
    let image = bed.registry.image("no-pages", &[])?;
    let asks = json!({"hugepages-2Mi": "4Mi", "memory": "32Mi"});
    pod(bed, "no-pages", &limited(shell("main", &image, "true"), asks.clone()))?;
    let end = bed.until("no-pages", "it is refused", |pod| phase(pod) == "Failed")?;
    same("the reason", end["status"]["reason"].as_str(), Some("OutOfhugepages-2Mi"))?;
    // The same of the pod as a whole, which the API server takes.
    let spec = json!({"resources": {"limits": asks}, "containers": [shell("main", &image, "true")]});
    bed.pod("no-pages-at-all", spec)?;
    let end = bed.until("no-pages-at-all", "it is refused", |pod| phase(pod) == "Failed")?;
    same("the reason", end["status"]["reason"].as_str(), Some("OutOfhugepages-2Mi"))
})];

const CPUS: &[Case] = &[("a whole CPU is one container's own, the others are moved away, and back", |bed| {
    let image = bed.registry.image("cpus", &[])?;
    let tells = "while :; do now=$(grep Cpus_allowed_list /proc/self/status | cut -f2); \
                 [ \"$now\" = \"$old\" ] || echo \"$now\"; old=$now; sleep 0.1; done";
    pod(bed, "shares", &shell("main", &image, tells))?;
    bed.until("shares", "it runs", |pod| phase(pod) == "Running")?;
    pod(bed, "owns", &limited(shell("main", &image, tells), json!({"cpu": "1", "memory": "32Mi"})))?;
    bed.until("owns", "it runs", |pod| phase(pod) == "Running")?;
    let said = |name: &str| bed.kubectl_says(&["logs", name]);
    let own = || -> Result<Option<u32>> { Ok(said("owns")?.trim().parse().ok()) };
    stack::wait("it has one CPU", || Ok(own()?.is_some()))?;
    let own = own()?.context("no CPU")?;
    ensure!(own != 0, "a reserved CPU was given out");
    let without = |list: &str| {
        !list.split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse().unwrap_or(0)..=last.parse().unwrap_or(u32::MAX)).contains(&own)
        })
    };
    stack::wait("the other is moved away", || Ok(said("shares")?.lines().last().is_some_and(without)))?;
    bed.delete("owns", Some(0))?;
    bed.until_gone("owns")?;
    stack::wait("the other is moved back", || Ok(said("shares")?.lines().last().is_some_and(|list| !without(list))))
})];
