//! Trees on a temporary directory, and on the real host.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Controller, DEFAULT_DEVICES, Group, Hierarchy, Layout, Tree};
use crate::spec::{Resources, SandboxId};

const SOON: Duration = Duration::from_secs(5);

fn id(name: &str) -> SandboxId {
    SandboxId(name.to_owned())
}

fn temporary_layout(root: &Path) -> Layout {
    let hierarchy = |name: &str| {
        let path = root.join(name);
        std::fs::create_dir(&path).unwrap();
        Hierarchy { controllers: vec![name.to_owned()], path }
    };
    Layout { unified: None, v1: vec![hierarchy("cpu"), hierarchy("pids"), hierarchy("memory")], cpusets: false }
}

#[test]
fn a_pod_has_a_directory_in_every_hierarchy_and_is_listed_while_any_is_left() {
    let root = tempfile::tempdir().unwrap();
    let tree = Tree::open(&temporary_layout(root.path()), "nodeless").unwrap();
    let pod = tree.create_pod(&id("a")).unwrap();
    pod.create_leaf("shim").unwrap();
    tree.create_pod(&id("a")).unwrap();
    assert!(root.path().join("memory/nodeless/a/shim").is_dir());
    assert_eq!(pod.leaves().unwrap(), ["shim"]);
    std::fs::remove_dir_all(root.path().join("cpu/nodeless/a")).unwrap();
    assert_eq!(tree.pods().unwrap(), [id("a")]);
    assert!(tree.pod(&id("a")).unwrap_err().is_not_found());
    tree.remove_pod(&id("a"), SOON).unwrap();
    assert_eq!(tree.pods().unwrap(), []);
    tree.remove_pod(&id("a"), SOON).unwrap();
}

#[test]
fn on_v1_a_shim_is_in_every_hierarchy_but_memorys() {
    let root = tempfile::tempdir().unwrap();
    let mut layout = temporary_layout(root.path());
    // Hierarchies may have several controllers: then it is in that of memory too.
    for (number, expected) in [(0, vec!["cpu", "pids"]), (1, vec!["cpu", "pids", "memory"])] {
        if number == 1 {
            layout.v1[2].controllers.push("devices".to_owned());
        }
        let tree = Tree::open(&layout, &format!("parent{number}")).unwrap();
        let pod = tree.create_pod(&id("a")).unwrap();
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        let tasks = |name: &&str| root.path().join(name).join(format!("parent{number}/a/tasks"));
        for name in ["cpu", "pids", "memory"] {
            std::fs::write(tasks(&name), "").unwrap();
        }
        let of = |name: &&str| inode(&tasks(name));
        let opened = pod.joined_by_shim().unwrap();
        let entered: Vec<u64> = opened.iter().map(|file| rustix::fs::fstat(file).unwrap().st_ino).collect();
        assert_eq!(entered, expected.iter().map(of).collect::<Vec<_>>());
    }
}

#[test]
fn on_v1_a_process_joins_as_the_one_thread_that_it_has() {
    let root = tempfile::tempdir().unwrap();
    let tree = Tree::open(&temporary_layout(root.path()), "nodeless").unwrap();
    let leaf = tree.create_pod(&id("a")).unwrap().create_leaf("main").unwrap();
    let files = ["cpu", "pids", "memory"].map(|name| root.path().join(name).join("nodeless/a/main/tasks"));
    for tasks in &files {
        std::fs::write(tasks, "").unwrap();
    }
    // There is no cgroup.procs to write to.
    leaf.complete().unwrap();
    for tasks in &files {
        assert_eq!(std::fs::read_to_string(tasks).unwrap(), "0", "{}", tasks.display());
    }
}

#[test]
fn names_that_leave_the_tree_or_are_the_kernel_s_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let layout = temporary_layout(root.path());
    let tree = Tree::open(&layout, "nodeless").unwrap();
    for name in ["", ".", "..", "a/b", "/", "cgroup.procs", "a\0b", "ü"] {
        assert!(tree.create_pod(&id(name)).is_err(), "{name:?}");
        assert!(tree.remove_pod(&id(name), SOON).is_err(), "{name:?}");
    }
    assert!(Tree::open(&layout, "../x").is_err());
    assert!(Tree::open(&layout, "").is_err());
}

