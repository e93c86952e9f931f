//! Images that this host keeps ready before any pod asks for them, because vkubelet says so (`PrepareImages`).
//!
//! ```text
//!  PrepareImages (the whole set) ──> [`record`] (durable: names, pins, what is to go) ──> pins of the store
//!                                        │
//!                                        └──> one [`task`] an image: pull, look again, pull again ──> reports ──> WatchPrepared
//! ```
//!
//! What is not durable is the credentials: after a restart the pins hold, and the pulls go on when vkubelet has told the set anew.

mod record;
mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;

use crate::ports::{ImageFailure, ImageWish, PullPolicy};
use crate::resolved::RegistryCredential;
pub use record::RecordError;
use record::{Kept, Record};

/// Images that are pulled ahead at once: what pods ask for goes first.
const AT_ONCE: usize = 2;

/// One image that is to be ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// As it was named.
    pub reference: String,
    /// For its registry.
    pub credentials: Vec<RegistryCredential>,
    /// Collection never takes it.
    pub pinned: bool,
    /// It goes once it is wanted no more.
    pub remove_after: bool,
}

/// An image that is here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Digest of the manifest.
    pub digest: String,
    /// Bytes on disk.
    pub size: u64,
    /// Its layers.
    pub layers: u32,
}

/// How it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Others go first.
    Waiting,
    /// On its way.
    Pulling {
        /// Bytes that have come.
        done: u64,
        /// Bytes in all; 0 while that is not known.
        total: u64,
    },
    /// Here.
    Ready(Found),
    /// Not to be had for now; tried again.
    Failed(ImageFailure),
}

/// How it goes with one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How.
    pub phase: Phase,
    /// In this phase since: seconds since 1970.
    pub since_unix: i64,
}

/// All images by the name by which they are wanted.
pub type Reports = BTreeMap<String, Report>;

pub use crate::ports::Told;

/// The store, as preparing needs it.
#[async_trait]
pub trait Shelf: Send + Sync + 'static {
    /// Makes an image available. `size`: the bytes that it took when it was last here; one that would have to make way at once is refused.
    async fn fetch(&self, wish: &ImageWish, size: u64, told: Told) -> Result<Found, ImageFailure>;
    /// An image that is here, whole.
    async fn find(&self, reference: &str) -> Option<Found>;
    /// These names, and no others, are kept from collection.
    fn pin(&self, names: &BTreeSet<String>);
    /// Removes an image unless somebody uses it. False: somebody does.
    async fn let_go(&self, reference: &str) -> bool;
}

struct Kid {
    wanted: Wanted,
    task: JoinHandle<()>,
}

impl Drop for Kid {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct State {
    kids: BTreeMap<String, Kid>,
    record: Record,
}

/// What is kept ready. Tasks end with the value.
pub struct Prepared {
    shelf: Arc<dyn Shelf>,
    place: record::Place,
    /// Held over a whole change, so that two never cross.
    state: tokio::sync::Mutex<State>,
    reports: watch::Sender<Reports>,
    permits: Arc<Semaphore>,
    sweeper: Mutex<Option<JoinHandle<()>>>,
    /// Something is to go. A word that comes while the sweeper is about to rest is kept for it.
    leaves: Arc<Notify>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("reports", &self.reports.borrow()).finish_non_exhaustive()
    }
}

impl Prepared {
    /// Reads what was wanted before the restart and pins that; pulls nothing yet. Blocking, brief. A damaged record is an error: without it
    /// nobody knows what is pinned.
    pub fn open(state_dir: &Path, shelf: Arc<dyn Shelf>) -> Result<Self, RecordError> {
        let place = record::Place::new(state_dir);
        let record = place.read()?;
        shelf.pin(&record.pinned());
        Ok(Self {
            shelf,
            place,
            state: tokio::sync::Mutex::new(State { kids: BTreeMap::new(), record }),
            reports: watch::Sender::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            sweeper: Mutex::default(),
            leaves: Arc::default(),
        })
    }

