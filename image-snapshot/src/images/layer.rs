//! The way of one layer: fetch and stage at once, wait for the layers below, finish, commit.
//!
//! Bytes are proved only when the last one has come, and are in the hash and in the converter by then. So what one server has sent is never
//! gone on with from another: where a mirror fails, the layer begins anew, in a file of its own, with the next server.
//!
//! A layer that is fetched ahead of the one below waits for that with its converter, a process with its buffers. So there is room for only
//! so many on a host, and it is taken before anything is fetched. Who has it waits for layers below only, and the lowest that is missing needs
//! none: it always goes on, and the one above it when it is there, in turn with all others, so nobody waits in a circle.
//!
//! Where the one below fails, who asked for the image is told so, and asks again; this one is as good then, and waits for it ([`super::flight::linger`]).

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Duration, MissedTickBehavior, interval},
};

use super::{
    flight::{Failure, Flights, State, Teller, Watch, follow},
    lease::Lease,
    rights::Brought,
};
use crate::{
    Converter, Digest, ErrorKind, LayerPhase, Limits,
    convert::{ConvertError, StagedLayer, stage_layer},
    manifest::Descriptor,
    source::{Source, SourceError, channel},
    store::{Ingest, LayerRecord, Store, StoreError, faults::failpoint},
};

/// Layers of a whole store that are fetched before the one right below is there. Each keeps a converter, of some 15 MiB as a rule and 64 at
/// most; images of as many layers are rare.
pub(super) const AHEAD: usize = 16;

/// Between two reports of progress.
const TICK: Duration = Duration::from_millis(100);

/// All that one layer's flight needs.
pub(super) struct LayerJob {
    pub(super) store: Arc<Store>,
    pub(super) source: Arc<dyn Source>,
    pub(super) limits: Limits,
    pub(super) converter: Converter,
    pub(super) blob: Descriptor,
    pub(super) diff_id: Digest,
    /// Chain ids up to and with this layer's, lowest first.
    pub(super) chain: Vec<Digest>,
    /// The flight of the layer right below, if that is not in the store yet.
    pub(super) below: Option<Watch>,
    pub(super) flights: Arc<Flights>,
    /// Of the image, then of the store.
    pub(super) permits: [Arc<Semaphore>; 2],
    /// Of the store: room for [`AHEAD`].
    pub(super) ahead: Arc<Semaphore>,
    /// Keeps the layers below in place even if all who asked have gone.
    pub(super) lease: Lease,
    /// By which right it comes, and who has shown one.
    pub(super) right: String,
    pub(super) brought: Arc<Brought>,
}

impl LayerJob {
    /// Runs to the end and says how it went. Dropped on its way, it leaves nothing: the file under way, the permits and the converter go with it.
    pub(super) async fn run(self, state: Teller) -> Result<LayerRecord, Failure> {
        // Before the permits: whoever holds one of those needs nobody else to give it back.
        let _ahead = self.room_ahead().await?;
        let [of_image, of_store] = &self.permits;
        // Closed never happens; if it did, running without the permit would be right.
        let permits = (of_image.acquire().await, of_store.acquire().await);
        let Some(id) = self.chain.last().cloned() else {
            return Err(Failure::Interrupted);
        };
        // A flight that ended just before this one began may have brought it.
        if self.brought.has(&id, &self.right)
            && let Some(record) = self.present(&id).await?
        {
            return Ok(record);
        }
        state.send_modify(|s| s.phase = LayerPhase::Converting);
        let (ingest, file, staged) = self.stage(&state).await?;
        drop(permits);
        failpoint!(LayerStaged);
        // The bytes were the right ones: it is theirs, whoever has brought it before.
        self.brought.note(&id, &self.right);
        if let Some(record) = self.present(&id).await? {
            return Ok(record);
        }
        state.send_modify(|s| {
            s.phase = LayerPhase::Finishing;
            s.done = self.blob.size;
        });
        self.until_below_is_there().await?;
        failpoint!(LowerLayersThere);
        // What is left takes little, no registry has a hand in it, and it cannot be stopped: who asks meanwhile is to find it under way.
        let _to_its_end = state.subscribe();
        let (store, chain, diff_id) = (self.store.clone(), self.chain.clone(), self.diff_id.clone());
        let lease = self.lease.clone();
        blocking(move || {
            let below = &chain[..chain.len() - 1];
            let mut files = Vec::with_capacity(below.len());
            for layer in below {
                let missing = || Failure::Store(Arc::new(StoreError::LayerMissing { id: layer.to_string() }));
                files.push(Arc::new(File::open(store.layer_path(layer)).map_err(|_| missing())?));
            }
            let converted = staged.finish(&files).map_err(convert_failure)?;
            failpoint!(LayerConverted);
            let record = LayerRecord::new(id, below.last().cloned(), diff_id, converted);
            let record = store.commit_layer(ingest, &file, &record).map_err(store_failure)?;
            drop(lease);
            Ok(record)
        })
        .await?
    }

    /// Waits until the layer may begin: when the one below is there, or there is room for one more that comes before it.
    async fn room_ahead(&self) -> Result<Option<SemaphorePermit<'_>>, Failure> {
        let failed = async {
            let failed = match self.below.clone() {
                Some(below) => follow(below, |_, _| {}).await.is_err(),
                None => false,
            };
            if !failed {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            there = self.until_below_is_there() => there.map(|()| None),
            // Whether anybody asks again is not known: what has not begun need not.
            () = failed => self.until_below_is_there().await.map(|()| None),
            // Closed never happens; if it did, going on would be right.
            room = self.ahead.acquire() => Ok(room.ok()),
        }
    }

