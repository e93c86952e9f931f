//! Making room: which names go so that their layers can.

use std::time::{Duration, SystemTime};

use super::{GcReport, Images, Inner, blocking};
use crate::{
    ImageError,
    store::{RefRecord, StoreError},
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
            for Candidate { record, age } in inner.candidates(goal.min_age)? {
                let old = goal.max_age.is_some_and(|most| age >= most);
                if report.freed >= goal.bytes && !old {
                    // The others are younger still.
                    break;
                }
                // Who has taken a lease meanwhile keeps the layers, and the name.
                if inner.is_used(&record) || inner.is_pinned(&record.reference) {
                    continue;
                }
                inner.store.remove_ref(&record.reference)?;
                tracing::info!(
                    image = record.reference,
                    unused_s = age.as_secs(),
                    "an image that nobody uses makes way"
                );
                report.images.push(record.reference);
                inner.collect_into(&mut report)?;
            }
            Ok(report)
        })
        .await
    }

    /// Writes down that what is in use now is, so that it counts as young when it no longer is. To be called from time to time.
    pub async fn note_use(&self) -> Result<(), ImageError> {
        let inner = self.inner.clone();
        blocking(move || {
            let refs = inner.store.refs()?;
            refs.iter().filter(|record| inner.is_used(record)).try_for_each(|r| inner.store.touch_ref(&r.reference))
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
            let used = self.store.ref_used(&record.reference)?;
            // A time to come (a clock that was set) counts as now.
            let age = used.and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
            if age >= min_age && !self.is_used(&record) && !self.is_pinned(&record.reference) {
                all.push(Candidate { record, age });
            }
        }
        all.sort_by(|a, b| b.age.cmp(&a.age).then_with(|| a.record.reference.cmp(&b.record.reference)));
        Ok(all)
    }

    pub(super) fn collect_into(&self, report: &mut GcReport) -> Result<(), StoreError> {
        let removed = self.store.collect(|id, remove| self.leases.unless_leased(id, remove))?;
        report.removed.extend(removed.layers);
        report.freed += removed.bytes;
        report.leased = removed.leased;
        Ok(())
    }
}
