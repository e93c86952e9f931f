//! Layers' mounts, kept at hand: a clone of what the keeper gave once is a clone of its mount, without asking again.
//!
//! From Linux 6.15 on a detached mount can be cloned; before, the keeper is asked each time.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use crate::spec::Layer;
use crate::sys::mount;

/// Mounts held at most: each is a descriptor.
const MOST: usize = 1024;

/// Detached clones by the layers' identities.
#[derive(Debug, Default)]
pub(crate) struct Layers(Mutex<HashMap<String, OwnedFd>>);

impl Layers {
    /// A clone of each, or `None` when the keeper has to be asked.
    pub(crate) fn clones(&self, layers: &[Layer]) -> Option<Vec<OwnedFd>> {
        let held = self.held();
        layers.iter().map(|layer| mount::clone_tree(held.get(&layer.id)?, "", false).ok()).collect()
    }

    /// Keeps a clone of each mount that the keeper gave; what cannot be cloned is not kept.
    pub(crate) fn keep(&self, layers: &[Layer], mounts: &[OwnedFd]) {
        let mut held = self.held();
        for (layer, mounted) in layers.iter().zip(mounts) {
            if held.len() >= MOST || held.contains_key(&layer.id) {
                continue;
            }
            let Ok(clone) = mount::clone_tree(mounted, "", false) else { return };
            held.insert(layer.id.clone(), clone);
        }
    }

    /// Lets go of layers.
    pub(crate) fn forget(&self, ids: &[String]) {
        let mut held = self.held();
        for id in ids {
            held.remove(id);
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<String, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
