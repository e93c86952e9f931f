//! Keeps the protection of all pods' memory together equal to the sum of each pod's (cgroup v2), a moment after a change and
//! off the road of launches.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Inner;
use super::slots::blocking;

/// Changes are gathered for this long.
const GATHER: Duration = Duration::from_millis(100);

impl Inner {
    /// Something about a pod's protection may have changed.
    pub(super) fn protection_changed(self: &Arc<Self>) {
        if !self.tree.protects_memory() || self.summing.swap(true, Ordering::AcqRel) {
            return;
        }
        // The backend may be closed meanwhile: nothing here keeps it open.
        let inner = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(GATHER).await;
            let Some(inner) = inner.upgrade() else { return };
            // A change from here on is gathered by the next one.
            inner.summing.store(false, Ordering::Release);
            match blocking(move || inner.tree.sum_protection()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the pods' memory is protected less than it should be"),
                Err(error) => tracing::warn!(%error, "the pods' memory is protected less than it should be"),
            }
        });
    }
}