    /// Waits for the layer below; where that fails, for whoever brings it the next time. Its waiters get its error, and nobody follows this layer
    /// alone for long.
    async fn until_below_is_there(&self) -> Result<(), Failure> {
        let (Some(first), [.., id, _]) = (&self.below, &self.chain[..]) else { return Ok(()) };
        let mut flight = Some(first.clone());
        let mut news = self.flights.news();
        loop {
            if let Some(flight) = flight
                && follow(flight, |_, _| {}).await.is_ok()
            {
                return Ok(());
            }
            news.mark_unchanged();
            // It may come by another right as well.
            if self.present(id).await?.is_some() {
                return Ok(());
            }
            flight = self.flights.find(id, &self.right);
            if flight.is_none() {
                // The sender is this job's own as well: it is never closed.
                let _ = news.changed().await;
            }
        }
    }

    async fn present(&self, id: &Digest) -> Result<Option<LayerRecord>, Failure> {
        let (store, id) = (self.store.clone(), id.clone());
        blocking(move || store.layer(&id)).await?.map_err(store_failure)
    }

    /// The layer from the first server that sends the right bytes. The last one's error counts.
    async fn stage(&self, state: &watch::Sender<State>) -> Result<(Ingest, File, StagedLayer), Failure> {
        let servers = self.source.servers();
        let mut server = 0;
        loop {
            let store = self.store.clone();
            let (ingest, file) = blocking(move || store.ingest()).await?.map_err(store_failure)?;
            let out = file.try_clone().map_err(|e| convert_failure(ConvertError::Write(e)))?;
            match self.fetch(state, server, out).await {
                Ok(staged) => return Ok((ingest, file, staged)),
                Err(Refusal::Server(failure)) if server + 1 < servers.len() => {
                    let (mirror, layer, error) = (servers[server], &self.blob.digest, failure.chain());
                    tracing::warn!(mirror, %layer, error, "a mirror did not bring a layer: the next server is asked for all of it");
                    server += 1;
                }
                Err(Refusal::Server(failure) | Refusal::Layer(failure)) => return Err(failure),
            }
        }
    }

    async fn fetch(&self, state: &watch::Sender<State>, server: usize, out: File) -> Result<StagedLayer, Refusal> {
        let count = Arc::new(AtomicU64::new(0));
        let (sink, reader) = channel(&self.blob, count.clone());
        let (diff_id, limits) = (self.diff_id.clone(), self.limits.clone());
        let converter = self.converter.clone();
        let staging = blocking(move || stage_layer(&converter, reader, &diff_id, out, &limits));
        let both = async { tokio::join!(self.source.blob(&self.blob, server, sink), staging) };
        tokio::pin!(both);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (fetched, staged) = loop {
            tokio::select! {
                done = &mut both => break done,
                _ = ticks.tick() => {
                    let now = count.load(Ordering::Relaxed);
                    state.send_if_modified(|s| std::mem::replace(&mut s.done, now) != now);
                }
            }
        };
        judge(fetched, staged.map_err(Refusal::Layer)?)
    }
}

/// Why a layer did not come from one server.
#[derive(Debug)]
enum Refusal {
    /// Another server may do better.
    Server(Failure),
    /// It is the layer, or this host.
    Layer(Failure),
}

/// Of two errors, the one that explains the other.
fn judge<T>(fetched: Result<(), SourceError>, staged: Result<T, ConvertError>) -> Result<T, Refusal> {
    match (fetched, staged) {
        (Ok(()), Ok(staged)) => Ok(staged),
        (Ok(()), Err(error)) => Err(Refusal::Layer(convert_failure(error))),
        // The converter has refused bytes that nobody has proved, and the rest was too long to prove them.
        (Err(SourceError::Abandoned { .. }), Err(error)) => match error.kind() {
            ErrorKind::Corrupt | ErrorKind::InvalidImage => Err(Refusal::Server(convert_failure(error))),
            _ => Err(Refusal::Layer(convert_failure(error))),
        },
        // Bytes that are not the ones promised, or not all of them, may look like anything to the converter.
        (Err(error), _) => Err(Refusal::Server(Failure::Fetch(Arc::new(error)))),
    }
}

fn convert_failure(error: ConvertError) -> Failure {
    Failure::Convert(Arc::new(error))
}

fn store_failure(error: StoreError) -> Failure {
    Failure::Store(Arc::new(error))
}

/// Runs something that blocks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Failure::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_is_asked_when_bytes_were_wrong_or_unproved_and_not_when_it_is_the_layer_or_the_host() {
        let what = || "GET it".to_owned();
        let abandoned = || Err(SourceError::Abandoned { what: what() });
        let short = || Err(SourceError::Truncated { what: what(), got: 1, want: 2 });
        let bad = || ConvertError::Truncated { what: "a header" };
        let full = || ConvertError::Write(std::io::ErrorKind::StorageFull.into());
        let server = |fetched, staged| matches!(judge::<()>(fetched, Err(staged)), Err(Refusal::Server(_)));
        assert!(server(short(), bad()) && server(short(), ConvertError::Cancelled) && server(abandoned(), bad()));
        assert!(!server(Ok(()), bad()), "the bytes are those that the manifest names: it is the layer");
        assert!(!server(Ok(()), full()) && !server(abandoned(), full()), "it is the disk");
    }
}
