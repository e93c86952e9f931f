//! What a power cut makes of a store whose process has just died: changes that no sync had made last are undone, or half there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use image_snapshot::store::faults::{Change, read_trace};

/// What becomes of bytes and of directory entries that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Names stay; bytes are gone.
    Emptied,
    /// Names stay; half of the bytes are there.
    Halved,
    /// Names stay; bytes read as zeros.
    Zeroed,
    /// Names are as before.
    Undone,
    /// Every other name is as before; half of the bytes are there.
    Mixed,
}

pub(crate) const CUTS: [Cut; 5] = [Cut::Emptied, Cut::Halved, Cut::Zeroed, Cut::Undone, Cut::Mixed];

/// Does it to the store; says how many files and entries it changed.
pub(crate) fn cut(store: &Path, trace: &Path, how: Cut) -> usize {
    let changes = read_trace(trace);
    let mut dirty = BTreeSet::new();
    let mut entries: Vec<&Change> = Vec::new();
    for change in &changes {
        match change {
            Change::Created(file) => drop(dirty.insert(*file)),
            Change::Synced(file) => drop(dirty.remove(file)),
            Change::Renamed { .. } | Change::Removed { .. } => entries.push(change),
            Change::DirSynced(dir) => entries.retain(|entry| place(entry).parent() != Some(dir)),
        }
    }
    let mut changed = 0;
    if matches!(how, Cut::Undone | Cut::Mixed) {
        for (index, entry) in entries.iter().enumerate().rev() {
            if how == Cut::Undone || index % 2 == 0 {
                changed += usize::from(undo(trace, entry));
            }
        }
    }
    let files = files(store);
    for path in dirty.iter().filter_map(|file| files.get(file)) {
        changed += 1;
        let bytes = fs::read(path).unwrap();
        match how {
            Cut::Emptied => fs::write(path, b""),
            Cut::Zeroed => fs::write(path, vec![0; bytes.len()]),
            Cut::Halved | Cut::Mixed | Cut::Undone => fs::write(path, &bytes[..bytes.len() / 2]),
        }
        .unwrap();
    }
    changed
}

fn place(entry: &Change) -> &Path {
    match entry {
        Change::Renamed { to, .. } => to,
        Change::Removed { path, .. } => path,
        Change::Created(_) | Change::Synced(_) | Change::DirSynced(_) => Path::new(""),
    }
}

/// Undoes a change of a name, unless a later one stands in the way.
fn undo(trace: &Path, entry: &Change) -> bool {
    match entry {
        Change::Renamed { file, from, to, old } => {
            if fs::symlink_metadata(to).map(|meta| meta.ino()).ok() != Some(*file) || from.exists() {
                return false;
            }
            fs::rename(to, from).unwrap();
            if let Some(old) = old {
                fs::hard_link(trace.join(old), to).unwrap();
            }
            true
        }
        Change::Removed { path, old } => !path.exists() && fs::hard_link(trace.join(old), path).is_ok(),
        Change::Created(_) | Change::Synced(_) | Change::DirSynced(_) => false,
    }
}

/// All files by inode number.
fn files(store: &Path) -> BTreeMap<u64, PathBuf> {
    let (mut out, mut todo) = (BTreeMap::new(), vec![store.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            } else {
                out.insert(entry.metadata().unwrap().ino(), entry.path());
            }
        }
    }
    out
}
