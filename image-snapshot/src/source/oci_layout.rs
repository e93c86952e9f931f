//! `oci-layout:PATH[:name]`, a directory as `skopeo copy … oci:PATH` and `umoci` make it, and `oci-archive:PATH[:name]`, the same in a tar file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use async_trait::async_trait;
use serde::Deserialize;

use super::{BlobSink, Fetched, Source, SourceError, Top, files::Files};
use crate::{Digest, Limits, manifest::Descriptor, store::Access};

const NAME: &str = "org.opencontainers.image.ref.name";

/// A layout on disk.
#[derive(Debug)]
pub(crate) struct OciLayout {
    files: Files,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

impl OciLayout {
    pub(crate) fn directory(root: &Path, name: Option<&str>, limits: &Limits) -> Self {
        Self { files: Files::directory(root, limits), name: name.map(str::to_owned) }
    }

    pub(crate) fn archive(path: &Path, name: Option<&str>, limits: &Limits) -> Self {
        Self { files: Files::archive(path, limits), name: name.map(str::to_owned) }
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replacen(':', "/", 1))
}

#[async_trait]
impl Source for OciLayout {
    async fn top(&self) -> Result<Top, SourceError> {
        let (bytes, what) = self.files.read("index.json").await?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|source| SourceError::Parse { what: what.clone(), source })?;
        let name_of = |d: &Descriptor| d.annotations.as_ref().and_then(|a| a.get(NAME)).cloned();
        let Some(wanted) = &self.name else {
            // Several names of one image are no choice, nor are several platforms of one name.
            let named: BTreeMap<_, _> = index.manifests.iter().filter_map(|d| Some((name_of(d)?, &d.digest))).collect();
            if named.values().collect::<BTreeSet<_>>().len() > 1 {
                let names: Vec<_> = named.into_keys().collect();
                let detail = format!(": it has several images, say which: {}", names.join(", "));
                return Err(SourceError::NotFound { what, detail });
            }
            return Ok(Top::Entries(index.manifests));
        };
        let (found, others): (Vec<_>, Vec<_>) =
            index.manifests.into_iter().partition(|d| name_of(d).as_deref() == Some(wanted));
        if found.is_empty() {
            let have: Vec<_> = others.iter().filter_map(name_of).collect();
            let detail = format!(": it has no image named {wanted:?}, only: {}", have.join(", "));
            return Err(SourceError::NotFound { what, detail });
        }
        Ok(Top::Entries(found))
    }

    async fn head(&self) -> Result<Option<Digest>, SourceError> {
        Ok(None)
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Fetched, SourceError> {
        let content_type = Some(descriptor.media_type.clone()).filter(|t| !t.is_empty());
        let bytes = self.small_blob(descriptor).await?;
        Ok(Fetched { bytes, content_type, digest: descriptor.digest.clone() })
    }

    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.files.read_checked(&blob_path(&descriptor.digest), &descriptor.digest).await
    }

    async fn blob(&self, descriptor: &Descriptor, _server: usize, sink: BlobSink) -> Result<(), SourceError> {
        self.files.open(&blob_path(&descriptor.digest)).await?.send(sink).await
    }

    fn access(&self) -> Access {
        // Who may read one file of the host has shown nothing about what else is in the store.
        Access::default()
    }

    fn repository(&self) -> Option<String> {
        None
    }
}
