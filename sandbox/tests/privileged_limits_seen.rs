//! Programs that size themselves by their limits find them: as a JVM looks for them, which is the strictest.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sandbox::cgroup::Layout;
use sandbox::spec::Mount;
use support::Host;

/// What a JVM reads, a line with `==` before each file.
const LOOK: &str = "for f in /proc/cgroups /proc/self/cgroup /proc/self/mountinfo; do echo == $f; cat $f; done; \
    for f in memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpuset/cpuset.cpus cpuacct/cpuacct.usage \
    memory.max cpu.max; do [ -e /sys/fs/cgroup/$f ] && echo == $f && cat /sys/fs/cgroup/$f; done; true";

fn files(text: &str) -> BTreeMap<&str, &str> {
    let parts = text.split("== ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(name, content)| (name, content.trim_end())).collect()
}

/// Where each v1 controller is mounted and what of the hierarchy, as the last of its lines says.
fn mounted(mountinfo: &str) -> BTreeMap<&str, (&str, &str)> {
    let mut found = BTreeMap::new();
    for line in mountinfo.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let after = words.iter().position(|word| *word == "-").unwrap();
        if words[after + 1] == "cgroup" {
            found.extend(words[after + 3].split(',').map(|controller| (controller, (words[3], words[4]))));
        }
    }
    found
}

#[tokio::test]
async fn privileged_limits_are_found_where_a_jvm_looks_for_them() {
    privileged!("privileged_limits_are_found_where_a_jvm_looks_for_them");
    let host = Host::new().await;
    let other = host.sandbox("other").await;
    support::start(&host, &other, &host.shell("main", "sleep 1000")).await;
    let id = host.sandbox("limited").await;
    let mut spec = host.shell("main", LOOK);
    spec.resources.memory_limit = Some(300 << 20);
    spec.resources.cpu_quota_us = Some(150_000);
    assert_eq!(host.run(&id, &spec).await.code, 0);
    let text = host.log(&id, "main", 0);
    let files = files(&text);
    if Layout::detect().unwrap().is_v2() {
        assert_eq!(files["memory.max"], (300 << 20).to_string(), "{text}");
        assert_eq!(files["cpu.max"], "150000 100000", "{text}");
        host.close().await;
        return;
    }
    // HotSpot: all four controllers enabled, and each mounted; else no limit is honoured.
    let mounted = mounted(files["/proc/self/mountinfo"]);
    for controller in ["memory", "cpu", "cpuacct", "cpuset"] {
        let enabled = files["/proc/cgroups"].lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words[0] == controller && words[3] == "1"
        });
        let exists = Layout::detect_all().unwrap().v1.iter().any(|one| one.controllers.iter().any(|c| c == controller));
        if !enabled || !exists {
            eprintln!(
                "SKIPPED {controller} of privileged_limits_are_found_where_a_jvm_looks_for_them: not on this host"
            );
            continue;
        }
        // Its group is the root of what is mounted: then the mount point is where its files are.
        let (root, place) = mounted.get(controller).unwrap_or_else(|| panic!("{controller} is not mounted: {text}"));
        let own = files["/proc/self/cgroup"].lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            parts.next()?.split(',').any(|name| name == controller).then(|| parts.next()).flatten()
        });
        assert_eq!((*root, own), ("/", Some("/")), "{controller}: {text}");
        assert!(place.starts_with("/sys/fs/cgroup/"), "{controller}: {place}");
    }
    assert_eq!(files["memory/memory.limit_in_bytes"], (300 << 20).to_string(), "{text}");
    assert_eq!((files["cpu/cpu.cfs_quota_us"], files["cpu/cpu.cfs_period_us"]), ("150000", "100000"), "{text}");
    host.close().await;
}

/// This host's own Java, if it has one.
fn java() -> Option<PathBuf> {
    let program =
        std::env::split_paths(&std::env::var_os("PATH")?).map(|path| path.join("java")).find(|p| p.exists())?;
    program.canonicalize().ok().filter(|program| program.starts_with("/usr"))
}

#[tokio::test]
async fn privileged_a_jvm_honours_its_limits() {
    privileged!("privileged_a_jvm_honours_its_limits");
    let Some(java) = java() else {
        eprintln!("SKIPPED privileged_a_jvm_honours_its_limits: no Java below /usr here");
        return;
    };
    let host = Host::new().await;
    let id = host.sandbox("java").await;
    let command =
        format!("{} -XX:MaxRAMPercentage=50 -XX:+PrintFlagsFinal -XshowSettings:system -version 2>&1", java.display());
    let mut spec = host.shell("main", &command);
    let places = [("/usr", "/usr"), ("/usr/lib", "/lib"), ("/usr/lib64", "/lib64"), ("/etc", "/etc")];
    let volume = |(source, destination): &(&str, &str)| Mount {
        source: source.into(),
        sub_path: PathBuf::new(),
        destination: destination.into(),
        read_only: true,
        no_exec: false,
        idmap: false,
        exclusive: false,
        layers: Vec::new(),
    };
    spec.mounts = places.iter().filter(|(source, _)| Path::new(source).is_dir()).map(volume).collect();
    spec.resources.memory_limit = Some(400 << 20);
    spec.resources.cpu_quota_us = Some(100_000);
    let exit = host.run(&id, &spec).await;
    let text = host.log(&id, "main", 0);
    assert_eq!(exit.code, 0, "{text}");
    let said = |name: &str, value: &str| {
        let lines = text.lines().filter(|line| line.contains(name));
        assert!(lines.clone().any(|line| line.contains(value)), "{name} {value}: {:?}", lines.collect::<Vec<_>>());
    };
    // The virtual machine itself, and its libraries, look for themselves.
    said(" MaxHeapSize ", &format!(" {} ", 200 << 20));
    said("Provider:", "cgroup");
    said("Effective CPU Count:", " 1");
    said("Memory Limit:", "400.00M");
    host.close().await;
}

#[tokio::test]
async fn privileged_groups_that_all_pods_share_show_nobody_and_take_nothing() {
    privileged!("privileged_groups_that_all_pods_share_show_nobody_and_take_nothing");
    const TRY: &str = "cd /sys/fs/cgroup; ls -d */*/ 2>/dev/null; cat cpuset/cgroup.procs cpuacct/tasks 2>/dev/null | sort -nu; \
        for g in cpuset cpuacct; do [ -d $g ] || continue; mkdir $g/x && echo made; echo 0 > $g/cgroup.procs && echo moved; \
        echo 0 > cpuset/cpuset.cpus && echo pinned; mount -o remount,rw $g && echo writable; umount $g && echo gone; done 2>/dev/null; true";
    let host = Host::new().await;
    let other = host.sandbox("other").await;
    support::start(&host, &other, &host.shell("main", "sleep 1000")).await;
    let id = host.sandbox("curious").await;
    let plain = host.shell("plain", TRY);
    let mut open = host.shell("open", TRY);
    open.security.writable_kernel = true;
    for spec in [plain, open] {
        assert_eq!(host.run(&id, &spec).await.code, 0);
        let text = host.log(&id, &spec.name, 0);
        let own = |line: &str| line.parse::<u32>().is_ok_and(|pid| (1..100).contains(&pid));
        assert!(text.lines().all(own), "{}: {text}", spec.name);
    }
    host.close().await;
}
