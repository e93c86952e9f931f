//! Roots made ahead: a warm sandbox has the root of its first container before that is asked for, if it is of the layers that
//! the last ones were of.
//!
//! To mount an overlay over a directory on a disk takes a third of a millisecond, most of it spent on trying out what that
//! directory's file system can do. Whoever starts one container of an image often starts another. So two first containers of
//! the same layers make the pool expect a third, and a warm sandbox gets a writable directory of its own in
//! [`Config::ahead_dir`](super::Config::ahead_dir) and has its stub mount the overlay. A start of these layers then renames
//! that directory to where the container's is to be; any other start does without, and the sandbox gives back what it has.
//!
//! A warm sandbox of which nothing is expected has its writable directory made all the same, as an overlay wants it: three
//! directories on a disk take a tenth of a millisecond or more. The first container of whatever image has it moved to its own.
//!
//! Nothing of this is remembered by a later agent: what it finds in the directory it removes, and a sandbox that has a root
//! made of it makes another one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::slots::Warm;
use super::{Inner, layout, sources};
use crate::contract::SandboxError;
use crate::protocol::shim::Request;
use crate::shim::furnish;
use crate::spec::{ContainerSpec, Layer};
use crate::sys::spread::Spread;

/// The writable directory that a sandbox has ready, or a whole root.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// The layers' identities, lowest first; none: there is a directory only.
    layers: Vec<String>,
    /// The writable directory.
    directory: PathBuf,
}

/// What a container got of what was made ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Given {
    /// Its root: there is nothing left to do for it.
    Root,
    /// Its writable directory at most, which is where it belongs.
    Parts,
}

/// What is expected, and where it is made.
#[derive(Debug)]
pub(crate) struct Roots {
    directory: Option<PathBuf>,
    recent: Mutex<Recent>,
    /// This host's kernel mounts no overlay that is attached nowhere, or its shims know nothing of this.
    impossible: AtomicBool,
}

/// The layers of the last first container, and whether those of the one before were the same.
#[derive(Debug, Default)]
struct Recent {
    layers: Vec<Layer>,
    repeated: bool,
}

impl Recent {
    fn started(&mut self, layers: &[Layer]) {
        self.repeated = same(&self.layers, layers.iter().map(|layer| layer.id.as_str()));
        if !self.repeated {
            self.layers = layers.to_vec();
        }
    }
}

fn same<'a>(layers: &[Layer], ids: impl ExactSizeIterator<Item = &'a str>) -> bool {
    layers.len() == ids.len() && layers.iter().zip(ids).all(|(layer, id)| layer.id == id)
}

impl Ahead {
    /// Whether the container's root would be the same, and its stub the one that stands by.
    fn is_of(&self, container: &ContainerSpec) -> bool {
        let usual = !container.security.host_devices && container.security.devices.is_empty();
        usual
            && container.target.is_none()
            && container.rootfs.writable.is_some()
            && same(&container.rootfs.layers, self.layers.iter().map(String::as_str))
    }

    /// A writable directory is here that no layer has been put under.
    fn is_bare(&self) -> bool {
        self.layers.is_empty()
    }

    /// Of one of these layers, or more.
    fn has(&self, ids: &[String]) -> bool {
        self.layers.iter().any(|id| ids.contains(id))
    }

    /// Has what is here be the container's, when it is of its layers or of none, and the container's writable directory is not
    /// there yet.
    pub(crate) fn become_of(&self, container: &ContainerSpec) -> Given {
        let fits = self.is_bare() || self.is_of(container);
        let Some(writable) = container.rootfs.writable.as_deref().filter(|_| fits) else {
            return Given::Parts;
        };
        let moved = renameat_with(CWD, &self.directory, CWD, writable, RenameFlags::NOREPLACE).is_ok();
        crate::sys::failpoint::failpoint!(AheadMoved);
        if moved && !self.is_bare() { Given::Root } else { Given::Parts }
    }
}

impl Roots {
    /// Nothing is made yet. Removes what an earlier agent has left in the directory.
    pub(crate) fn open(directory: Option<&Path>) -> io::Result<Self> {
        if let Some(directory) = directory {
            empty(directory)?;
            layout::make_directory(directory)?;
            if let Err(error) = Spread::of(directory).prepare() {
                tracing::debug!(%error, "writable directories are not spread over the disk");
            }
        }
        Ok(Self {
            directory: directory.map(Path::to_owned),
            recent: Mutex::default(),
            impossible: AtomicBool::default(),
        })
    }

    /// The layers that the next first container is expected to have.
    fn expected(&self) -> Option<Vec<Layer>> {
        if self.impossible.load(Ordering::Relaxed) {
            return None;
        }
        let recent = self.recent();
        recent.repeated.then(|| recent.layers.clone())
    }

    /// The first container of a sandbox has these layers.
    pub(crate) fn started(&self, layers: &[Layer]) {
        self.recent().started(layers);
    }

