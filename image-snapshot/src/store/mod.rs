//! The directory tree that holds everything.
//!
//! ```text
//! ROOT/                              0700
//!   lock                             flock'ed by the one process that owns the store
//!   format                           version of this layout
//!   salt                             random; makes fingerprints of credentials worthless elsewhere
//!   ingest/                          files being written; emptied when the store is opened
//!   layers/sha256/CHAINID.json       record of a layer: size, digest of its file, diff id, layer below
//!   layers/sha256/CHAINID.erofs      the layer
//!   blobs/sha256/DIGEST              manifests and configurations, byte for byte
//!   refs/sha256-OF-NAME.json         name -> manifest, and who may use it without asking the registry; one for each trust domain
//! ```
//!
//! **Crash safety.** Every file is written in `ingest/`, synced, renamed into place, and its directory synced; nothing is ever changed in
//! place. A layer's record comes before the layer, and the layer goes before the record, so a layer without a record is never seen; a record
//! without a layer is swept away when the store is opened. A layer counts as present if its size is the recorded one; content is checked by
//! [`Store::verify`](self::Store::verify). Blobs are checked against their name at each read.
//!
//! **What is kept.** Roots are the refs and the leases. A ref keeps its manifest, configuration and layers; a lease keeps layers. Layers
//! below a kept layer are kept with it, because an image always names all of them.
//!
//! **Several processes.** One owner at a time (`lock`); others ask the owner. Files are immutable once in place, so whoever was given a path
//! and a lease may read it without any lock.

mod collect;
pub mod faults;
mod files;
mod layers;
mod refs;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::ErrorKind;

pub use collect::Removed;
use faults::failpoint;
pub(crate) use files::Ingest;
pub use layers::{LayerRecord, Verdict};
pub(crate) use refs::{Access, RefRecord};

/// Layout that this program reads and writes.
const FORMAT: &str = "nodeless-images 1";

/// Why the store could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("could not {operation} {path:?}")]
    Io {
        /// What we tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process owns the directory.
    #[error("image store {path:?} is in use by another process")]
    InUse {
        /// The store's root.
        path: PathBuf,
    },
    /// The directory was written by another version.
    #[error("image store {path:?} has format {found:?}, this program knows {known:?}")]
    Format {
        /// The store's root.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What we can read.
        known: &'static str,
    },
    /// A record does not parse.
    #[error("record {path:?} is damaged")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A layer that somebody counts on is not there.
    #[error("layer {id} is not in the store")]
    LayerMissing {
        /// Chain id, or what was taken for one.
        id: String,
    },
    /// A blocking task died.
    #[error("a store task was cancelled")]
    Cancelled,
}

impl StoreError {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => ErrorKind::NoSpace,
            _ => ErrorKind::Store,
        }
    }

    fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::Io { operation, path: path.to_owned(), source }
    }
}

/// An open store. All calls block.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    salt: String,
    /// Held while a layer gets its name.
    commits: Mutex<()>,
    /// Held for as long as the store is open.
    _lock: File,
}

impl Store {
    /// Opens or makes the store, and removes what an earlier owner left half-made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for dir in ["", "ingest", "layers/sha256", "layers/sha512", "blobs/sha256", "blobs/sha512", "refs"] {
            files::make_dir(&root.join(dir))?;
        }
        failpoint!(DirectoriesMade);
        let lock = files::lock(root)?;
        failpoint!(Locked);
        let store = Self { root: root.to_owned(), salt: String::new(), commits: Mutex::default(), _lock: lock };
        // First of all: what another format's owner keeps would look damaged.
        store.check_format()?;
        failpoint!(FormatChecked);
        store.sweep()?;
        failpoint!(Swept);
        let salt = store.read_or_make_salt()?;
        failpoint!(SaltReady);
        Ok(Self { salt, ..store })
    }

    /// A name for a secret that only this store understands.
    pub(crate) fn fingerprint(&self, parts: &[&str]) -> String {
        let mut text = self.salt.clone();
        for part in parts {
            text.push_str(&format!("\0{}\0{part}", part.len()));
        }
        crate::Digest::sha256(text.as_bytes()).hex().to_owned()
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let path = self.root.join("format");
        match files::read(&path)? {
            None => self.place(&path, FORMAT.as_bytes()),
            Some(found) if found == FORMAT.as_bytes() => Ok(()),
            Some(found) => Err(StoreError::Format {
                path: self.root.clone(),
                found: String::from_utf8_lossy(&found).into_owned(),
                known: FORMAT,
            }),
        }
    }

    fn read_or_make_salt(&self) -> Result<String, StoreError> {
        let path = self.root.join("salt");
        if let Some(salt) = files::read(&path)?
            && salt.len() == 64
            && salt.iter().all(u8::is_ascii_hexdigit)
        {
            return Ok(String::from_utf8_lossy(&salt).into_owned());
        }
        let mut bytes = [0; 32];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| StoreError::io("get random bytes for", &path)(e.into()))?;
        let salt = hex::encode(bytes);
        self.place(&path, salt.as_bytes())?;
        Ok(salt)
    }

    /// Empties `ingest/` and drops layers of which not both parts are there, whole as far as record and size tell, and names whose record is damaged.
    fn sweep(&self) -> Result<(), StoreError> {
        for path in files::list(&self.root.join("ingest"))? {
            files::remove(&path)?;
            failpoint!(IngestSwept);
        }
        for algorithm in ["sha256", "sha512"] {
            for path in files::list(&self.root.join("layers").join(algorithm))? {
                let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
                let part = matches!(path.extension().and_then(|e| e.to_str()), Some("json" | "erofs"));
                let Some(id) = format!("{algorithm}:{stem}").parse::<crate::Digest>().ok().filter(|_| part) else {
                    continue;
                };
                if self.layer(&id)?.is_none() {
                    tracing::info!(path = %path.display(), "removed a half-made or damaged layer");
                    files::remove(&path)?;
                    failpoint!(HalfRemoved);
                }
            }
        }
        for path in files::list(&self.root.join("refs"))? {
            let named = |record: refs::RefRecord| self.ref_path(&record.reference, &record.domain) == path;
            if !files::read(&path)?.and_then(|json| refs::parse(&path, &json)).is_some_and(named) {
                tracing::warn!(path = %path.display(), "removed a damaged name");
                files::remove(&path)?;
                failpoint!(HalfRemoved);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
