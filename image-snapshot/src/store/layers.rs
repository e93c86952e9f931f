//! Layers and blobs.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use serde::{Deserialize, Serialize};

use super::{Ingest, Store, StoreError, faults::failpoint, files};
use crate::{Digest, convert::Converted, erofs::FileDigest};

/// What is known about a layer in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Chain id: its name.
    pub id: Digest,
    /// Chain id of the layer below.
    pub below: Option<Digest>,
    /// Digest of its archive.
    pub diff_id: Digest,
    /// Size of the EROFS file.
    pub bytes: u64,
    /// What the EROFS file must look like.
    pub digest: FileDigest,
    /// Bytes of the content of its files.
    pub content: u64,
}

impl LayerRecord {
    pub(crate) fn new(id: Digest, below: Option<Digest>, diff_id: Digest, converted: Converted) -> Self {
        let Converted { bytes, digest, content, .. } = converted;
        Self { id, below, diff_id, bytes, digest, content }
    }
}

/// Whether a layer's file is what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Byte for byte.
    Sound,
    /// Not there.
    Missing,
    /// Other bytes.
    Damaged,
}

impl Store {
    pub(super) fn layer_record_path(&self, id: &Digest) -> PathBuf {
        let dir = if id.algorithm() == crate::Algorithm::Sha256 { "layers/sha256" } else { "layers/sha512" };
        self.root.join(dir).join(format!("{}.json", id.hex()))
    }

    /// Where a layer's file is, or would be.
    pub fn layer_path(&self, id: &Digest) -> PathBuf {
        self.layer_record_path(id).with_extension("erofs")
    }

    /// The record of a layer that is here, whole as far as its size tells.
    pub fn layer(&self, id: &Digest) -> Result<Option<LayerRecord>, StoreError> {
        let path = self.layer_record_path(id);
        let Some(json) = files::read(&path)? else { return Ok(None) };
        let Some(record) = parse(&path, &json) else { return Ok(None) };
        let file = path.with_extension("erofs");
        match fs::metadata(&file) {
            Ok(meta) if meta.len() == record.bytes && record.id == *id => Ok(Some(record)),
            Ok(_) => {
                tracing::warn!(path = %file.display(), "a layer has the wrong size and is taken for missing");
                Ok(None)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("examine", &file)(e)),
        }
    }

