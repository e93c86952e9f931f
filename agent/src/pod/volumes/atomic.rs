//! Writes a content volume in the kubelet's layout.
//!
//! ```text
//! VOLUME/..2026_11_21_03_25_59.123456789/a/b     real files
//! VOLUME/..data -> ..2026_11_21_03_25_59.123456789     swapped by one rename
//! VOLUME/a -> ..data/a
//! ```
//!
//! Owners are written as the pod names them, and appear so by the mount's mapping. Where the file system has none (tmpfs
//! before Linux 6.3), the sandbox has changed owners in the volume itself by the time that content is replaced: the owner of
//! VOLUME is what the pod's id 0 is there, and what is written keeps to that.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::content::Files;

/// Why a volume could not be written.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} {path:?}")]
pub struct WriteError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError { operation, path, source }
}

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
/// How many ids a pod has.
const SANDBOX_IDS: u32 = 65_536;

/// Makes the volume hold exactly these files. `group`: the pod's fsGroup. Nothing happens when it holds them already.
/// The directory must be the agent's own: nobody else may write in it.
pub fn write(volume: &Path, files: &Files, group: Option<u32>, wall_ns: u64) -> Result<(), WriteError> {
    make_directory(volume, 0o755, Owner { root: 0, user: 0, group })?;
    // Shifted or not, see above.
    let root = fs::symlink_metadata(volume).map_err(failed("look at", volume))?.uid();
    let owner = Owner { root, user: 0, group };
    let current = fs::read_link(volume.join(DATA)).ok();
    if let Some(current) = &current
        && holds(&volume.join(current), files)
    {
        return link_names(volume, files, owner);
    }
    let name = stamp(wall_ns);
    let fresh = volume.join(&name);
    make_directory(&fresh, 0o755, owner)?;
    for (path, file) in files {
        let target = fresh.join(path);
        let mut parent = fresh.clone();
        if let Some(inner) = Path::new(path).parent() {
            for part in inner.components() {
                parent.push(part);
                make_directory(&parent, 0o755, owner)?;
            }
        }
        // A pod in the group may read what its author gave it, whatever the mode says of others.
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        let mut handle = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&target)
            .map_err(failed("create", &target))?;
        handle.write_all(&file.bytes).map_err(failed("write", &target))?;
        give(&target, Owner { user: file.owner, ..owner })?;
        handle.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("set mode of", &target))?;
    }
    let link = volume.join(NEW_DATA);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &link)(error)),
        _ => {}
    }
    std::os::unix::fs::symlink(&name, &link).map_err(failed("link", &link))?;
    give(&link, owner)?;
    let data = volume.join(DATA);
    fs::rename(&link, &data).map_err(failed("swap", &data))?;
    link_names(volume, files, owner)?;
    remove_old(volume, &name)
}

/// Writes one plain file of the agent's own, replacing it in one rename.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), WriteError> {
    let fresh = path.with_extension("new");
    let mut handle = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&fresh)
        .map_err(failed("create", &fresh))?;
    handle.write_all(bytes).map_err(failed("write", &fresh))?;
    handle.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("set mode of", &fresh))?;
    fs::rename(&fresh, path).map_err(failed("rename", path))
}

/// Whose something is: ids as the pod has them, above what its id 0 is on this file system.
#[derive(Clone, Copy)]
struct Owner {
    root: u32,
    user: u32,
    group: Option<u32>,
}

/// Makes a directory; one that is there stays as it is.
fn make_directory(path: &Path, mode: u32, owner: Owner) -> Result<(), WriteError> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("make directory", path)(error)),
        Ok(()) => {
            give(path, owner)?;
            let mode = if owner.group.is_some() { mode | 0o2050 } else { mode };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set mode of", path))?;
        }
    }
    Ok(())
}

fn give(path: &Path, owner: Owner) -> Result<(), WriteError> {
    // Ids that no sandbox has stay what they are: nobody's.
    let here = |id: u32| if id < SANDBOX_IDS { owner.root.saturating_add(id) } else { id };
    let (user, group) = (here(owner.user), here(owner.group.unwrap_or(0)));
    if (user, group) == (0, 0) {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(failed("give owner to", path))
}

fn holds(directory: &Path, files: &Files) -> bool {
    let mut found = 0;
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        let Ok(entries) = fs::read_dir(&next) else { return false };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                pending.push(path);
                continue;
            }
            let Some(relative) = path.strip_prefix(directory).ok().and_then(Path::to_str) else { return false };
            let Some(file) = files.get(relative) else { return false };
            let same = fs::metadata(&path).is_ok_and(|m| m.len() == file.bytes.len() as u64)
                && fs::read(&path).is_ok_and(|bytes| bytes == file.bytes);
            if !same {
                return false;
            }
            found += 1;
        }
    }
    found == files.len()
}

