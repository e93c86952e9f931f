//! What a process, a keeper and the kernel hold, in numbers.

use std::collections::BTreeMap;
use std::path::Path;

/// Kernel objects that would show what nobody lists any more.
const OBJECTS: [&str; 6] =
    ["net_namespace", "pid_namespace", "user_namespace", "mnt_cache", "sock_inode_cache", "task_struct"];

/// One count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// Must be the same again.
    pub exact: BTreeMap<String, u64>,
    /// Of the whole machine, where others live too: a leak in each cycle shows in spite of them.
    pub machine: BTreeMap<String, u64>,
}

/// Has the kernel take a cache's free objects from where processors keep them: it counts those as in use.
fn settle(cache: &str) {
    let path = format!("/sys/kernel/slab/{cache}/shrink");
    match std::fs::write(&path, "1") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => eprintln!("{path} cannot be written: {error}"),
        _ => {} // merged with another cache, or with an allocator that has no such file
    }
}

fn entries(directory: &str) -> u64 {
    std::fs::read_dir(directory).into_iter().flatten().count() as u64
}

fn lines(path: &str) -> u64 {
    std::fs::read_to_string(path).unwrap_or_default().lines().count() as u64
}

fn files_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| 1 + if entry.path().is_dir() { files_below(&entry.path()) } else { 0 }).sum()
}

impl Census {
    /// Counts for this process and this keeper; `directories` are the backend's.
    pub fn take(keeper: i32, directories: &[&Path]) -> Self {
        let own = std::process::id();
        let mut exact = BTreeMap::new();
        for (who, pid) in [("agent", own), ("keeper", keeper.unsigned_abs())] {
            exact.insert(format!("threads of the {who}"), entries(&format!("/proc/{pid}/task")));
            exact.insert(format!("descriptors of the {who}"), entries(&format!("/proc/{pid}/fd")));
        }
        exact.insert("mounts of the keeper".into(), lines(&format!("/proc/{keeper}/mountinfo")));
        exact.insert("children of the keeper".into(), children(keeper));
        let paths: Vec<String> = directories.iter().map(|path| path.display().to_string()).collect();
        let ours = |text: &str| text.lines().filter(|line| paths.iter().any(|path| line.contains(path))).count() as u64;
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
        exact.insert("named sockets".into(), ours(&sockets));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        exact.insert("mounts of the host".into(), ours(&mounts));
        exact.insert("files".into(), directories.iter().map(|path| files_below(path)).sum());

        let mut machine = BTreeMap::new();
        machine.insert("unnamed sockets".into(), sockets.lines().count() as u64);
        machine.insert("links".into(), entries("/sys/class/net"));
        OBJECTS.iter().for_each(|name| settle(name));
        let slabs = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
        for line in slabs.lines() {
            let mut fields = line.split_whitespace();
            if let (Some(name), Some(active)) = (fields.next(), fields.next())
                && OBJECTS.contains(&name)
            {
                machine.insert(format!("slab {name}"), active.parse().unwrap_or(0));
            }
        }
        for line in std::fs::read_to_string("/proc/cgroups").unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let [name, _, count, _] = fields[..] {
                machine.insert(format!("cgroups of {name}"), count.parse().unwrap_or(0));
            }
        }
        Self { exact, machine }
    }

    /// What is more than before: anything of the exact ones, more than `slack` of the machine's.
    pub fn more_than(&self, before: &Self, slack: u64) -> Vec<String> {
        let differences = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>, slack: u64| {
            let more = now.iter().filter(move |(what, count)| **count > then.get(*what).copied().unwrap_or(0) + slack);
            more.map(|(what, count)| format!("{what}: {count}, were {:?}", then.get(what))).collect::<Vec<_>>()
        };
        let mut all = differences(&self.exact, &before.exact, 0);
        all.extend(differences(&self.machine, &before.machine, slack));
        all
    }
}

fn children(parent: i32) -> u64 {
    let path = format!("/proc/{parent}/task/{parent}/children");
    std::fs::read_to_string(path).unwrap_or_default().split_whitespace().count() as u64
}

/// Has the kernel give up what it keeps only because it may.
///
/// A control group that is gone stays in the kernel's books until no page in the caches is charged to it: the file system's
/// own tables among them, which are first read in by whoever happens to need them. Each such group costs some 50 to 100 KiB
/// (a kilobyte for 64 superblocks that the host has ever had at a time), counted as memory that cannot be reclaimed, though
/// it goes with the page. What is left after this is held by somebody.
pub fn reclaim() {
    rustix::fs::sync();
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3") {
        eprintln!("the caches cannot be dropped: {error}");
    }
}

/// Kernel memory that cannot be reclaimed, in bytes.
pub fn kernel_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    let kib: u64 = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    kib * 1024
}
