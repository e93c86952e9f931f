//! One download per layer, however many pods ask for it.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::{
    Digest, ImageError, LayerPhase,
    convert::ConvertError,
    error::chain,
    source::SourceError,
    store::{LayerRecord, StoreError},
};

/// Why a layer did not arrive. Shared by all who waited for it.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    Fetch(Arc<SourceError>),
    Convert(Arc<ConvertError>),
    Store(Arc<StoreError>),
    /// A layer below failed, or this one's task died.
    Interrupted,
}

impl Failure {
    /// In words, with all causes.
    pub(super) fn chain(&self) -> String {
        match self {
            Self::Fetch(error) => chain(&**error),
            Self::Convert(error) => chain(&**error),
            Self::Store(error) => chain(&**error),
            Self::Interrupted => "interrupted".to_owned(),
        }
    }

    /// The same, told about an image.
    pub(super) fn of_image(self, reference: &str, id: &Digest, blob: &Digest) -> ImageError {
        let (reference, layer) = (reference.to_owned(), blob.clone());
        match self {
            Self::Fetch(source) => ImageError::Fetch { reference, layer, source },
            Self::Convert(source) => ImageError::Convert { reference, layer, source },
            Self::Store(source) => ImageError::Store(source),
            Self::Interrupted => ImageError::Interrupted { layer: id.clone() },
        }
    }
}

/// Where a layer's flight stands.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) phase: LayerPhase,
    pub(super) done: u64,
    /// The end, when it has come.
    pub(super) outcome: Option<Result<LayerRecord, Failure>>,
}

pub(super) type Watch = watch::Receiver<State>;

/// Layers on their way, by chain id and by the right by which they come.
#[derive(Debug, Default)]
pub(super) struct Flights {
    running: Mutex<HashMap<(Digest, String), Watch>>,
}

impl Flights {
    /// The flight of that layer by that right; started if there is none. `start` makes the work, which goes on even when nobody waits any more, and
    /// must have put the layer into the store when it says that it did.
    pub(super) fn join<F, W>(self: &Arc<Self>, id: &Digest, right: &str, start: F) -> Watch
    where
        F: FnOnce(watch::Sender<State>) -> W,
        W: Future<Output = (watch::Sender<State>, Result<LayerRecord, Failure>)> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (id.clone(), right.to_owned());
        if let Some(watch) = running.get(&key) {
            // One whose task died leaves its watch behind, closed.
            if watch.has_changed().is_ok() {
                return watch.clone();
            }
        }
        let (sender, watch) = watch::channel(State { phase: LayerPhase::Waiting, done: 0, outcome: None });
        running.insert(key.clone(), watch.clone());
        let work = start(sender);
        let flights = self.clone();
        tokio::spawn(async move {
            let (sender, outcome) = work.await;
            // First out of the table, then the news: whoever comes later looks into the store.
            flights.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            sender.send_modify(|state| {
                if outcome.is_ok() {
                    state.phase = LayerPhase::Present;
                }
                state.outcome = Some(outcome);
            });
        });
        watch
    }
}

/// Follows a flight to its end, telling each change.
pub(super) async fn follow(mut watch: Watch, mut tell: impl FnMut(LayerPhase, u64)) -> Result<LayerRecord, Failure> {
    loop {
        let state = watch.borrow_and_update().clone();
        tell(state.phase, state.done);
        if let Some(outcome) = state.outcome {
            return outcome;
        }
        if watch.changed().await.is_err() {
            // Closed; the last word may still have come.
            return watch.borrow().outcome.clone().unwrap_or(Err(Failure::Interrupted));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_waiters_share_one_flight_and_its_failure() {
        let flights = Arc::new(Flights::default());
        let id = Digest::sha256(b"x");
        let starts = Arc::new(AtomicU32::new(0));
        let (open, gate) = tokio::sync::watch::channel(false);
        let watches: Vec<Watch> = (0..20)
            .map(|_| {
                let (starts, mut gate) = (starts.clone(), gate.clone());
                flights.join(&id, "", move |sender| async move {
                    starts.fetch_add(1, Ordering::Relaxed);
                    gate.wait_for(|open| *open).await.unwrap();
                    (sender, Err(Failure::Convert(Arc::new(ConvertError::Cancelled))))
                })
            })
            .collect();
        open.send(true).unwrap();
        for watch in watches {
            assert!(matches!(follow(watch, |_, _| {}).await, Err(Failure::Convert(_))));
        }
        assert_eq!(starts.load(Ordering::Relaxed), 1);
        assert!(flights.running.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_flight_whose_task_dies_is_told_and_can_be_started_again() {
        let flights = Arc::new(Flights::default());
        let id = Digest::sha256(b"x");
        let first = flights.join(&id, "", |sender| async move {
            drop(sender);
            panic!("on purpose");
        });
        assert!(matches!(follow(first, |_, _| {}).await, Err(Failure::Interrupted)));
        let second = flights.join(&id, "", |sender| async move { (sender, Err(Failure::Interrupted)) });
        assert!(matches!(follow(second, |_, _| {}).await, Err(Failure::Interrupted)));
    }
}
