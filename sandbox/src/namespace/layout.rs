//! What the backend keeps on disk.
//!
//! ```text
//! RUN_DIR/                     0700, on a file system that a reboot empties
//!   lock                       held while a backend is open
//!   keeper.sock                the keeper's
//!   ids/<index>                a claimed range of ids: index * 65536 ..; names the slot `slot-<index>`
//!   pool/<slot>/               a warm slot; renamed into sandboxes/ when it is taken
//!   sandboxes/<id>/            a sandbox
//!     slot.json                [`Slot`], written before anything of it exists in the kernel
//!     spec.json                its SandboxSpec, once configured
//!     shim.sock                its shim's socket
//!     record/                  the shim's event record: of this boot's processes, so of no use to the next boot
//!   trash/<slot>/              what is being deleted
//! ```
//!
//! A slot's range of ids is claimed first and given back last, so whatever exists of a slot at whichever crash is found by
//! its claim. `slot-<index>` is also the name of its cgroup.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ids::{IDS, Ids};
use crate::spec::{Namespaces, SandboxId};

/// Ranges given out: host ids from 2^29 to 2^31, above everything that distributions give to users.
const FIRST: u32 = 1 << 13;
const LAST: u32 = (1 << 15) - 1;

/// A slot, as written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot {
    /// `slot-<index>`; also the name of its cgroup.
    pub(crate) name: String,
    /// Which range of ids.
    pub(crate) index: u32,
    /// What its shim was started with.
    #[serde(default)]
    pub(crate) namespaces: Namespaces,
}

impl Slot {
    /// The usual slot of this range.
    fn numbered(index: u32) -> Self {
        Self { name: format!("slot-{index}"), index, namespaces: Namespaces::default() }
    }

    /// The host's id of the sandbox's root.
    pub(crate) fn uid_base(&self) -> u32 {
        self.index * IDS
    }
}

/// The run directory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) run: PathBuf,
}

