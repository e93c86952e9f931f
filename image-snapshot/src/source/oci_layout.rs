//! `oci-layout:PATH[:name]`: a directory as `skopeo copy … oci:PATH` and `umoci` make it.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;

use super::{BlobSink, Fetched, Source, SourceError, Top};
use crate::{Digest, manifest::Descriptor, store::Access};

const NAME: &str = "org.opencontainers.image.ref.name";
const CHUNK: usize = 256 << 10;

/// A layout on disk.
#[derive(Debug)]
pub(crate) struct OciLayout {
    root: PathBuf,
    name: Option<String>,
    /// Bytes of a document.
    limit: u64,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

impl OciLayout {
    pub(crate) fn new(root: &Path, name: Option<&str>, limit: u64) -> Self {
        Self { root: root.to_owned(), name: name.map(str::to_owned), limit }
    }

    /// Opens a file of the layout; links that lead out of the directory are refused, and only regular files are read.
    fn open(&self, inside: &str) -> Result<(std::fs::File, String), SourceError> {
        let what = self.root.join(inside).display().to_string();
        let fail = |source: io::Error| SourceError::Io { what: what.clone(), source };
        let dir_flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, dir_flags, Mode::empty()).map_err(|e| fail(e.into()))?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat2(&root, inside, flags, Mode::empty(), ResolveFlags::BENEATH)
            .map_err(|e| fail(e.into()))?;
        let file = std::fs::File::from(file);
        if !file.metadata().map_err(fail)?.is_file() {
            return Err(fail(io::Error::other("not a regular file")));
        }
        Ok((file, what))
    }

    fn read(&self, inside: &str) -> Result<(Vec<u8>, String), SourceError> {
        let (file, what) = self.open(inside)?;
        let mut bytes = Vec::new();
        file.take(self.limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| SourceError::Io { what: what.clone(), source })?;
        if bytes.len() as u64 > self.limit {
            return Err(SourceError::TooLarge { what, limit: self.limit });
        }
        Ok((bytes, what))
    }

    fn checked(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let (bytes, what) = self.read(&blob_path(&descriptor.digest))?;
        check(what, &bytes, &descriptor.digest)?;
        Ok(bytes)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replacen(':', "/", 1))
}

/// Compares content with its digest.
pub(crate) fn check(what: String, bytes: &[u8], want: &Digest) -> Result<(), SourceError> {
    if want.matches(bytes) {
        return Ok(());
    }
    Err(SourceError::DigestMismatch { what, want: want.clone(), got: Digest::sha256(bytes) })
}

#[async_trait]
impl Source for OciLayout {
    async fn top(&self) -> Result<Top, SourceError> {
        let (bytes, what) = self.read("index.json")?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|source| SourceError::Parse { what: what.clone(), source })?;
        let name_of = |d: &Descriptor| d.annotations.as_ref().and_then(|a| a.get(NAME)).cloned();
        let Some(wanted) = &self.name else {
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
        Ok(Fetched { bytes: self.checked(descriptor)?, content_type, digest: descriptor.digest.clone() })
    }

    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        self.checked(descriptor)
    }

    async fn blob(&self, descriptor: &Descriptor, mut sink: BlobSink) -> Result<(), SourceError> {
        let (mut file, what) = self.open(&blob_path(&descriptor.digest))?;
        loop {
            let step = tokio::task::spawn_blocking(move || {
                let mut buf = vec![0; CHUNK];
                let n = file.read(&mut buf);
                n.map(|n| {
                    buf.truncate(n);
                    (file, buf)
                })
            });
            let (back, buf) = step
                .await
                .map_err(|e| SourceError::Io { what: what.clone(), source: io::Error::other(e) })?
                .map_err(|source| SourceError::Io { what: what.clone(), source })?;
            if buf.is_empty() {
                return sink.finish(&what).await;
            }
            file = back;
            sink.push(&what, Bytes::from(buf)).await?;
        }
    }

    fn access(&self) -> Access {
        Access { public: true, ..Access::default() }
    }

    fn repository(&self) -> Option<String> {
        None
    }
}