/// One link for each first part of a path; links of paths that are gone are removed.
fn link_names(volume: &Path, files: &Files, owner: Owner) -> Result<(), WriteError> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = volume.join(name);
        match std::os::unix::fs::symlink(Path::new(DATA).join(name), &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("link", &link)(error)),
            Ok(()) => give(&link, owner)?,
        }
    }
    for entry in fs::read_dir(volume).map_err(failed("list", volume))?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !wanted.contains(name) {
            fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn remove_old(volume: &Path, keep: &str) -> Result<(), WriteError> {
    for entry in fs::read_dir(volume).map_err(failed("list", volume))?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("..2") && name != keep {
            fs::remove_dir_all(entry.path()).map_err(failed("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn stamp(wall_ns: u64) -> String {
    let seconds = i64::try_from(wall_ns / crate::clock::SECOND).unwrap_or_default();
    let text = jiff::Timestamp::from_second(seconds)
        .map(|t| t.strftime("..%Y_%m_%d_%H_%M_%S").to_string())
        .unwrap_or_else(|_| "..2000_01_01_00_00_00".to_owned());
    format!("{text}.{:09}", wall_ns % crate::clock::SECOND)
}

#[cfg(test)]
mod tests {
    use super::super::content::File;
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        pairs
            .iter()
            .map(|(path, text)| ((*path).to_owned(), File { bytes: text.as_bytes().to_vec(), mode: 0o640, owner: 0 }))
            .collect()
    }

    #[test]
    fn a_volume_is_swapped_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        write(&volume, &files(&[("a", "1"), ("d/b", "2")]), None, 1_700_000_000_000_000_001).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(volume.join("d/b")).unwrap(), "2");
        assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
        let before = fs::read_link(volume.join("..data")).unwrap();
        assert_eq!(before, Path::new("..2023_11_14_22_13_20.000000001"));
        // A reader that holds the old directory open still sees old content; names that went are gone.
        write(&volume, &files(&[("a", "3")]), None, 1_700_000_001_000_000_000).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(!volume.join("d").exists() && !volume.join(&before).exists());
        let mode = fs::metadata(volume.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn privileged_what_replaces_content_keeps_to_the_owner_of_the_volume() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED privileged_what_replaces_content_keeps_to_the_owner_of_the_volume: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        let mut content = files(&[("d/a", "1")]);
        content.get_mut("d/a").unwrap().owner = 1000;
        let owners = |path: &str| {
            let data = fs::symlink_metadata(volume.join(path)).unwrap();
            (data.uid(), data.gid(), data.mode() & 0o7777)
        };
        write(&volume, &content, Some(2000), 1_700_000_000_000_000_000).unwrap();
        assert_eq!(owners("..data/d/a"), (1000, 2000, 0o640));
        assert_eq!(owners("..data/d"), (0, 2000, 0o2755));
        // As a sandbox does where the mount cannot shift.
        let base = 1 << 29;
        std::os::unix::fs::chown(&volume, Some(base), Some(base + 2000)).unwrap();
        content.get_mut("d/a").unwrap().bytes = b"2".to_vec();
        write(&volume, &content, Some(2000), 1_700_000_001_000_000_000).unwrap();
        assert_eq!(owners("..data/d/a"), (base + 1000, base + 2000, 0o640));
        assert_eq!(owners("..data/d"), (base, base + 2000, 0o2755));
        assert_eq!(owners("..data").0, base);
        write(&volume, &files(&[("b", "1")]), Some(70_000), 1_700_000_002_000_000_000).unwrap();
        assert_eq!(owners("..data/b"), (base, 70_000, 0o640), "no id of another sandbox's");
        assert_eq!(owners("b").0, base);
    }

    #[test]
    fn the_same_content_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        let content = files(&[("a", "1"), ("d/b", "2")]);
        write(&volume, &content, None, 1_700_000_000_000_000_000).unwrap();
        let before = fs::read_link(volume.join("..data")).unwrap();
        write(&volume, &content, None, 1_800_000_000_000_000_000).unwrap();
        assert_eq!(fs::read_link(volume.join("..data")).unwrap(), before);
    }

    #[test]
    fn a_write_that_was_cut_off_is_completed_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir_all(volume.join("..2023_01_01_00_00_00.000000000")).unwrap();
        std::os::unix::fs::symlink("..2023_01_01_00_00_00.000000000", volume.join("..data_tmp")).unwrap();
        write(&volume, &files(&[("a", "1")]), None, 1_700_000_000_000_000_000).unwrap();
        let names: BTreeSet<String> =
            fs::read_dir(&volume).unwrap().flatten().map(|e| e.file_name().into_string().unwrap()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}
