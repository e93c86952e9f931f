//! Up to where the events of each boot of each host were read: kept in a file, so that a restart does not tell them again.
//!
//! The file may be some seconds behind: then a few events are told twice, which their sinks count together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::durable;

/// Boots that are kept: a host that boots once a day for a year.
const MOST: usize = 512;

#[derive(Debug)]
pub(super) struct Cursors {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: BTreeMap<String, u64>,
    changed: bool,
}

impl Cursors {
    /// Of this state directory. A file that cannot be read costs repeated events only.
    pub(super) fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("event-cursors.json");
        let seen = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        };
        Self { path, state: Mutex::new(State { seen, changed: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &str) -> u64 {
        self.state().seen.get(key).copied().unwrap_or(0)
    }

    pub(super) fn advance(&self, key: &str, seq: u64) {
        let mut state = self.state();
        let known = state.seen.entry(key.to_owned()).or_default();
        if seq > *known {
            *known = seq;
            state.changed = true;
        }
    }

    /// Only this boot of a host counts any more.
    pub(super) fn forget_other_boots(&self, host: &str, key: &str) {
        let prefix = format!("{host}/");
        let mut state = self.state();
        let before = state.seen.len();
        state.seen.retain(|known, _| known == key || !known.starts_with(&prefix));
        while state.seen.len() > MOST {
            state.seen.pop_first();
        }
        state.changed |= state.seen.len() != before;
    }

    /// Writes the file if anything changed.
    pub(super) fn save(&self) {
        let bytes = {
            let mut state = self.state();
            if !std::mem::take(&mut state.changed) {
                return;
            }
            serde_json::to_vec(&state.seen)
        };
        let written = bytes.map_err(std::io::Error::from).and_then(|bytes| durable::replace(&self.path, &bytes));
        if let Err(error) = written {
            tracing::warn!(error = &error as &dyn std::error::Error, "event cursors could not be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_and_never_go_back() {
        let dir = tempfile::tempdir().unwrap();
        let cursors = Cursors::open(dir.path());
        cursors.advance("h/boot-1", 7);
        cursors.advance("h/boot-1", 3);
        cursors.save();
        let again = Cursors::open(dir.path());
        assert_eq!(again.get("h/boot-1"), 7);
        again.forget_other_boots("h", "h/boot-2");
        assert_eq!(again.get("h/boot-1"), 0);
    }
}
