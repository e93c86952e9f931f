//! What is on the host of one backend: by its directories, cgroups and processes, not by what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal, kill_process};

use super::words::SetUp;

/// One look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Slot by sandbox; a sandbox's directory without a record has none.
    pub sandboxes: BTreeMap<String, Option<String>>,
    pub pool: BTreeSet<String>,
    claimed: BTreeSet<String>,
    trash: BTreeSet<String>,
    /// Of every hierarchy.
    groups: BTreeMap<PathBuf, BTreeSet<String>>,
    /// Slots by whose cgroups hold processes.
    populated: BTreeSet<String>,
    keepers: usize,
    mounts: Vec<String>,
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn slot_in(directory: &Path) -> Option<String> {
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(directory.join("slot.json")).ok()?).ok()?;
    Some(record["name"].as_str()?.to_owned())
}

/// Where the pods' cgroups are, in every hierarchy.
pub fn group_parents(set_up: &SetUp) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let parents = hierarchies.chain([root.to_owned()]).map(|path| path.join(&set_up.cgroup_parent));
    // A link (cpu -> cpu,cpuacct) is not another hierarchy.
    let distinct: BTreeSet<PathBuf> = parents.filter_map(|path| path.canonicalize().ok()).collect();
    distinct.into_iter().collect()
}

/// Whether pods have groups of their own in the hierarchy of this one; in others all are in one, to be shown it.
fn has_pods(parent: &Path) -> bool {
    static ROOTS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let layout = sandbox::cgroup::Layout::detect().unwrap();
        layout.v1.into_iter().map(|hierarchy| hierarchy.path).chain(layout.unified).collect()
    });
    roots.iter().any(|root| parent.starts_with(root))
}

impl Place {
    pub fn look(set_up: &SetUp) -> Self {
        let run = &set_up.run_dir;
        let sandboxes = names(&run.join("sandboxes"));
        let mut place = Self {
            sandboxes: sandboxes
                .into_iter()
                .map(|id| {
                    let slot = slot_in(&run.join("sandboxes").join(&id));
                    (id, slot)
                })
                .collect(),
            pool: names(&run.join("pool")),
            claimed: names(&run.join("ids")).into_iter().map(|index| format!("slot-{index}")).collect(),
            trash: names(&run.join("trash")),
            ..Self::default()
        };
        for parent in group_parents(set_up) {
            let children = std::fs::read_dir(&parent).into_iter().flatten().flatten();
            let children = children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let children: BTreeSet<String> =
                children.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            // Where pods have no groups of their own, none may be.
            if has_pods(&parent) || !children.is_empty() {
                place.groups.insert(parent, children);
            }
        }
        let run = run.display().to_string();
        let mark = format!("/{}/", set_up.cgroup_parent);
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            place.keepers += usize::from(command.contains("keeper\0--run-dir") && command.contains(&run));
            let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if entry.file_name().to_string_lossy().parse::<u32>().is_ok()
                && let Some((_, rest)) = groups.split_once(&mark)
            {
                place.populated.insert(rest.split(['/', '\n']).next().unwrap_or_default().to_owned());
            }
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        place.mounts = table.lines().filter(|line| line.contains(&run)).map(str::to_owned).collect();
        place
    }

    /// What does not fit: slots that nobody has, or whose parts are missing.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut owned: BTreeSet<String> = self.pool.clone();
        for (id, slot) in &self.sandboxes {
            match slot {
                Some(slot) => drop(owned.insert(slot.clone())),
                None => faults.push(format!("sandbox {id} has no record")),
            }
        }
        let mut compare = |what: &str, found: &BTreeSet<String>| {
            let missing: Vec<&String> = owned.difference(found).collect();
            let orphans: Vec<&String> = found.difference(&owned).collect();
            if !missing.is_empty() || !orphans.is_empty() {
                faults.push(format!("{what}: nobody's: {orphans:?}, missing: {missing:?}"));
            }
        };
        compare("ranges of ids", &self.claimed);
        for (parent, found) in &self.groups {
            compare(&parent.display().to_string(), found);
        }
        let strangers: Vec<&String> = self.populated.difference(&owned).collect();
        if !strangers.is_empty() {
            faults.push(format!("processes in cgroups of nobody: {strangers:?}"));
        }
        if !self.trash.is_empty() {
            faults.push(format!("trash: {:?}", self.trash));
        }
        if self.keepers > 1 {
            faults.push(format!("{} keepers", self.keepers));
        }
        faults.extend(self.mounts.iter().map(|mount| format!("mount {mount}")));
        faults
    }

    /// Whether anything of a sandbox is left at all.
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.pool.is_empty() && self.keepers == 0 && self.faults().is_empty()
    }
}

/// The keeper, and its children that have not become shims yet.
pub fn keepers(set_up: &SetUp) -> Vec<Pid> {
    let run = set_up.run_dir.display().to_string();
    let all = commands().into_iter();
    all.filter(|(_, command)| command.contains("keeper\0--run-dir") && command.contains(&run))
        .map(|(pid, _)| pid)
        .collect()
}

/// The keeper alone.
pub fn keeper(set_up: &SetUp) -> Option<Pid> {
    let all = keepers(set_up);
    let parent = |pid: &Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        Pid::from_raw(stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()?)
    };
    all.iter().copied().find(|pid| parent(pid).is_none_or(|parent| !all.contains(&parent)))
}

/// Kills the keeper, if there is one; what works for it goes on.
pub fn kill_keeper(set_up: &SetUp) {
    if let Some(pid) = keeper(set_up) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Kills the keeper with what it has forked that is no shim yet.
pub fn kill_keepers(set_up: &SetUp) {
    for pid in keepers(set_up) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The cgroup in which a slot's stub stands by.
pub fn stub_leaf(set_up: &SetUp, slot: &str) -> Option<PathBuf> {
    let pods = group_parents(set_up).into_iter().map(|parent| parent.join(slot));
    let mut leaves = pods.flat_map(|pod| [pod.join("first"), pod.join("containers/first")]);
    leaves.find(|leaf| leaf.is_dir())
}

/// Kills a slot's stub that stands by. On v2 who lends it memory is in its leaf too, but has no PID namespace of its own.
pub fn kill_stub(set_up: &SetUp, slot: &str) -> bool {
    let Some(leaf) = stub_leaf(set_up, slot) else { return false };
    let members = std::fs::read_to_string(leaf.join("cgroup.procs")).unwrap_or_default();
    let members = members.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    let stub = members.max_by_key(|pid| numbers(*pid).len());
    stub.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
}

/// A process's numbers: the host's, then that of each PID namespace within.
fn numbers(pid: Pid) -> Vec<String> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    numbers.split_whitespace().map(str::to_owned).collect()
}

/// Kills a slot's shim: the first process of its PID namespace, one below the host's.
pub fn kill_shim(set_up: &SetUp, slot: &str) -> bool {
    let (name, mark) = (format!("\"slot\":\"{slot}\""), format!("/{}/{slot}", set_up.cgroup_parent));
    for (pid, command) in commands() {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap_or_default();
        // On v2 in a leaf of it.
        let within =
            |line: &str| line.split_once(&mark).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('/'));
        if !command.contains(&name) || !groups.lines().any(within) {
            continue;
        }
        let numbers = numbers(pid);
        if numbers.len() == 2 && numbers[1] == "1" {
            return kill_process(pid, Signal::KILL).is_ok();
        }
    }
    false
}

fn commands() -> Vec<(Pid, String)> {
    let mut commands = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if let Some(pid) = number {
            commands.push((pid, String::from_utf8_lossy(&command).into_owned()));
        }
    }
    commands
}
