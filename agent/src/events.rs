//! What happened to pods, in a kubelet's words: a bounded journal that watchers read by sequence number.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use agent_api::proto::PodEvent;
use tokio::sync::watch;

/// Events kept for a watcher that is away.
const KEPT: usize = 4096;

/// The journal; clones are the same journal.
#[derive(Debug, Clone)]
pub struct Journal {
    inner: Arc<Mutex<Inner>>,
    newest: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<PodEvent>,
    last: u64,
    dropped: u64,
}

impl Default for Journal {
    fn default() -> Self {
        Self { inner: Arc::default(), newest: Arc::new(watch::Sender::new(0)) }
    }
}

impl Journal {
    /// An empty journal whose numbers start after `last`: numbers of an earlier agent must not come again.
    pub fn starting_after(last: u64) -> Self {
        let journal = Self::default();
        journal.lock().last = last;
        journal
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event; its `seq` is filled in.
    pub fn add(&self, mut event: PodEvent) {
        let mut inner = self.lock();
        inner.last += 1;
        event.seq = inner.last;
        inner.events.push_back(event);
        if inner.events.len() > KEPT {
            inner.events.pop_front();
            inner.dropped += 1;
        }
        let last = inner.last;
        drop(inner);
        self.newest.send_replace(last);
    }

    /// Events after `seq`, oldest first, at most `limit`.
    pub fn after(&self, seq: u64, limit: usize) -> Vec<PodEvent> {
        self.lock().events.iter().filter(|e| e.seq > seq).take(limit).cloned().collect()
    }

    /// A watcher has everything up to `seq`.
    pub fn acknowledge(&self, seq: u64) {
        self.lock().events.retain(|e| e.seq > seq);
    }

    /// Changes with each event.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_kept_within_bounds_and_dropped_when_acknowledged() {
        let journal = Journal::default();
        for _ in 0..KEPT + 10 {
            journal.add(PodEvent::default());
        }
        let all = journal.after(0, usize::MAX);
        assert_eq!((all.len(), all[0].seq), (KEPT, 11));
        assert_eq!(journal.after(0, 5).len(), 5);
        journal.acknowledge(all[KEPT - 2].seq);
        assert_eq!(journal.after(0, 9).len(), 1);
    }
}
