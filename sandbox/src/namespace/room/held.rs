//! The file systems of containers that are held here, one for each container: its latest attempt's.
//!
//! Whoever lets go of one last waits until what is in it is on the disk, although nobody will read it. A start does not wait for
//! those of earlier attempts: each leaves on a thread of its own. Who forgets a sandbox waits for all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::Wanted;
use super::image::Image;
use crate::spec::{ContainerName, SandboxId};

/// A host's.
#[derive(Debug, Default)]
pub(super) struct AllHeld(Mutex<BTreeMap<SandboxId, OfSandbox>>);

/// A sandbox's.
#[derive(Debug, Default)]
struct OfSandbox {
    containers: BTreeMap<ContainerName, Held>,
    /// Threads on which those of earlier attempts leave.
    leaving: Vec<JoinHandle<()>>,
}

/// A container's.
#[derive(Debug)]
struct Held {
    attempt: u32,
    /// Shared with a start of the same attempt only as long as it asks for a mount.
    image: Arc<Image>,
}

impl Held {
    /// Lets go of it, and waits until it is gone unless a start asks for a mount of it, which is the last then. Blocking.
    fn end(self) {
        if let Some(image) = Arc::into_inner(self.image) {
            image.end();
        }
    }
}

impl OfSandbox {
    /// Lets go of all of it, and waits until the last is gone. Blocking.
    fn end(self) {
        self.containers.into_values().for_each(Held::end);
        for thread in self.leaving {
            // It cannot fail: it only lets go of something.
            let _ = thread.join();
        }
    }

    /// Lets go of one that nobody waits for.
    fn leave(&mut self, held: Held) {
        self.leaving.retain(|thread| !thread.is_finished());
        // Where there is no thread to be had, it was let go of here.
        self.leaving.extend(thread::Builder::new().name("room-leaving".to_owned()).spawn(move || held.end()));
    }
}

impl AllHeld {
    /// That of this attempt.
    pub(super) fn of(&self, wanted: &Wanted) -> Option<Arc<Image>> {
        let all = self.lock();
        let held = all.get(&wanted.sandbox)?.containers.get(&wanted.container)?;
        (held.attempt == wanted.attempt).then(|| Arc::clone(&held.image))
    }

    /// Lets go of that of another attempt, if there is one, without waiting for it.
    pub(super) fn leave_others(&self, wanted: &Wanted) {
        let mut all = self.lock();
        let Some(of_sandbox) = all.get_mut(&wanted.sandbox) else { return };
        if of_sandbox.containers.get(&wanted.container).is_some_and(|held| held.attempt != wanted.attempt)
            && let Some(other) = of_sandbox.containers.remove(&wanted.container)
        {
            of_sandbox.leave(other);
        }
    }

    /// Holds this attempt's from now on.
    pub(super) fn keep(&self, wanted: &Wanted, image: Image) {
        let held = Held { attempt: wanted.attempt, image: Arc::new(image) };
        let mut all = self.lock();
        let of_sandbox = all.entry(wanted.sandbox.clone()).or_default();
        if let Some(last) = of_sandbox.containers.insert(wanted.container.clone(), held) {
            of_sandbox.leave(last);
        }
    }

    /// Lets go of this attempt's, and of the sandbox when it was its last. Blocking.
    pub(super) fn take_back(&self, wanted: &Wanted) {
        let mut all = self.lock();
        let Some(of_sandbox) = all.get_mut(&wanted.sandbox) else { return };
        let this = of_sandbox.containers.get(&wanted.container).is_some_and(|held| held.attempt == wanted.attempt);
        let taken = if this { of_sandbox.containers.remove(&wanted.container) } else { None };
        let emptied = if of_sandbox.containers.is_empty() { all.remove(&wanted.sandbox) } else { None };
        drop(all);
        taken.into_iter().for_each(Held::end);
        emptied.into_iter().for_each(OfSandbox::end);
    }

    /// Lets go of a sandbox's, and of what still leaves. Blocking.
    pub(super) fn forget(&self, sandbox: &SandboxId) {
        let gone = self.lock().remove(sandbox);
        gone.into_iter().for_each(OfSandbox::end);
    }

    /// A sandbox has some, or had.
    pub(super) fn has(&self, sandbox: &SandboxId) -> bool {
        self.lock().contains_key(sandbox)
    }

    /// Bytes in each of a sandbox's.
    pub(super) fn written(&self, sandbox: &SandboxId) -> BTreeMap<ContainerName, u64> {
        let all = self.lock();
        let each = all.get(sandbox).into_iter().flat_map(|of_sandbox| &of_sandbox.containers);
        each.filter_map(|(name, held)| Some((name.clone(), held.image.written().ok()?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SandboxId, OfSandbox>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
