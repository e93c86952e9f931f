//! Making room: which names go so that their layers can.

use std::time::{Duration, SystemTime};

use super::{GcReport, Going, Images, Inner, blocking};
use crate::{
    Digest, ImageError,
    store::{RefRecord, StoreError, faults::failpoint},
};

/// How much room is to be made, and at whose expense. Never at that of an image that somebody has a lease on, or that is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eviction {
    /// Enough once so many bytes have been freed.
    pub bytes: u64,
    /// What was used more recently stays.
    pub min_age: Duration,
    /// What was not used for so long goes also when there is room enough.
    pub max_age: Option<Duration>,
}

/// What a store holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Names.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Layers that somebody has a lease on.
    pub leased: usize,
    /// Bytes of all layers.
    pub bytes: u64,
}

/// A name, and how long ago it was last used.
struct Candidate {
    record: RefRecord,
    age: Duration,
}

impl Images {
    /// Forgets images that nobody uses, those first that have not been used for longest, until enough is freed; and, as [`Images::gc`], what no name
    /// needs. Does nothing before [`Images::allow_gc`].
    pub async fn evict(&self, goal: Eviction) -> Result<GcReport, ImageError> {
        if !self.may_collect() {
            return Ok(GcReport::default());
        }
        let inner = self.inner.clone();
        let _records = self.inner.records.lock().await;
        blocking(move || {
            let mut report = GcReport::default();
            inner.collect_into(&mut report)?;
            let candidates = inner.candidates(goal.min_age)?;
            failpoint!(NamesRanked);
            for Candidate { record, age } in candidates {
                let old = goal.max_age.is_some_and(|most| age >= most);
                if report.freed >= goal.bytes && !old {
                    // The others are younger still.
                    break;
                }
                // Who has taken a lease meanwhile keeps the layers, and the name.
                if inner.is_used(&record) || inner.is_pinned(&record) {
                    continue;
                }
                inner.store.remove_ref(&record.reference, &record.domain)?;
                failpoint!(NameForgotten);
                tracing::info!(
                    image = record.reference,
                    unused_s = age.as_secs(),
                    "an image that nobody uses makes way"
                );
                report.images.push(record.reference);
                inner.collect_into(&mut report)?;
            }
            failpoint!(Evicted);
            Ok(report)
        })
        .await
    }

    /// What the store holds now.
    pub async fn usage(&self) -> Result<Usage, ImageError> {
        let inner = self.inner.clone();
        blocking(move || {
            let layers = inner.store.layers()?;
            Ok(Usage {
                images: inner.store.refs()?.len(),
                layers: layers.len(),
                leased: layers.iter().filter(|layer| inner.leases.is_leased(&layer.id)).count(),
                bytes: layers.iter().map(|layer| layer.bytes).sum(),
            })
        })
        .await
    }

    /// Writes down that what is in use now is, so that it counts as young when it no longer is. To be called from time to time.
    pub async fn note_use(&self) -> Result<(), ImageError> {
        let inner = self.inner.clone();
        blocking(move || {
            let refs = inner.store.refs()?;
            refs.iter()
                .filter(|record| inner.is_used(record))
                .try_for_each(|r| inner.store.touch_ref(&r.reference, &r.domain))
        })
        .await
    }
}

impl Inner {
    fn is_used(&self, record: &RefRecord) -> bool {
        record.layers.last().is_some_and(|layer| self.leases.is_leased(layer))
    }

    /// Those that may go, the longest unused first.
    fn candidates(&self, min_age: Duration) -> Result<Vec<Candidate>, StoreError> {
        let now = SystemTime::now();
        let mut all = Vec::new();
        for record in self.store.refs()? {
            let used = self.store.ref_used(&record.reference, &record.domain)?;
            // A time to come (a clock that was set) counts as now.
            let age = used.and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
            if age >= min_age && !self.is_used(&record) && !self.is_pinned(&record) {
                all.push(Candidate { record, age });
            }
        }
        all.sort_by(|a, b| b.age.cmp(&a.age).then_with(|| a.record.reference.cmp(&b.record.reference)));
        Ok(all)
    }

    /// As [`Leases::unless_leased`](super::lease::Leases::unless_leased), told to who wants to hear of it.
    pub(super) fn unless_leased(
        &self,
        id: &Digest,
        remove: &mut dyn FnMut() -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        self.leases.unless_leased(id, &mut || {
            if let Some(Going(going)) = self.going.get() {
                going(id);
            }
            remove()
        })
    }

    pub(super) fn collect_into(&self, report: &mut GcReport) -> Result<(), StoreError> {
        let removed = self.store.collect(|id, remove| self.unless_leased(id, remove))?;
        self.brought.forget(&removed.layers);
        report.removed.extend(removed.layers);
        report.freed += removed.bytes;
        report.leased = removed.leased;
        Ok(())
    }
}