#[test]
fn a_limit_without_its_controller_is_refused_and_a_weight_is_not() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("cpuacct");
    std::fs::create_dir(&path).unwrap();
    let layout =
        Layout { unified: None, v1: vec![Hierarchy { controllers: vec!["cpuacct".to_owned()], path }], cpusets: false };
    let pod = Tree::open(&layout, "nodeless").unwrap().create_pod(&id("a")).unwrap();
    for limits in [
        Resources { memory_limit: Some(1 << 20), ..Resources::default() },
        Resources { pids_limit: Some(3), ..Resources::default() },
        Resources { cpu_quota_us: Some(5_000), ..Resources::default() },
    ] {
        assert!(matches!(pod.apply(&limits), Err(super::CgroupError::ControllerMissing { .. })), "{limits:?}");
        pod.update(&Resources::default()).unwrap();
    }
    pod.apply(&Resources { cpu_shares: Some(512), ..Resources::default() }).unwrap();
}

#[test]
fn huge_pages_are_limited_by_the_names_of_their_hierarchy_and_refused_without_one() {
    let root = tempfile::tempdir().unwrap();
    let layout = temporary_layout(root.path());
    let limits = |bytes| Resources { hugepages: [("2MB".to_owned(), bytes)].into(), ..Resources::default() };
    let pod = Tree::open(&layout, "nodeless").unwrap().create_pod(&id("a")).unwrap();
    let missing = super::CgroupError::ControllerMissing { controller: Controller::Hugetlb };
    assert_eq!(pod.apply(&limits(4 << 20)).unwrap_err().to_string(), missing.to_string());
    pod.apply(&limits(0)).unwrap();

    let path = root.path().join("hugetlb");
    std::fs::create_dir(&path).unwrap();
    let own = Hierarchy { controllers: vec!["hugetlb".to_owned()], path: path.clone() };
    let layout = Layout { v1: layout.v1.into_iter().chain([own]).collect(), ..layout };
    let pod = Tree::open(&layout, "nodeless").unwrap().create_pod(&id("b")).unwrap();
    let file = path.join("nodeless/b/hugetlb.2MB.limit_in_bytes");
    std::fs::write(&file, "").unwrap();
    pod.apply(&limits(4 << 20)).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "4194304");
}

#[test]
fn a_lent_group_is_the_same_group_where_it_is_received() {
    let root = tempfile::tempdir().unwrap();
    let tree = Tree::open(&temporary_layout(root.path()), "nodeless").unwrap();
    let pod = tree.create_pod(&id("a")).unwrap();
    let (handle, fds) = pod.lend();
    let owned = |fds: &[std::os::fd::BorrowedFd<'_>]| fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    assert!(Group::receive(handle.clone(), owned(&fds[1..])).is_none());
    let received = Group::receive(handle, owned(&fds)).unwrap();
    received.create_leaf("web").unwrap();
    assert!(received.has(Controller::Memory));
    assert!(root.path().join("memory/nodeless/a/web").is_dir());
}

/// A tree of its own on the real host, removed at the end.
struct RealTree {
    tree: Tree,
    layout: Layout,
    parent: String,
}

impl RealTree {
    fn new(test: &str) -> Option<Self> {
        Self::with(test, Layout::detect)
    }

    fn with(test: &str, detect: fn() -> Result<Layout, super::CgroupError>) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED {test}: not root");
            return None;
        }
        let layout = detect().unwrap();
        let parent = format!("nodeless-test-{}-{test}", std::process::id());
        let tree = match Tree::open(&layout, &parent) {
            Ok(tree) => tree,
            Err(error) => {
                eprintln!("SKIPPED {test}: control groups cannot be made here: {error}");
                return None;
            }
        };
        Some(Self { tree, layout, parent })
    }
}