    /// Removes a slot's writable directory, if it was not moved away.
    pub(crate) fn remove(&self, slot: &str) -> io::Result<()> {
        match &self.directory {
            Some(directory) => layout::unless_absent(std::fs::remove_dir_all(directory.join(slot))),
            None => Ok(()),
        }
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes all of it, while stubs that were asked by an earlier agent may still make theirs.
fn empty(directory: &Path) -> io::Result<()> {
    const TRIES: u32 = 100;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
    for _ in 1..TRIES {
        match layout::unless_absent(std::fs::remove_dir_all(directory)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    layout::unless_absent(std::fs::remove_dir_all(directory))
}

impl Inner {
    /// Has a warm sandbox that has settled make the root of what is expected, or its writable directory at least. What goes
    /// wrong leaves it without.
    pub(crate) async fn make_ahead(self: &Arc<Self>, warm: &mut Warm) {
        let Some(parent) = self.roots.directory.as_deref() else { return };
        if let Some(layers) = self.roots.expected() {
            match self.root_ahead(warm, &layers, parent).await {
                Ok(ahead) => {
                    warm.ahead = Some(ahead);
                    return;
                }
                Err(error) => {
                    if matches!(error, SandboxError::Unsupported { .. }) {
                        self.roots.impossible.store(true, Ordering::Relaxed);
                    }
                    tracing::debug!(slot = warm.slot.name, %error, "no root is made ahead");
                    // What was put into its directory is of no use to another image.
                    let _ = self.roots.remove(&warm.slot.name);
                }
            }
        }
        warm.ahead = self.bare_ahead(&warm.slot.name);
    }

    /// A slot's writable directory, made ahead; none where that fails.
    pub(crate) fn bare_ahead(&self, slot: &str) -> Option<Ahead> {
        let parent = self.roots.directory.as_deref()?;
        match directory_ahead(slot, parent) {
            Ok(directory) => Some(Ahead { layers: Vec::new(), directory }),
            Err(error) => {
                tracing::debug!(slot, %error, "no writable directory is made ahead");
                let _ = self.roots.remove(slot);
                None
            }
        }
    }

    async fn root_ahead(self: &Arc<Self>, warm: &Warm, layers: &[Layer], parent: &Path) -> Result<Ahead, SandboxError> {
        let failed = |error: io::Error| super::slots::io_failed("writable directory of a root made ahead", error);
        let directory = directory_ahead(&warm.slot.name, parent).map_err(failed)?;
        let mut fds = self.mount(layers).await?;
        self.pile_layers();
        fds.push(sources::writable(&directory)?);
        warm.client.call("making of a root ahead", Request::Assemble, fds).await?;
        crate::sys::failpoint::failpoint!(AheadAnswered);
        Ok(Ahead { layers: layers.iter().map(|layer| layer.id.clone()).collect(), directory })
    }

    /// Nothing that waits is made of these layers afterwards.
    pub(crate) async fn forget_ahead(self: &Arc<Self>, ids: &[String]) {
        {
            let mut recent = self.roots.recent();
            if recent.layers.iter().any(|layer| ids.contains(&layer.id)) {
                *recent = Recent::default();
            }
        }
        let _no_refill = self.refilling.lock().await;
        loop {
            let warm = {
                let mut pool = self.pool.lock().await;
                let made_of = |warm: &Warm| warm.ahead.as_ref().is_some_and(|ahead| ahead.has(ids));
                pool.iter().position(made_of).and_then(|at| pool.remove(at))
            };
            let Some(warm) = warm else { return };
            // One that cannot be cleared is left over.
            let _ = self.discard(warm.slot, Some(warm.client)).await;
            let _ = self.pool_changes.try_send(super::pool::Change::Ended);
        }
    }
}

fn directory_ahead(slot: &str, parent: &Path) -> io::Result<PathBuf> {
    Spread::of(parent).make(slot, 0o700)?;
    crate::sys::failpoint::failpoint!(AheadMade);
    let directory = parent.join(slot);
    furnish(&directory)?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(ids: &[&str]) -> Vec<Layer> {
        ids.iter().map(|id| Layer { id: (*id).to_owned(), path: format!("/layers/{id}").into() }).collect()
    }

    #[test]
    fn two_first_containers_of_the_same_layers_make_a_third_expected_and_another_one_none() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::open(Some(&dir.path().join("ahead"))).unwrap();
        let expected = || roots.expected();
        assert_eq!(expected(), None);
        roots.started(&layers(&["a", "b"]));
        assert_eq!(expected(), None);
        roots.started(&layers(&["a", "b"]));
        assert_eq!(expected(), Some(layers(&["a", "b"])));
        for other in [&["b", "a"][..], &["b"], &["b", "a"]] {
            roots.started(&layers(other));
            assert_eq!(expected(), None, "{other:?}");
        }
        roots.impossible.store(true, Ordering::Relaxed);
        roots.started(&layers(&["b", "a"]));
        assert_eq!(expected(), None);
    }

    #[test]
    fn what_an_earlier_agent_left_is_removed_and_a_slots_own_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let ahead = dir.path().join("ahead");
        std::fs::create_dir_all(ahead.join("slot-1/upper")).unwrap();
        let roots = Roots::open(Some(&ahead)).unwrap();
        assert!(!ahead.join("slot-1").exists());
        std::fs::create_dir_all(ahead.join("slot-2/upper")).unwrap();
        roots.remove("slot-2").unwrap();
        roots.remove("slot-2").unwrap();
        assert!(!ahead.join("slot-2").exists() && ahead.exists());
    }
}
