//! Copies of layers for one trust domain each. A domain's layer has a name of its own, and with it a file, a mount and leases of its own.

use super::{
    Inner, blocking,
    ensure::{Found, image, snapshot},
};
use crate::{Digest, Image, ImageError};

/// Names of layers within a domain.
pub(super) fn layers(domain: &str, chain: &[Digest]) -> Vec<Digest> {
    match domain {
        "" => chain.to_vec(),
        // No chain id has a zero in what it is the digest of.
        _ => chain.iter().map(|id| Digest::sha256(format!("{domain}\0{id}").as_bytes())).collect(),
    }
}

impl Inner {
    /// Copies an image of the host's own for a domain that has the right to it. `None`: a layer is not what it was.
    pub(super) async fn copy_into(&self, domain: &str, found: Found) -> Result<Option<Image>, ImageError> {
        let Found { image: own, mut record, documents } = found;
        let (store, chain) = (self.store.clone(), record.layers.clone());
        let ids = layers(domain, &chain);
        let lease = self.leases.take(ids.clone());
        let copied = ids.clone();
        let copies = blocking(move || {
            let mut copies = Vec::new();
            for (index, (from, to)) in chain.iter().zip(&copied).enumerate() {
                let copy = match (store.layer(to)?, store.layer(from)?) {
                    (Some(here), _) => Some(here),
                    (None, Some(from)) => {
                        let below = index.checked_sub(1).map(|below| copied[below].clone());
                        store.copy_layer(&from, to.clone(), below)?
                    }
                    (None, None) => None,
                };
                let Some(copy) = copy else { return Ok(None) };
                copies.push(snapshot(&store, &copy));
            }
            Ok(Some(copies))
        })
        .await?;
        let Some(copies) = copies else { return Ok(None) };
        domain.clone_into(&mut record.domain);
        record.layers = ids;
        let record = self.record(record, documents).await?;
        let copy = image(&record, own.config.clone(), copies, lease);
        drop(own);
        Ok(Some(copy))
    }
}
