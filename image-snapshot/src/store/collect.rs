//! Removing what nobody needs.

use std::collections::BTreeSet;

use super::{Store, StoreError};
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
    /// Removes layers and blobs that no ref needs. `unless_leased` gets a layer's id and what removes it; it must either call that, with no
    /// lease possible meanwhile, and say true; or say false.
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
        let mut out = Removed::default();
        for layer in self.layers()? {
            if layers.contains(&layer.id) {
                continue;
            }
            if unless_leased(&layer.id, &mut || self.remove_layer(&layer.id))? {
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
        Ok(out)
    }
}
