//! Which layers that are here somebody may have without fetching them. Layers are known by chain ids, which are no secret: who writes a manifest
//! may name those of an image that he has no right to pull. So a layer that is here is his only if
//!
//! 1. an image with it came without credentials, or with some that were accepted from him too;
//! 2. an image with it came from the same registry, as the same blob, and the registry lets him have that blob of his own repository; or
//! 3. he brings it: it is fetched and checked like one that is not here, and dropped for the one that is.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use super::{Inner, blocking, ensure::Wish, resolve::Resolved};
use crate::{
    Digest, ImageError, Reference,
    manifest::{Descriptor, Document},
    store::{Access, LayerRecord, RefRecord, Store, StoreError},
};

/// Who brought which layer since the store was opened: names are written a little later than layers.
#[derive(Debug, Default)]
pub(super) struct Brought {
    by: Mutex<HashMap<Digest, BTreeSet<String>>>,
}

impl Brought {
    pub(super) fn note(&self, layer: &Digest, right: &str) {
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        by.entry(layer.clone()).or_default().insert(right.to_owned());
    }

    pub(super) fn has(&self, layer: &Digest, right: &str) -> bool {
        self.by.lock().unwrap_or_else(PoisonError::into_inner).get(layer).is_some_and(|all| all.contains(right))
    }

    pub(super) fn forget(&self, layers: &[Digest]) {
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        layers.iter().for_each(|layer| drop(by.remove(layer)));
    }
}

/// By which right a source gave its answers, in one word.
pub(super) fn word(reference: &Reference, access: &Access) -> String {
    let place = match reference {
        Reference::Registry(image) => image.registry().to_owned(),
        Reference::Local(_) => reference.to_string(),
    };
    let credentials: Vec<&str> = access.credentials.iter().map(String::as_str).collect();
    format!("{place} {} {}", access.public, credentials.join(" "))
}

/// What the names in the store say about a layer.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// It is his.
    Yes,
    /// It is, if the registry gives him this blob.
    IfOffered,
    /// Nothing.
    No,
}

/// `blobs`: of a name, the digests of its layers' blobs.
fn said(
    reference: &Reference,
    access: &Access,
    layer: &Digest,
    blob: &Digest,
    names: &[(RefRecord, Vec<Digest>)],
) -> Said {
    let mut out = Said::No;
    for (record, blobs) in names {
        let Some(index) = record.layers.iter().position(|id| id == layer) else { continue };
        let shared = record.access.public || !record.access.credentials.is_disjoint(&access.credentials);
        if shared {
            return Said::Yes;
        }
        let same_blob = blobs.get(index) == Some(blob);
        match (reference, record.reference.parse::<Reference>()) {
            (Reference::Registry(mine), Ok(Reference::Registry(theirs)))
                if same_blob && mine.registry() == theirs.registry() =>
            {
                out = Said::IfOffered;
            }
            // The same path on this host, whose bytes have not changed.
            (Reference::Local(mine), Ok(Reference::Local(theirs))) if same_blob && *mine == theirs => return Said::Yes,
            _ => {}
        }
    }
    out
}

/// All names with the blobs of their layers, as far as their manifests are here.
fn names(store: &Store) -> Result<Vec<(RefRecord, Vec<Digest>)>, StoreError> {
    let mut out = Vec::new();
    for record in store.refs()? {
        let manifest = store.blob(&record.manifest)?.and_then(|bytes| Document::parse(&bytes, None).ok());
        let blobs = match manifest {
            Some(Document::Manifest(manifest)) => manifest.layers.into_iter().map(|layer| layer.digest).collect(),
            Some(Document::Index(_)) | None => Vec::new(),
        };
        out.push((record, blobs));
    }
    Ok(out)
}

impl Inner {
    /// Those of an image's layers that are here and are this caller's.
    pub(super) async fn rightful(
        &self,
        wish: &Wish,
        resolved: &Resolved,
        chain: &[Digest],
    ) -> Result<Vec<Option<LayerRecord>>, ImageError> {
        let (store, ids) = (self.store.clone(), chain.to_vec());
        let mut present: Vec<Option<LayerRecord>> =
            blocking(move || ids.iter().map(|id| store.layer(id)).collect()).await?;
        // The host's own operator may have anything.
        if wish.operator || present.iter().all(Option::is_none) {
            return Ok(present);
        }
        let (store, access) = (self.store.clone(), wish.source.access());
        let names = blocking(move || names(&store)).await?;
        let right = word(&wish.reference, &access);
        for ((here, id), blob) in present.iter_mut().zip(chain).zip(&resolved.manifest.layers) {
            if here.is_none() || self.brought.has(id, &right) {
                continue;
            }
            let yes = match said(&wish.reference, &access, id, &blob.digest, &names) {
                Said::Yes => true,
                Said::IfOffered => offered(wish, blob).await,
                Said::No => false,
            };
            if !yes {
                tracing::info!(layer = %id, "a layer that is here is fetched all the same: its right to it is not known");
                *here = None;
            }
        }
        Ok(present)
    }
}

/// A registry that cannot say is no reason to fail: the fetch will tell.
async fn offered(wish: &Wish, blob: &Descriptor) -> bool {
    wish.source.offers(blob).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    fn access(public: bool, credentials: &[&str]) -> Access {
        Access { public, credentials: credentials.iter().map(|&c| c.to_owned()).collect() }
    }

    fn name(reference: &str, access: Access) -> (RefRecord, Vec<Digest>) {
        let record = RefRecord {
            reference: reference.to_owned(),
            domain: String::new(),
            target: digest("t"),
            manifest: digest("m"),
            config: digest("c"),
            layers: vec![digest("base"), digest("top")],
            repo_digest: String::new(),
            access,
            pulled_at: jiff::Timestamp::UNIX_EPOCH,
        };
        (record, vec![digest("base blob"), digest("top blob")])
    }

    #[test]
    fn a_layer_is_his_who_could_have_pulled_it() {
        let top = |reference: &str, mine: Access, blob: &str, theirs: (RefRecord, Vec<Digest>)| {
            said(&reference.parse().unwrap(), &mine, &digest("top"), &digest(blob), &[theirs])
        };
        let private = || name("r.example/private:1", access(false, &["alice"]));
        let none = || access(false, &[]);
        assert_eq!(top("r.example/x", none(), "x", name("r.example/p:1", access(true, &[]))), Said::Yes);
        assert_eq!(top("other.example/x", access(false, &["alice"]), "x", private()), Said::Yes);
        assert_eq!(top("r.example/x", access(false, &["bob"]), "top blob", private()), Said::IfOffered);
        // Another registry may say what it likes; another blob is no proof of this one.
        assert_eq!(top("evil.example/x", access(true, &[]), "top blob", private()), Said::No);
        assert_eq!(top("r.example/x", access(true, &[]), "base blob", private()), Said::No);
        let local = |path: &str| name(path, none());
        assert_eq!(top("oci-layout:/a:1", none(), "top blob", local("oci-layout:/a:1")), Said::Yes);
        assert_eq!(top("oci-layout:/b:1", none(), "top blob", local("oci-layout:/a:1")), Said::No);
        assert_eq!(top("oci-layout:/a:1", none(), "other", local("oci-layout:/a:1")), Said::No);
        let strange =
            said(&"r.example/x".parse().unwrap(), &none(), &digest("no name has it"), &digest("b"), &[private()]);
        assert_eq!(strange, Said::No);
    }
}
