//! What the store hands out: an image, its configuration, and the ordered layers to mount.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use crate::{Digest, erofs::ErofsFile, images::Lease, merged::Merged};

/// An image that is in the store, with a [`Lease`] that keeps it there.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name it was asked for by, in normal form.
    pub reference: String,
    /// Digest of this platform's manifest.
    pub manifest_digest: Digest,
    /// Digest of the configuration: what docker and containerd call the image's id.
    pub image_id: Digest,
    /// What a kubelet reports as `imageID`: `repository@sha256:…` (of what the name resolved to, be it index or manifest); for
    /// local images, which have no repository, the image id.
    pub repo_digest: String,
    /// What the image says about running it.
    pub config: ImageConfig,
    /// Its layers.
    pub rootfs: Rootfs,
    /// Bytes of its snapshots on disk.
    pub size: u64,
    /// Keeps the layers from collection while it (or a clone) lives.
    pub lease: Lease,
}

/// The part of the image's configuration that we read at all. Everything here is the image author's word: attacker input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`: `NAME=value`.
    pub env: Vec<String>,
    /// `WorkingDir`, possibly empty.
    pub working_dir: String,
    /// `User`: `user[:group]`, names or numbers, possibly empty.
    pub user: String,
    /// `Volumes`: paths that the image wants to be volumes.
    pub volumes: Vec<String>,
    /// `ExposedPorts`: `port[/protocol]`.
    pub exposed_ports: Vec<String>,
    /// `StopSignal`, a name or a number, if given.
    pub stop_signal: Option<String>,
    /// `Labels`, for display only.
    pub labels: BTreeMap<String, String>,
}

/// Layers, **lowest first**, to be stacked by an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// The layers' snapshots.
    pub layers: Vec<LayerSnapshot>,
}

/// One layer as an EROFS file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSnapshot {
    /// OCI chain id (`sha256:…`): names this layer on top of the ones below it.
    pub id: String,
    /// The EROFS file. Read-only; valid while a lease on the image is held.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Why a file of a rootfs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A layer's file does not open.
    #[error("could not open layer {id} at {path:?}")]
    Open {
        /// Chain id.
        id: String,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A layer is not the EROFS that we wrote.
    #[error("could not read layer image while looking for {path:?}")]
    Damaged {
        /// What was looked for.
        path: String,
        /// Why.
        #[source]
        source: crate::erofs::ReadError,
    },
    /// Something is there, but no regular file.
    #[error("{path:?} is not a regular file")]
    NotAFile {
        /// What was looked for.
        path: String,
    },
    /// More bytes than asked for.
    #[error("{path:?} has {size} bytes, more than {limit}")]
    TooLarge {
        /// What was looked for.
        path: String,
        /// Its size.
        size: u64,
        /// The caller's limit.
        limit: u64,
    },
    /// Symbolic links go in circles.
    #[error("too many symbolic links on the way to {path:?}")]
    Loop {
        /// What was looked for.
        path: String,
    },
}

impl Rootfs {
    /// Reads a file as a process inside would see it, without mounting anything: symbolic links stay inside the root, whiteouts
    /// and opaque directories are honoured. `None`: there is no such file. Blocking; for small files such as `etc/passwd`.
    pub fn read_file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, RootfsError> {
        self.open(path)?.read_file(path, max_bytes)
    }

    /// All layers, for reading without a mount. `path` is what error messages name.
    fn open(&self, path: &str) -> Result<Merged, RootfsError> {
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let file = std::fs::File::open(&layer.path).map_err(|source| RootfsError::Open {
                id: layer.id.clone(),
                path: layer.path.clone(),
                source,
            })?;
            let image = ErofsFile::open(Arc::new(file))
                .map_err(|source| RootfsError::Damaged { path: path.to_owned(), source })?;
            layers.push(image);
        }
        Ok(Merged::new(layers))
    }
}