impl Drop for RealTree {
    fn drop(&mut self) {
        for pod in self.tree.pods().unwrap_or_default() {
            let _ = self.tree.remove_pod(&pod, SOON);
        }
        let roots = self.layout.v1.iter().map(|h| &h.path).chain(&self.layout.unified);
        for root in roots {
            let _ = std::fs::remove_dir(root.join(&self.parent));
        }
    }
}

fn sleeper_in(group: &Group) -> Child {
    let child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    group.attach(child.id()).unwrap();
    child
}

#[test]
fn privileged_limits_are_what_an_independent_reader_sees() {
    let Some(real) = RealTree::new("limits") else { return };
    let pod = real.tree.create_pod(&id("a")).unwrap();
    let leaf = pod.create_leaf("web").unwrap();
    let first = Resources {
        cpu_shares: Some(512),
        cpu_quota_us: Some(20_000),
        memory_limit: Some(32 << 20),
        pids_limit: Some(17),
        ..Resources::default()
    };
    leaf.apply(&first).unwrap();
    // Raised above and lowered below what is set: both orders of the two v1 memory limits.
    for memory in [64u64 << 20, 16 << 20] {
        leaf.update(&Resources { memory_limit: Some(memory), ..first.clone() }).unwrap();
        let place = if real.layout.is_v2() { "a/containers/web" } else { "a/web" };
        let path = format!("{}/{place}", real.parent);
        let judge = cgroups_rs::fs::Cgroup::load(cgroups_rs::fs::hierarchies::auto(), path);
        let controller: &cgroups_rs::fs::memory::MemController = judge.controller_of().unwrap();
        assert_eq!(controller.memory_stat().limit_in_bytes, i64::try_from(memory).unwrap());
        let pids: &cgroups_rs::fs::pid::PidController = judge.controller_of().unwrap();
        assert_eq!(pids.get_pid_max().unwrap(), cgroups_rs::fs::MaxValue::Value(17));
        let cpu: &cgroups_rs::fs::cpu::CpuController = judge.controller_of().unwrap();
        assert_eq!(cpu.cfs_quota().unwrap(), 20_000);
    }
    leaf.update(&Resources::default()).unwrap();
    let enforcement = leaf.allow_devices(&DEFAULT_DEVICES).unwrap();
    assert_eq!(enforcement, super::Enforcement::Kernel);
}

#[test]
fn privileged_kill_reaches_every_process_below_and_removal_waits_for_them() {
    let Some(real) = RealTree::new("kill") else { return };
    let pod = real.tree.create_pod(&id("a")).unwrap();
    let mut children: Vec<Child> =
        ["web", "db"].iter().map(|name| sleeper_in(&pod.create_leaf(name).unwrap())).collect();
    assert!(pod.is_populated().unwrap());
    let usage = pod.usage().unwrap();
    assert_eq!(usage.pids, 2);
    assert!(usage.memory_working_set_bytes <= usage.memory_bytes);
    pod.kill().unwrap();
    for child in &mut children {
        assert!(!child.wait().unwrap().success());
    }
    real.tree.remove_pod(&id("a"), SOON).unwrap();
    assert_eq!(real.tree.pods().unwrap(), []);
}

#[test]
fn privileged_a_running_pod_is_killed_by_its_removal() {
    let Some(real) = RealTree::new("remove") else { return };
    let pod = real.tree.create_pod(&id("a")).unwrap();
    let mut child = sleeper_in(&pod.create_leaf("web").unwrap());
    real.tree.remove_pod(&id("a"), SOON).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(real.tree.pod(&id("a")).unwrap_err().is_not_found());
}