    /// How it goes with each image of the set.
    pub fn reports(&self) -> watch::Receiver<Reports> {
        self.reports.subscribe()
    }

    /// This is the whole set. Durable before it returns.
    pub async fn set(self: &Arc<Self>, wanted: Vec<Wanted>) -> Result<(), RecordError> {
        let wanted: BTreeMap<String, Wanted> = wanted.into_iter().map(|w| (w.reference.clone(), w)).collect();
        let mut state = self.state.lock().await;
        let kept = |w: &Wanted| Kept { pinned: w.pinned, remove_after: w.remove_after };
        let next = state.record.next(wanted.iter().map(|(name, w)| (name.clone(), kept(w))).collect());
        if next != state.record {
            // What is pinned anew is pinned before it is written, what is pinned no more after: a crash in between keeps too much.
            self.shelf.pin(&state.record.pinned().union(&next.pinned()).cloned().collect());
            self.write(&next).await?;
            self.shelf.pin(&next.pinned());
            tracing::info!(
                images = next.images.len(),
                leaving = next.leaving.len(),
                "another set of images is to be ready"
            );
            state.record = next;
        }
        let reports = &self.reports;
        state.kids.retain(|name, _| wanted.contains_key(name));
        reports.send_if_modified(|all| {
            let before = all.len();
            all.retain(|name, _| wanted.contains_key(name));
            all.len() != before
        });
        for (name, wanted) in wanted {
            let begin = match state.kids.get_mut(&name) {
                None => true,
                Some(kid) => {
                    // Also of one that is ready: when it goes, it is to come back by the new ones.
                    let begin = kid.wanted.credentials != wanted.credentials;
                    kid.wanted.clone_from(&wanted);
                    begin
                }
            };
            if begin {
                let wish = ImageWish {
                    reference: name.clone(),
                    policy: PullPolicy::IfNotPresent,
                    credentials: wanted.credentials.clone(),
                    trusted: false,
                    domain: String::new(),
                };
                let keep = task::keep(self.shelf.clone(), wish, self.permits.clone(), reports.clone());
                state.kids.insert(name, Kid { wanted, task: tokio::spawn(keep) });
            }
        }
        let leaves = !state.record.leaving.is_empty();
        drop(state);
        if leaves {
            self.sweep();
        }
        Ok(())
    }

    /// Removes what is wanted no more, as soon as nobody uses it.
    fn sweep(self: &Arc<Self>) {
        self.leaves.notify_one();
        let mut sweeper = self.sweeper.lock().unwrap_or_else(PoisonError::into_inner);
        if sweeper.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (ours, leaves) = (Arc::downgrade(self), self.leaves.clone());
        *sweeper = Some(tokio::spawn(async move {
            loop {
                leaves.notified().await;
                while let Some(prepared) = ours.upgrade() {
                    if prepared.sweep_once().await {
                        break;
                    }
                    drop(prepared);
                    tokio::time::sleep(task::LOOK).await;
                }
            }
        }));
    }

    /// True when nothing is left to go.
    async fn sweep_once(&self) -> bool {
        let mut state = self.state.lock().await;
        let mut next = state.record.clone();
        for name in &state.record.leaving {
            if self.shelf.let_go(name).await {
                next.leaving.remove(name);
            }
        }
        if next != state.record {
            match self.write(&next).await {
                Ok(()) => state.record = next,
                Err(error) => {
                    tracing::warn!(error = crate::errors::chain(&error), "cannot write down which images have gone");
                }
            }
        }
        state.record.leaving.is_empty()
    }

    async fn write(&self, record: &Record) -> Result<(), RecordError> {
        let (place, record) = (self.place.clone(), record.clone());
        tokio::task::spawn_blocking(move || place.write(&record)).await.map_err(|_| RecordError::Interrupted)?
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(task) = self.sweeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}
