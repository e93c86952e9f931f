//! What the kernel says, again and again: which sandboxes exist, and in which of them a container's process is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tests::stack::Stack;
use tests::stack::kernel::{cgroup_of, has_container_processes};

use super::now;

/// Pause between two looks.
const PERIOD: Duration = Duration::from_millis(4);

/// Of one sandbox. A first instant was read after the look that found it so, a last one before it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// It exists.
    pub(crate) first: u64,
    /// It, or its control group, exists.
    pub(crate) last: u64,
    /// A container's process was in it at this instant.
    pub(crate) ran: Option<(u64, u64)>,
    cgroup: Cgroup,
}

/// Where to look for its processes.
#[derive(Debug, Clone, Default)]
enum Cgroup {
    #[default]
    Unknown,
    Known(PathBuf),
    /// Never looked at again: its name may come again, for another sandbox.
    Gone,
}

/// The thread that looks.
pub(crate) struct Witness {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<String, Seen>>,
}

impl Witness {
    pub(crate) fn of(stack: &Stack) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (asked, sandboxes, parent) = (stop.clone(), stack.sandboxes(), stack.cgroup_parent());
        let thread = std::thread::spawn(move || {
            let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
            while !asked.load(Ordering::Relaxed) {
                look(&sandboxes, &parent, &mut seen);
                std::thread::sleep(PERIOD);
            }
            seen
        });
        Self { stop, thread }
    }

    /// What was seen until now.
    pub(crate) fn end(self) -> BTreeMap<String, Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the witness does not panic")
    }
}

fn look(sandboxes: &std::path::Path, parent: &std::path::Path, seen: &mut BTreeMap<String, Seen>) {
    let before = now();
    let Ok(entries) = std::fs::read_dir(sandboxes) else { return };
    let names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let after = now();
    for name in names {
        let known = seen.entry(name.clone()).or_insert_with(|| Seen { first: after, ..Seen::default() });
        known.last = before;
        if let (Cgroup::Unknown, Some(path)) = (&known.cgroup, cgroup_of(parent, &sandboxes.join(&name))) {
            known.cgroup = Cgroup::Known(path);
        }
    }
    for known in seen.values_mut() {
        let Cgroup::Known(cgroup) = &known.cgroup else { continue };
        let before = now();
        if has_container_processes(cgroup) {
            let first = known.ran.map_or_else(now, |(first, _)| first);
            known.ran = Some((first, before));
        }
        if cgroup.is_dir() {
            known.last = known.last.max(before);
        } else {
            known.cgroup = Cgroup::Gone;
        }
    }
}
