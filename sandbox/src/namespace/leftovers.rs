//! Slots that are nobody's and could not be taken apart: they stay known, and are tried again.
//!
//! ```text
//!  no pod's any more ── taken apart ──> gone
//!         │ that failed                  ^
//!         v                              │ in the background, after pauses that double up to half a minute;
//!   among the leftovers ─────────────────┘ at once, a few times, when the pool is drained: what stays is told by name
//! ```
//!
//! A sandbox that is some pod's is not among them: whoever destroys it is told, and destroys it again. Nor is any of this
//! written down: a slot's claim is, so that the next start finds it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Inner;
use super::client::Client;
use super::layout::Slot;
use super::pool::Backoff;
use super::wire::ShimWire;
use crate::contract::SandboxError;

/// Pauses between the tries of a drain: so many, and the last one soon enough to be waited for.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];
/// No further try of a drain after so long: one alone may wait ten seconds for processes.
const ENOUGH: Duration = Duration::from_secs(30);

/// What is left, by slot, and why.
#[derive(Debug)]
pub(crate) struct Leftovers {
    slots: Mutex<BTreeMap<String, (Slot, String)>>,
    /// Held by who tries them: a slot whose claim was given back may be another's a moment later.
    trying: tokio::sync::Mutex<()>,
    more: mpsc::Sender<()>,
}

impl Leftovers {
    /// Of nothing; who tries them is told by the receiver that there is something.
    pub(crate) fn new() -> (Self, mpsc::Receiver<()>) {
        let (more, told) = mpsc::channel(1);
        (Self { slots: Mutex::default(), trying: tokio::sync::Mutex::default(), more }, told)
    }

    /// This one could not be taken apart.
    pub(crate) fn keep(&self, slot: &Slot, why: &SandboxError) {
        if self.slots().insert(slot.name.clone(), (slot.clone(), why.to_string())).is_none() {
            tracing::warn!(slot = slot.name, error = %why, "a slot could not be cleared and is tried again");
            // A full channel: it will be looked at anyway.
            let _ = self.more.try_send(());
        }
    }

    /// Tries each once, all at a time; how many stay.
    async fn sweep<F>(&self, clear: impl Fn(Slot) -> F) -> usize
    where
        F: Future<Output = Result<(), SandboxError>> + Send + 'static,
    {
        let _one = self.trying.lock().await;
        let tried: Vec<Slot> = self.slots().values().map(|(slot, _)| slot.clone()).collect();
        let mut tries = JoinSet::new();
        for slot in tried {
            let cleared = clear(slot.clone());
            tries.spawn(async move { (slot, cleared.await) });
        }
        while let Some(ended) = tries.join_next().await {
            // One that panicked stays.
            let Ok((slot, cleared)) = ended else { continue };
            match cleared {
                Ok(()) => drop(self.slots().remove(&slot.name)),
                Err(why) => self.keep(&slot, &why),
            }
        }
        self.slots().len()
    }