    /// All layers that are here.
    pub fn layers(&self) -> Result<Vec<LayerRecord>, StoreError> {
        let mut out = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            for path in files::list(&self.root.join("layers").join(algorithm))? {
                let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
                let Ok(id) = format!("{algorithm}:{stem}").parse::<Digest>() else { continue };
                if path.extension().is_some_and(|e| e == "json")
                    && let Some(record) = self.layer(&id)?
                {
                    out.push(record);
                }
            }
        }
        Ok(out)
    }

    /// Takes in a finished layer and gives its record. `file` is synced here; record first, then the layer. One that somebody else has brought
    /// meanwhile stays: it may be mounted.
    pub(crate) fn commit_layer(
        &self,
        ingest: Ingest,
        file: &File,
        record: &LayerRecord,
    ) -> Result<LayerRecord, StoreError> {
        let target = self.layer_path(&record.id);
        file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(StoreError::io("protect", ingest.path()))?;
        failpoint!(LayerProtected);
        files::sync(file, ingest.path())?;
        failpoint!(LayerSynced);
        let _one_at_a_time = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = self.layer(&record.id)? {
            return Ok(earlier);
        }
        // A file that is there all the same is not what its record says: it must not meet the new record.
        if files::remove(&target)? {
            files::sync_dir(&target)?;
            failpoint!(OldLayerRemoved);
        }
        let json =
            serde_json::to_vec_pretty(record).map_err(|source| StoreError::Record { path: target.clone(), source })?;
        self.place(&self.layer_record_path(&record.id), &json)?;
        failpoint!(LayerRecorded);
        ingest.place(&target)?;
        failpoint!(LayerCommitted);
        Ok(record.clone())
    }

    /// Makes a copy of a layer under another name, with pages of its own in the page cache. `None`: it is not what it was.
    pub(crate) fn copy_layer(
        &self,
        from: &LayerRecord,
        id: Digest,
        below: Option<Digest>,
    ) -> Result<Option<LayerRecord>, StoreError> {
        let path = self.layer_path(&from.id);
        let (ingest, mut file) = self.ingest()?;
        let mut source = File::open(&path).map_err(StoreError::io("open", &path))?;
        std::io::copy(&mut source, &mut file).map_err(StoreError::io("copy", &path))?;
        failpoint!(LayerCopied);
        if FileDigest::of_file(&file).map_err(StoreError::io("read", ingest.path()))? != from.digest {
            return Ok(None);
        }
        self.commit_layer(ingest, &file, &LayerRecord { id, below, ..from.clone() }).map(Some)
    }

    /// Removes a layer that nobody leases; false: somebody does. `unless_leased` is given what takes the layer out of the store, which takes
    /// no time to speak of; it must either call that, with no lease possible meanwhile, and say true; or say false. What does take time (a
    /// sync, the blocks of a large file) comes after it.
    pub(crate) fn remove_layer(
        &self,
        id: &Digest,
        unless_leased: impl FnOnce(&mut dyn FnMut() -> Result<(), StoreError>) -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        let mut aside = None;
        let free = unless_leased(&mut || {
            aside = self.set_aside(&self.layer_path(id))?;
            Ok(())
        })?;
        failpoint!(LayerSetAside);
        if free {
            self.forget_layer(id)?;
        }
        if let Some(aside) = aside {
            files::remove(&aside)?;
            failpoint!(AsideRemoved);
        }
        Ok(free)
    }

    /// Removes the record of a layer whose file is gone, if nobody has brought it anew.
    fn forget_layer(&self, id: &Digest) -> Result<(), StoreError> {
        let _nobody_brings_it = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if self.layer(id)?.is_some() {
            return Ok(());
        }
        let record = self.layer_record_path(id);
        // The layer goes before its record, also after a power cut.
        files::sync_dir(&record)?;
        failpoint!(UnlinkSynced);
        files::remove(&record)?;
        failpoint!(RecordUnlinked);
        Ok(())
    }

    /// Reads a layer's whole file and compares it with what was written.
    pub fn verify(&self, id: &Digest) -> Result<Verdict, StoreError> {
        let json = files::read(&self.layer_record_path(id))?;
        let Some(record) = json.and_then(|json| parse(&self.layer_record_path(id), &json)) else {
            return Ok(Verdict::Missing);
        };
        let path = self.layer_path(id);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Verdict::Missing),
            Err(e) => return Err(StoreError::io("open", &path)(e)),
        };
        let found = FileDigest::of_file(&file).map_err(StoreError::io("read", &path))?;
        failpoint!(LayerRead);
        if found == record.digest {
            return Ok(Verdict::Sound);
        }
        failpoint!(DamageFound);
        Ok(Verdict::Damaged)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let dir = if digest.algorithm() == crate::Algorithm::Sha256 { "blobs/sha256" } else { "blobs/sha512" };
        self.root.join(dir).join(digest.hex())
    }

    /// A manifest or configuration; `None` when it is missing or no longer what its name says.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(files::read(&self.blob_path(digest))?.filter(|bytes| digest.matches(bytes)))
    }

    /// Keeps a manifest or configuration, which has been checked against `digest`.
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        if self.blob(digest)?.is_some() {
            return Ok(());
        }
        self.place(&self.blob_path(digest), bytes)
    }

    /// Digests of all blobs.
    pub(super) fn blobs(&self) -> Result<Vec<Digest>, StoreError> {
        let mut out = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            for path in files::list(&self.root.join("blobs").join(algorithm))? {
                let name = path.file_name().and_then(|s| s.to_str()).unwrap_or_default();
                out.extend(format!("{algorithm}:{name}").parse::<Digest>());
            }
        }
        Ok(out)
    }

    pub(super) fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        files::remove(&self.blob_path(digest))?;
        failpoint!(BlobUnlinked);
        Ok(())
    }
}

/// A record that does not parse counts as none: the layer is brought anew.
pub(super) fn parse(path: &Path, json: &[u8]) -> Option<LayerRecord> {
    serde_json::from_slice(json)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "a layer's record is damaged and is left out"),
        )
        .ok()
}