impl Layout {
    /// Makes the directories and takes the lock; `WouldBlock` when another backend holds it.
    pub(crate) fn open(run: &Path) -> io::Result<(Self, File)> {
        for directory in [run.to_owned(), run.join("ids"), run.join("pool"), run.join("sandboxes"), run.join("trash")] {
            DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            close(&directory)?;
        }
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(run.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok((Self { run: run.to_owned() }, lock))
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.run.join("sandboxes").join(&id.0)
    }

    pub(crate) fn warm(&self, slot: &Slot) -> PathBuf {
        self.run.join("pool").join(&slot.name)
    }

    pub(crate) fn trash(&self, slot: &Slot) -> PathBuf {
        self.run.join("trash").join(&slot.name)
    }

    /// Claims a free range, looking from a random place on (so that ids are not soon used again).
    pub(crate) fn claim(&self, namespaces: &Namespaces) -> io::Result<Slot> {
        let count = LAST - FIRST + 1;
        let start = u32::from_ne_bytes(uuid::Uuid::new_v4().into_bytes()[..4].try_into().unwrap_or_default());
        for step in 0..count {
            let index = FIRST + (start % count + step) % count;
            if Ids::avoids(index, namespaces) {
                continue;
            }
            let claim = self.run.join("ids").join(index.to_string());
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(claim) {
                Ok(_) => return Ok(Slot::numbered(index)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("every range of ids is in use"))
    }

    /// Gives a range back.
    pub(crate) fn release(&self, slot: &Slot) -> io::Result<()> {
        unless_absent(fs::remove_file(self.run.join("ids").join(slot.index.to_string())))
    }

    /// Every claimed slot.
    pub(crate) fn claimed(&self) -> io::Result<Vec<Slot>> {
        let names = names(&self.run.join("ids"))?;
        let indexes = names.iter().filter_map(|name| name.parse().ok());
        Ok(indexes.map(Slot::numbered).collect())
    }

    /// Warm slots, or what is left of them: those whose claim is the only certain thing have no directory here.
    pub(crate) fn warm_slots(&self) -> io::Result<Vec<String>> {
        names(&self.run.join("pool"))
    }

    /// Sandboxes.
    pub(crate) fn sandboxes(&self) -> io::Result<Vec<SandboxId>> {
        Ok(names(&self.run.join("sandboxes"))?.into_iter().map(SandboxId).collect())
    }

    /// A sandbox's slot; `None` when there is no such sandbox.
    pub(crate) fn slot(&self, id: &SandboxId) -> io::Result<Option<Slot>> {
        read_json(&self.sandbox(id).join("slot.json"))
    }
}

/// Takes from others what they were given in a directory that was there before: what is made in it must be nobody else's
/// to read or to replace (CVE-2024-25621). To pass through is theirs, for the agent's directory may be this one.
fn close(directory: &Path) -> io::Result<()> {
    let mode = fs::metadata(directory)?.permissions().mode() & 0o7777;
    if mode & 0o066 != 0 {
        fs::set_permissions(directory, fs::Permissions::from_mode(mode & !0o066))?;
    }
    Ok(())
}

/// Names in a directory, sorted.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Reads a JSON file; `None` when it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a JSON file so that it is there whole or not at all, whatever happens.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_data()?;
    fs::rename(&temporary, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Makes the file that [`fill_json`] is to fill for `path`, at leisure.
pub(crate) fn reserve(path: &Path) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    OpenOptions::new().create(true).append(true).mode(0o600).open(temporary).map(drop)
}

/// As [`write_json`], where the file was reserved: it takes a third of the time. What the machine's end leaves of it is of no
/// consequence, as the run directory does not outlive that.
pub(crate) fn fill_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    match OpenOptions::new().truncate(true).write(true).open(&temporary) {
        Ok(mut reserved) => {
            reserved.write_all(&serde_json::to_vec(value)?)?;
            fs::rename(&temporary, path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => write_json(path, value),
        Err(error) => Err(error),
    }
}

/// Makes a private directory; one that is there is as good.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens a directory.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

/// What is not there is removed.
pub(crate) fn unless_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(dir: &Path) -> (Layout, File) {
        Layout::open(&dir.join("run")).unwrap()
    }

    #[test]
    fn a_range_of_ids_is_never_claimed_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, _lock) = layout(dir.path());
        let mut indexes: Vec<u32> = (0..100).map(|_| layout.claim(&Namespaces::default()).unwrap().index).collect();
        indexes.sort_unstable();
        indexes.dedup();
        assert_eq!(indexes.len(), 100);
        assert_eq!(layout.claimed().unwrap().len(), 100);
        let slot = layout.claimed().unwrap().remove(0);
        assert!(slot.uid_base() >= 1 << 29 && slot.uid_base().checked_add(IDS).is_some_and(|end| end <= 1 << 31));
        layout.release(&slot).unwrap();
        layout.release(&slot).unwrap();
        assert_eq!(layout.claimed().unwrap().len(), 99);
    }

    #[test]
    fn a_reserved_file_is_nothing_until_it_is_filled_and_then_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        let read = || read_json::<String>(&path).unwrap();
        // By an agent that reserved none.
        fill_json(&path, &"none was reserved").unwrap();
        assert_eq!(read().as_deref(), Some("none was reserved"));
        fs::remove_file(&path).unwrap();
        reserve(&path).unwrap();
        assert_eq!(read(), None);
        // Whoever was killed on the way has left something.
        fs::write(path.with_extension("tmp"), "\"half of what is longer than").unwrap();
        assert_eq!(read(), None);
        fill_json(&path, &"first").unwrap();
        assert_eq!(read().as_deref(), Some("first"));
        fill_json(&path, &"second").unwrap();
        assert_eq!(read().as_deref(), Some("second"));
        assert_eq!(names(dir.path()).unwrap(), ["spec.json"]);
    }

    #[test]
    fn a_second_backend_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (_layout, lock) = layout(dir.path());
        let second = Layout::open(&dir.path().join("run"));
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        layout(dir.path());
    }
}
