//! Who still needs which layer. In memory: see [`Images`](crate::Images) for what happens over a restart.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    Digest,
    store::{StoreError, faults::failpoint},
};

/// Counts of leases by layer.
#[derive(Debug, Default)]
pub(super) struct Leases {
    counts: Mutex<HashMap<Digest, usize>>,
}

/// Keeps layers from collection while it, or a clone of it, lives.
#[derive(Debug, Clone)]
pub struct Lease {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    layers: Vec<Digest>,
    table: Arc<Leases>,
}

impl Lease {
    /// Chain ids under the lease, lowest first.
    pub fn layers(&self) -> &[Digest] {
        &self.held.layers
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.table.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in &self.layers {
            if let Some(count) = counts.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(layer);
                }
            }
        }
        failpoint!(LeaseDropped);
    }
}

impl Leases {
    /// Leases layers, whether they are there yet or not. **Lease first, look second**: what is there then, stays.
    pub(super) fn take(self: &Arc<Self>, layers: Vec<Digest>) -> Lease {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in &layers {
            *counts.entry(layer.clone()).or_insert(0) += 1;
        }
        drop(counts);
        failpoint!(LeaseTaken);
        Lease { held: Arc::new(Held { layers, table: self.clone() }) }
    }

    pub(super) fn is_leased(&self, layer: &Digest) -> bool {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).contains_key(layer)
    }

    /// Calls `remove` if nobody leases the layer; nobody can begin to lease anything while it runs, so it must be quick.
    pub(super) fn unless_leased(
        &self,
        layer: &Digest,
        remove: &mut dyn FnMut() -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.contains_key(layer) {
            failpoint!(LeaseHonoured);
            return Ok(false);
        }
        failpoint!(LeaseNotFound);
        remove()?;
        drop(counts);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_leased_until_the_last_clone_of_the_last_lease_goes() {
        let table = Arc::new(Leases::default());
        let [a, b] = ["a", "b"].map(|s| Digest::sha256(s.as_bytes()));
        let one = table.take(vec![a.clone(), b.clone()]);
        let two = table.take(vec![a.clone()]);
        let clone = one.clone();
        drop(one);
        assert!(table.is_leased(&a) && table.is_leased(&b));
        drop(clone);
        assert!(table.is_leased(&a) && !table.is_leased(&b));
        assert!(!table.unless_leased(&a, &mut || panic!("leased")).unwrap());
        drop(two);
        assert!(table.unless_leased(&a, &mut || Ok(())).unwrap());
        assert!(table.counts.lock().unwrap().is_empty());
    }
}
