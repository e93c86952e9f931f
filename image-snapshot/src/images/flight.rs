//! One download per layer, however many pods ask for it, and none when nobody does any more.
//!
//! ```text
//!   join ──> under way ──────────────────────────> ended       all who follow it are told, and whoever comes later looks into the store
//!                │  the last who follows has gone
//!                └─────────────────────────────> dropped       its work with all that it holds; whoever comes later starts another
//! ```
//!
//! Work that must not be dropped any more follows its own flight: [`watch::Sender::subscribe`]. A layer whose layer below failed waits for the next
//! flight of that one: [`Flights::news`].

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
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
    /// This one's task died.
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

/// What a flight's work tells by.
pub(super) type Teller = Arc<watch::Sender<State>>;

/// Of which layer, by which right.
type Key = (Digest, String);

/// Layers on their way, by chain id and by the right by which they come.
#[derive(Debug, Default)]
pub(super) struct Flights {
    running: Mutex<HashMap<Key, Weak<watch::Sender<State>>>>,
    /// Changes with each flight that begins, is joined or ends.
    news: watch::Sender<()>,
}

impl Flights {
    /// The flight of that layer by that right; started if there is none. `start` makes the work, which is dropped when nobody follows it any more,
    /// and must have put the layer into the store when it says that it did.
    pub(super) fn join<F, W>(self: &Arc<Self>, id: &Digest, right: &str, start: F) -> Watch
    where
        F: FnOnce(Teller) -> W,
        W: Future<Output = Result<LayerRecord, Failure>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (id.clone(), right.to_owned());
        if let Some(teller) = under_way(&running, &key) {
            // It may wait for a layer below that has come without a flight, as a copy does: who asks now has seen that.
            self.news.send_replace(());
            return teller.subscribe();
        }
        let (teller, watch) = watch::channel(State { phase: LayerPhase::Waiting, done: 0, outcome: None });
        let teller = Arc::new(teller);
        running.insert(key.clone(), Arc::downgrade(&teller));
        let work = start(teller.clone());
        let flights = self.clone();
        tokio::spawn(async move { flights.run(&key, &teller, work).await });
        self.news.send_replace(());
        watch
    }

    /// The flight of that layer by that right, if there is one.
    pub(super) fn find(&self, id: &Digest, right: &str) -> Option<Watch> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        under_way(&running, &(id.clone(), right.to_owned())).map(|teller| teller.subscribe())
    }

    /// Changes whenever a flight begins, is joined or ends.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    async fn run(&self, key: &Key, teller: &Teller, work: impl Future<Output = Result<LayerRecord, Failure>>) {
        tokio::pin!(work);
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut work => break outcome,
                () = teller.closed() => {
                    // Whoever joins does it under the lock: either he is seen here, or he does not find this flight.
                    let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                    if teller.is_closed() {
                        running.remove(key);
                        tracing::debug!(layer = %key.0, "nobody waits for a layer any more: it is given up");
                        return;
                    }
                }
            }
        };
        // First out of the table, then the news: whoever comes later looks into the store.
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        teller.send_modify(|state| {
            if outcome.is_ok() {
                state.phase = LayerPhase::Present;
            }
            state.outcome = Some(outcome);
        });
        self.news.send_replace(());
    }
}

