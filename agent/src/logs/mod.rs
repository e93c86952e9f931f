//! Container logs as a kubelet serves them: from CRI log files, over rotations, live while a container runs.
//!
//! [`attempt`] decides whose log is meant, [`select`] decides, purely, what of an entry is shown; [`follow`] reads and waits; the files themselves are read by the
//! sandbox crate's reader, which knows how its shim rotates them.

pub mod attempt;
pub mod follow;
pub mod select;

use std::path::Path;

use sandbox::shim::log::LogReader;

use self::select::{Selection, Selector};

/// What a kubelet takes of a log as a termination message.
const LAST_BYTES: usize = 2048;
const LAST_LINES: usize = 80;

/// The end of an attempt's log: at most 80 lines and 2048 bytes. Empty when there is none. Blocking.
pub fn last_words(directory: &Path, attempt: u32) -> String {
    let Ok(mut reader) = LogReader::open(directory, attempt) else { return String::new() };
    let mut selector = Selector::new(Selection { tail: Some(LAST_LINES), ..Selection::default() });
    let read = reader.read(&mut |entry| {
        selector.take(entry);
        true
    });
    if read.is_err() {
        return String::new();
    }
    let bytes = selector.finish_tail();
    let start = bytes.len().saturating_sub(LAST_BYTES);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

/// Removes the files of an old attempt. Blocking; what cannot be removed stays until the pod is forgotten.
pub fn remove(directory: &Path, attempt: u32) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let current = format!("{attempt}.log");
    let rotated = format!("{attempt}.log.");
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| n == current || n.starts_with(&rotated))
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(%error, "an old log file stays");
        }
    }
}