    /// What stays, in words.
    fn told(&self) -> Result<(), SandboxError> {
        let left: Vec<String> = self.slots().iter().map(|(name, (_, why))| format!("{name}: {why}")).collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(SandboxError::Failed { operation: "clearing of sandboxes".to_owned(), message: left.join("; ") })
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (Slot, String)>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries what is left until nothing is, as long as the backend is there.
pub(crate) async fn tend(backend: Weak<Inner>, mut told: mpsc::Receiver<()>) {
    let mut backoff = Backoff::default();
    while told.recv().await.is_some() {
        loop {
            tokio::time::sleep(backoff.after_trouble(Instant::now())).await;
            let Some(inner) = backend.upgrade() else { return };
            if inner.sweep().await == 0 {
                break;
            }
        }
    }
}

impl Inner {
    /// Takes apart a slot that waits and is nobody's; one that cannot be is left over. It goes on when whoever asked does not
    /// wait for it.
    pub(crate) async fn discard(
        self: &Arc<Self>,
        slot: Slot,
        known: Option<Client<ShimWire>>,
    ) -> Result<(), SandboxError> {
        let inner = Arc::clone(self);
        let cleared = tokio::spawn(async move {
            let directory = inner.layout.warm(&slot);
            inner.clear_slot(&slot, &directory, known).await
        });
        cleared.await.unwrap_or_else(|error| Err(stopped(&error)))
    }

    async fn sweep(self: &Arc<Self>) -> usize {
        let inner = Arc::clone(self);
        let swept = tokio::spawn(async move {
            let clear = |slot: Slot| {
                let inner = Arc::clone(&inner);
                async move { inner.clear_slot(&slot, &inner.layout.warm(&slot), None).await }
            };
            inner.leftovers.sweep(clear).await
        });
        swept.await.unwrap_or_else(|_| self.leftovers.slots().len())
    }

    /// Tries what is left a few times; afterwards nothing is, or the error names it. What it names is tried further.
    pub(crate) async fn clear_leftovers(self: &Arc<Self>) -> Result<(), SandboxError> {
        let began = Instant::now();
        for pause in PAUSES {
            if self.sweep().await == 0 || began.elapsed() >= ENOUGH {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        self.leftovers.told()
    }
}

fn stopped(error: &tokio::task::JoinError) -> SandboxError {
    SandboxError::Failed { operation: "clearing of a sandbox".to_owned(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::spec::Namespaces;

    fn slot(index: u32) -> Slot {
        Slot { name: format!("slot-{index}"), index, namespaces: Namespaces::default() }
    }

    fn busy(slot: &Slot) -> SandboxError {
        SandboxError::Failed { operation: format!("removal of {}", slot.name), message: "busy".into() }
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A slot's clearing fails, and will as often again.
        Left {
            index: u32,
            failures: u32,
        },
        Sweep,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let left = (0..6_u32, 0..4_u32).prop_map(|(index, failures)| Step::Left { index, failures });
        proptest::collection::vec(prop_oneof![left, Just(Step::Sweep)], 0..40)
    }

    proptest! {
        #[test]
        fn after_every_sweep_nothing_is_left_or_the_error_names_it(steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (leftovers, mut told) = Leftovers::new();
                let failures: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
                for step in steps {
                    match step {
                        Step::Left { index, failures: count } => {
                            failures.lock().unwrap().insert(slot(index).name, count);
                            leftovers.keep(&slot(index), &busy(&slot(index)));
                        }
                        Step::Sweep => {
                            let left = leftovers
                                .sweep(|slot| {
                                    let failures = Arc::clone(&failures);
                                    async move {
                                        let mut failures = failures.lock().unwrap();
                                        match failures.get_mut(&slot.name) {
                                            Some(count) if *count > 0 => {
                                                *count -= 1;
                                                Err(busy(&slot))
                                            }
                                            _ => {
                                                failures.remove(&slot.name);
                                                Ok(())
                                            }
                                        }
                                    }
                                })
                                .await;
                            let expected: BTreeSet<String> = failures.lock().unwrap().keys().cloned().collect();
                            prop_assert_eq!(left, expected.len());
                            match leftovers.told() {
                                Ok(()) => prop_assert!(expected.is_empty()),
                                Err(error) => {
                                    let text = error.to_string();
                                    for index in 0..6 {
                                        let name = slot(index).name;
                                        prop_assert_eq!(text.contains(&format!("{name}: ")), expected.contains(&name));
                                    }
                                }
                            }
                        }
                    }
                }
                // Who tries is told of the first of them, however many there are.
                let _ = told.try_recv();
                prop_assert!(told.try_recv().is_err());
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn two_who_try_never_clear_a_slot_at_the_same_time() {
        let (leftovers, _told) = Leftovers::new();
        leftovers.keep(&slot(1), &busy(&slot(1)));
        let running = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let cleared = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let clear = |_| {
            let (running, cleared) = (Arc::clone(&running), Arc::clone(&cleared));
            async move {
                use std::sync::atomic::Ordering::Relaxed;
                assert_eq!(running.fetch_add(1, Relaxed), 0);
                tokio::task::yield_now().await;
                running.fetch_sub(1, Relaxed);
                cleared.fetch_add(1, Relaxed);
                Ok(())
            }
        };
        let left = tokio::join!(leftovers.sweep(clear), leftovers.sweep(clear));
        assert_eq!(left, (0, 0));
        assert_eq!(cleared.load(std::sync::atomic::Ordering::Relaxed), 1, "its claim may be another's by then");
    }
}