/// One whose task died has left its teller behind, which is gone.
fn under_way(running: &HashMap<Key, Weak<watch::Sender<State>>>, key: &Key) -> Option<Teller> {
    running.get(key).and_then(Weak::upgrade)
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

/// How long layers go on for somebody who was told that another of their image has failed: the longest back-off of a pod (the kubelet's five
/// minutes), and a little for what comes before the layers when it asks again.
const LINGER: Duration = Duration::from_secs(6 * 60);

/// Follows them for that long.
pub(super) fn linger(watches: Vec<Watch>) {
    let all = futures::future::join_all(watches.into_iter().map(|watch| follow(watch, |_, _| {})));
    tokio::spawn(tokio::time::timeout(LINGER, all));
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
                flights.join(&id, "", move |_| async move {
                    starts.fetch_add(1, Ordering::Relaxed);
                    gate.wait_for(|open| *open).await.unwrap();
                    Err(Failure::Convert(Arc::new(ConvertError::Cancelled)))
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
        let first = flights.join(&id, "", |_| async { panic!("on purpose") });
        assert!(matches!(follow(first, |_, _| {}).await, Err(Failure::Interrupted)));
        let second = flights.join(&id, "", |_| async { Err(Failure::Interrupted) });
        assert!(matches!(follow(second, |_, _| {}).await, Err(Failure::Interrupted)));
    }

    #[tokio::test(start_paused = true)]
    async fn each_flight_that_begins_is_joined_or_ends_is_news() {
        let flights = Arc::new(Flights::default());
        let id = Digest::sha256(b"x");
        let mut news = flights.news();
        let (open, gate) = tokio::sync::oneshot::channel::<()>();
        let first = flights.join(&id, "", |_| async move {
            gate.await.unwrap();
            Err(Failure::Interrupted)
        });
        assert!(news.has_changed().unwrap());
        news.mark_unchanged();
        drop(flights.join(&id, "", |_| async { panic!("there is one") }));
        assert!(news.has_changed().unwrap());
        news.mark_unchanged();
        open.send(()).unwrap();
        assert!(follow(first, |_, _| {}).await.is_err());
        assert!(is_in_time(news.changed()).await);
    }

    async fn is_in_time<T>(what: impl Future<Output = T>) -> bool {
        tokio::time::timeout(std::time::Duration::from_secs(60), what).await.is_ok()
    }

    /// Whether the work is dropped, or never will be.
    async fn is_dropped(ended: tokio::sync::oneshot::Receiver<()>) -> bool {
        is_in_time(ended).await
    }

    /// Work that never ends by itself; its end is seen at the other side of the channel.
    async fn endless(_held: tokio::sync::oneshot::Sender<()>) -> Result<LayerRecord, Failure> {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_ends_when_its_last_waiter_has_gone_and_not_before_and_the_next_one_starts_anew() {
        let flights = Arc::new(Flights::default());
        let id = Digest::sha256(b"x");
        let (held, mut ended) = tokio::sync::oneshot::channel();
        let first = flights.join(&id, "", |_| endless(held));
        let second = flights.join(&id, "", |_| async { panic!("there is one") });
        drop(first);
        tokio::task::yield_now().await;
        assert!(matches!(ended.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)), "one still waits");
        drop(second);
        assert!(is_dropped(ended).await, "the work and what it held are dropped");
        assert!(flights.running.lock().unwrap().is_empty());
        let third = flights.join(&id, "", |_| async { Err(Failure::Interrupted) });
        assert!(follow(third, |_, _| {}).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn layers_beside_one_that_failed_go_on_for_as_long_as_a_pod_waits_before_it_asks_again() {
        let flights = Arc::new(Flights::default());
        let (held, mut ended) = tokio::sync::oneshot::channel();
        linger(vec![flights.join(&Digest::sha256(b"x"), "", |_| endless(held))]);
        tokio::time::sleep(LINGER - Duration::from_secs(1)).await;
        assert!(matches!(ended.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)));
        assert!(is_dropped(ended).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_goes_with_the_one_that_builds_on_it() {
        let flights = Arc::new(Flights::default());
        let (held, ended) = tokio::sync::oneshot::channel();
        let below = flights.join(&Digest::sha256(b"below"), "", |_| endless(held));
        let above = flights.join(&Digest::sha256(b"above"), "", |_| async move { follow(below, |_, _| {}).await });
        drop(above);
        assert!(is_dropped(ended).await);
    }

    #[tokio::test]
    async fn work_in_its_last_step_ends_without_anybody_and_serves_who_comes_meanwhile() {
        let flights = Arc::new(Flights::default());
        let id = Digest::sha256(b"x");
        let (open, gate) = tokio::sync::oneshot::channel::<()>();
        let (begun, last) = tokio::sync::oneshot::channel();
        let first = flights.join(&id, "", |teller| async move {
            let _to_its_end = teller.subscribe();
            begun.send(()).unwrap();
            gate.await.unwrap();
            Err(Failure::Convert(Arc::new(ConvertError::Cancelled)))
        });
        last.await.unwrap();
        drop(first);
        tokio::task::yield_now().await;
        let second = flights.join(&id, "", |_| async { panic!("there is one") });
        open.send(()).unwrap();
        assert!(matches!(follow(second, |_, _| {}).await, Err(Failure::Convert(_))));
    }
}