#[test]
fn privileged_frozen_processes_use_no_time_until_thawed() {
    let Some(real) = RealTree::new("freeze") else { return };
    let pod = real.tree.create_pod(&id("a")).unwrap();
    let leaf = pod.create_leaf("busy").unwrap();
    let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    leaf.attach(child.id()).unwrap();
    let used = || leaf.usage().unwrap().cpu_ns;
    let grows = || {
        let before = used();
        (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(4));
            used() > before + 2_000_000
        })
    };
    assert!(grows());
    leaf.freeze().unwrap();
    // Freezing is not instant: wait until the kernel says so, then nothing may be added.
    let frozen = (0..500).any(|_| {
        let before = used();
        std::thread::sleep(Duration::from_millis(20));
        used() == before
    });
    assert!(frozen);
    leaf.thaw().unwrap();
    assert!(grows());
    leaf.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn privileged_an_over_eater_is_counted_as_oom_killed() {
    let Some(real) = RealTree::new("oom") else { return };
    let pod = real.tree.create_pod(&id("a")).unwrap();
    let leaf = pod.create_leaf("eater").unwrap();
    leaf.apply(&Resources { memory_limit: Some(16 << 20), ..Resources::default() }).unwrap();
    assert_eq!(leaf.oom_kills().unwrap(), 0);
    // It waits for a line, so that it eats only once it is inside.
    let mut child = Command::new("sh")
        .args(["-c", "read go; head -c 200000000 /dev/zero | tail"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    leaf.attach(child.id()).unwrap();
    use std::io::Write;
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(leaf.oom_kills().unwrap() >= 1);
}

/// Opens a device for reading inside a cgroup, by a shell that waits until it is there; what the kernel said.
fn opens(group: &Group, device: &str) -> bool {
    use std::io::Write;
    let mut child = Command::new("sh")
        .args(["-c", "read go; exec 3<\"$1\"", "sh", device])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    group.attach(child.id()).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child.wait().unwrap().success()
}

#[test]
fn privileged_a_device_list_decides_and_its_replacement_too() {
    let Some(real) = RealTree::new("devices") else { return };
    let pod = real.tree.create_pod(&id("a")).unwrap();
    let leaf = pod.create_leaf("web").unwrap();
    assert!(opens(&leaf, "/dev/zero") && opens(&leaf, "/dev/null"));
    let null = DEFAULT_DEVICES[0];
    assert_eq!(leaf.allow_devices(&[null]).unwrap(), super::Enforcement::Kernel);
    assert!(opens(&leaf, "/dev/null"));
    assert!(!opens(&leaf, "/dev/zero"));
    assert_eq!(leaf.allow_devices(&DEFAULT_DEVICES).unwrap(), super::Enforcement::Kernel);
    assert!(opens(&leaf, "/dev/null") && opens(&leaf, "/dev/zero"));
    let blind = super::DeviceRule { access: super::Access::WRITE, ..null };
    leaf.allow_devices(&[blind]).unwrap();
    assert!(!opens(&leaf, "/dev/null"));
}

#[test]
fn privileged_a_device_program_decides_on_the_unified_hierarchy_and_is_replaced_not_added_to() {
    let Some(real) = RealTree::new("program") else { return };
    let Some(root) = &real.layout.unified else {
        eprintln!("SKIPPED program: no unified hierarchy");
        return;
    };
    let layout = Layout { unified: Some(root.clone()), v1: Vec::new(), cpusets: false };
    let tree = Tree::open(&layout, &real.parent).unwrap();
    let leaf = tree.create_pod(&id("a")).unwrap().create_leaf("web").unwrap();
    let programs = || crate::sys::device_filter::attached(leaf.dirs().unified().unwrap()).unwrap().len();
    assert_eq!(programs(), 0);
    for (rules, zero) in [(&DEFAULT_DEVICES[..1], false), (&DEFAULT_DEVICES[..], true), (&[], false)] {
        assert_eq!(leaf.allow_devices(rules).unwrap(), super::Enforcement::Kernel);
        assert_eq!(programs(), 1);
        assert_eq!(opens(&leaf, "/dev/zero"), zero, "{rules:?}");
    }
}

#[test]
fn privileged_a_begun_pod_is_described_as_the_whole_of_it_is() {
    let Some(real) = RealTree::new("begun") else { return };
    let own =
        std::iter::once(Layout { unified: real.layout.unified.clone(), v1: real.layout.v1.clone(), cpusets: false });
    let v2 = real.layout.unified.clone().map(|root| Layout { unified: Some(root), v1: Vec::new(), cpusets: false });
    for (name, layout) in ["own", "v2"].into_iter().zip(own.chain(v2)) {
        let tree = Tree::open(&layout, &real.parent).unwrap();
        assert!(tree.begin_pod(&id("../x")).is_err());
        let begun = tree.begin_pod(&id(name)).unwrap();
        assert_eq!(begun.clone_into().is_some(), layout.unified.is_some());
        let described = begun.handle();
        let (pod, joined) = begun.finish().unwrap();
        assert_eq!(described, pod.lend().0, "{name}");
        let of_shim = layout.v1.iter().filter(|hierarchy| hierarchy.controllers != ["memory"]).count();
        assert_eq!(joined.len(), of_shim, "{name}");
        tree.remove_pod(&id(name), SOON).unwrap();
    }
}

#[test]
fn privileged_on_v2_a_pods_shim_is_beside_what_is_limited_and_both_go_with_the_pod() {
    let Some(real) = RealTree::new("beside") else { return };
    let Some(root) = &real.layout.unified else {
        return eprintln!("SKIPPED beside: no unified hierarchy");
    };
    let layout = Layout { unified: Some(root.clone()), v1: Vec::new(), cpusets: false };
    let tree = Tree::open(&layout, &real.parent).unwrap();
    let pod = tree.create_pod(&id("a")).unwrap();
    let shim = pod.create_shim_leaf().unwrap().unwrap();
    let (handle, fds) = pod.lend();
    let fds = fds.into_iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    let pod = Group::receive(handle, fds).unwrap();
    let leaf = pod.create_leaf("web").unwrap();
    let mut processes = [sleeper_in(&shim), sleeper_in(&leaf)];
    let place = |child: &Child| {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
    };
    assert!(place(&processes[0]).ends_with("/a/shim"), "{}", place(&processes[0]));
    assert!(place(&processes[1]).ends_with("/a/containers/web"), "{}", place(&processes[1]));
    assert_eq!(pod.leaves().unwrap(), ["web"]);
    if pod.has(Controller::Memory) {
        pod.apply(&Resources { memory_limit: Some(16 << 20), ..Resources::default() }).unwrap();
        let pod = root.join(&real.parent).join("a");
        let limit = |group: &str| std::fs::read_to_string(pod.join(group).join("memory.max")).unwrap();
        assert_eq!(["", "shim", "containers"].map(|group| limit(group).trim().to_owned()), ["max", "max", "16777216"]);
        let swap = |group: &str| std::fs::read_to_string(pod.join(group).join("memory.swap.max"));
        for swap in ["shim", "containers"].map(swap).into_iter().flatten() {
            assert_eq!(swap.trim(), "0");
        }
    }
    let found = tree.pod(&id("a")).unwrap();
    assert_eq!(found.leaf("web").unwrap().processes().unwrap().len(), 1);
    found.remove_leaf("web", SOON).unwrap();
    assert!(!processes[1].wait().unwrap().success() && processes[0].try_wait().unwrap().is_none());
    pod.create_leaf("next").unwrap();
    tree.remove_pod(&id("a"), SOON).unwrap();
    assert!(!processes[0].wait().unwrap().success());
    assert_eq!(tree.pods().unwrap(), []);
    // The leaves of one that an older agent made are in its own group.
    let old = tree.parent().create_leaf("old").unwrap();
    old.create_leaf("web").unwrap();
    assert_eq!(tree.pod(&id("old")).unwrap().leaves().unwrap(), ["web"]);
    tree.remove_pod(&id("old"), SOON).unwrap();
}

#[test]
fn privileged_memory_protection_is_written_and_summed_up_to_the_parent() {
    let Some(real) = RealTree::new("protection") else { return };
    if !real.layout.is_v2() {
        eprintln!("SKIPPED protection: memory is not on the unified hierarchy here");
        return;
    }
    let read = |path: &str| {
        let root = real.layout.unified.as_ref().unwrap();
        std::fs::read_to_string(root.join(&real.parent).join(path)).unwrap().trim().to_owned()
    };
    for (name, low) in [("a", 8u64 << 20), ("b", 16 << 20)] {
        let pod = real.tree.create_pod(&id(name)).unwrap();
        let protection = Resources { memory_low: Some(low), memory_min: Some(4096), ..Resources::default() };
        pod.apply(&protection).unwrap();
        let leaf = pod.create_leaf("web").unwrap();
        leaf.kill_whole().unwrap();
        let limits = Resources { memory_high: Some(low / 2), memory_limit: Some(low), ..protection };
        leaf.apply(&limits).unwrap();
    }
    real.tree.sum_protection().unwrap();
    assert_eq!((read("memory.low"), read("memory.min")), ((24u64 << 20).to_string(), "8192".to_owned()));
    assert_eq!(read("a/containers/web/memory.high"), (4u64 << 20).to_string());
    assert_eq!(
        (read("a/containers/web/memory.oom.group"), read("a/containers/memory.oom.group")),
        ("1".to_owned(), "0".to_owned())
    );
    assert_eq!(read("b/containers/web/memory.swap.max"), "0");
    real.tree.remove_pod(&id("b"), SOON).unwrap();
    real.tree.pod(&id("a")).unwrap().update(&Resources::default()).unwrap();
    real.tree.sum_protection().unwrap();
    assert_eq!((read("memory.low"), read("a/memory.min")), ("0".to_owned(), "0".to_owned()));
}

#[test]
fn privileged_huge_pages_are_limited_by_size() {
    let pages = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    let in_guest = Layout::detect().is_ok_and(|layout| layout.is_v2()) && pages.exists();
    if !in_guest || !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED huge_pages: needs root and cgroup v2 alone, and changes how many huge pages the host has");
        return;
    }
    let before = std::fs::read_to_string(pages).unwrap();
    std::fs::write(pages, "4").unwrap();
    let outcome = std::panic::catch_unwind(|| {
        let real = RealTree::new("huge").unwrap();
        let pod = real.tree.create_pod(&id("a")).unwrap();
        let leaf = pod.create_leaf("web").unwrap();
        assert!(leaf.has(Controller::Hugetlb));
        leaf.apply(&Resources { hugepages: [("2MB".to_owned(), 2 << 20)].into(), ..Resources::default() }).unwrap();
        let path = real.layout.unified.clone().unwrap().join(&real.parent).join("a/containers/web");
        let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap();
        assert_eq!((read("hugetlb.2MB.max").trim(), read("hugetlb.2MB.rsvd.max").trim()), ("2097152", "2097152"));
    });
    std::fs::write(pages, before.trim()).unwrap();
    outcome.unwrap();
}

#[test]
fn privileged_containers_run_on_the_cpus_that_they_are_given() {
    const NAME: &str = "privileged_containers_run_on_the_cpus_that_they_are_given";
    let Some(real) = RealTree::with(NAME, Layout::detect_with_cpusets) else { return };
    if !real.tree.parent().has(Controller::Cpuset) {
        return eprintln!("SKIPPED {NAME}: the host has no cpuset controller for us");
    }
    let pod = real.tree.create_pod(&id("a")).unwrap();
    let leaf = pod.create_leaf("web").unwrap();
    let allowed = |child: &Child| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    leaf.attach(child.id()).unwrap();
    let all = allowed(&child);
    let one = Resources { cpuset: Some("0".to_owned()), ..Resources::default() };
    leaf.apply(&one).unwrap();
    let pinned = allowed(&child);
    leaf.update(&Resources::default()).unwrap();
    let untouched = allowed(&child);
    leaf.update(&Resources { cpuset: Some(all.clone()), ..Resources::default() }).unwrap();
    let freed = allowed(&child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((pinned.as_str(), untouched.as_str(), freed), ("0", "0", all));
    assert!(leaf.apply(&Resources { cpuset: Some("9999".to_owned()), ..Resources::default() }).is_err());
}
