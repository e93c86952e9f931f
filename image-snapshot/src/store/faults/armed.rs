//! The body of the steps, for tests only.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use super::{Point, TRACE, VARIABLE};

static PASSED: [AtomicU32; Point::ALL.len()] = [const { AtomicU32::new(0) }; Point::ALL.len()];

/// One change, by inode number where a file is meant. A line of JSON in the trace's file `changes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A file was made.
    Created(u64),
    /// Its bytes are on the disk.
    Synced(u64),
    /// It was renamed; the file that was at `to` is kept as `old` in the trace's directory.
    Renamed {
        /// Which.
        file: u64,
        /// From.
        from: PathBuf,
        /// To.
        to: PathBuf,
        /// Name of what was there.
        old: Option<String>,
    },
    /// A file was removed; it is kept as `old` in the trace's directory.
    Removed {
        /// Where it was.
        path: PathBuf,
        /// Name of what was there.
        old: String,
    },
    /// The directory's entries are on the disk.
    DirSynced(PathBuf),
}

fn armed() -> Option<&'static (String, u32)> {
    static ARMED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    let read = || {
        let value = std::env::var(VARIABLE).ok()?;
        let (step, count) = value.rsplit_once(':')?;
        Some((step.to_owned(), count.parse().ok()?))
    };
    ARMED.get_or_init(read).as_ref()
}

pub(crate) fn pass(point: Point) {
    let count = PASSED[point as usize].fetch_add(1, Ordering::SeqCst) + 1;
    if armed().is_some_and(|(step, at)| step == point.name() && *at == count) {
        loop {
            // Until it has taken effect, this thread does nothing more.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

/// How often each step has been passed in this process.
pub fn passed() -> Vec<(&'static str, u32)> {
    Point::ALL.iter().map(|p| (p.name(), PASSED[*p as usize].load(Ordering::SeqCst))).collect()
}

/// The log that a process left in `dir`, its last line perhaps torn.
pub fn read_trace(dir: &Path) -> Vec<Change> {
    let text = fs::read_to_string(dir.join("changes")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

struct Trace {
    dir: PathBuf,
    log: Mutex<File>,
}

static OLD: AtomicU64 = AtomicU64::new(0);

fn trace() -> Option<&'static Trace> {
    static OPENED: OnceLock<Option<Trace>> = OnceLock::new();
    let open = || {
        let dir = PathBuf::from(std::env::var_os(TRACE)?);
        let log = OpenOptions::new().append(true).create(true).open(dir.join("changes")).ok()?;
        Some(Trace { dir, log: Mutex::new(log) })
    };
    OPENED.get_or_init(open).as_ref()
}

impl Trace {
    fn note(&self, change: &Change) {
        let Ok(mut line) = serde_json::to_string(change) else { return };
        line.push('\n');
        // A log that cannot be written makes the test fail, not the process.
        let _ = self.log.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }

    /// A second name for a file that is about to lose this one.
    fn keep(&self, path: &Path) -> Option<String> {
        let name = format!("old-{}", OLD.fetch_add(1, Ordering::SeqCst));
        fs::hard_link(path, self.dir.join(&name)).ok()?;
        Some(name)
    }
}

fn number(path: &Path) -> u64 {
    fs::symlink_metadata(path).map(|meta| meta.ino()).unwrap_or_default()
}

pub(crate) fn created(file: &File) {
    if let Some(trace) = trace() {
        trace.note(&Change::Created(file.metadata().map(|meta| meta.ino()).unwrap_or_default()));
    }
}

pub(crate) fn synced(file: &File) {
    if let Some(trace) = trace() {
        trace.note(&Change::Synced(file.metadata().map(|meta| meta.ino()).unwrap_or_default()));
    }
}

pub(crate) fn renaming(from: &Path, to: &Path) {
    if let Some(trace) = trace() {
        let (file, old) = (number(from), trace.keep(to));
        trace.note(&Change::Renamed { file, from: from.to_owned(), to: to.to_owned(), old });
    }
}

pub(crate) fn removing(path: &Path) {
    if let Some(trace) = trace()
        && let Some(old) = trace.keep(path)
    {
        trace.note(&Change::Removed { path: path.to_owned(), old });
    }
}

pub(crate) fn dir_synced(dir: &Path) {
    if let Some(trace) = trace() {
        trace.note(&Change::DirSynced(dir.to_owned()));
    }
}
