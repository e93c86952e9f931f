//! Removing what nobody needs.

use std::collections::BTreeSet;

use super::{Store, StoreError, faults::failpoint};
use crate::Digest;

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Chain ids.
    pub layers: Vec<Digest>,
    /// Bytes of their files.
    pub bytes: u64,
    /// Layers that only a lease kept.
    pub leased: usize,
}

impl Store {
    /// Removes layers and blobs that no ref needs. `unless_leased` gets a layer's id and what removes it: see [`Store::remove_layer`].
    pub(crate) fn collect(
        &self,
        mut unless_leased: impl FnMut(&Digest, &mut dyn FnMut() -> Result<(), StoreError>) -> Result<bool, StoreError>,
    ) -> Result<Removed, StoreError> {
        let mut blobs = BTreeSet::new();
        let mut layers = BTreeSet::new();
        for record in self.refs()? {
            layers.extend(record.layers);
            blobs.extend([record.manifest, record.config]);
        }
        failpoint!(RootsRead);
        let mut out = Removed::default();
        for layer in self.layers()? {
            if layers.contains(&layer.id) {
                continue;
            }
            if self.remove_layer(&layer.id, |remove| unless_leased(&layer.id, remove))? {
                out.bytes += layer.bytes;
                out.layers.push(layer.id);
            } else {
                out.leased += 1;
            }
        }
        for blob in self.blobs()? {
            if !blobs.contains(&blob) {
                self.remove_blob(&blob)?;
            }
        }
        failpoint!(Collected);
        Ok(out)
    }
}
