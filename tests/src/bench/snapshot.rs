//! Our side of the benchmarks of images: a store as an agent has it, with a confined converter.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image_snapshot::{Converter, EnsureRequest, Image, Images, ImagesConfig, LocalAccess, LocalSources, PullPolicy};

use super::oci::this_program;

/// The argument that makes the benchmarks' program a layer converter.
pub const CONVERT: &str = "convert-layer";

/// A real image of one layer, in a directory that `hack/lib/pictures.sh` makes: `layer.tar`, `layer.tar.gz`, `layer.tar.zst`,
/// and image layouts `gzip` and `zstd`, each with the tag `latest`.
#[derive(Debug, Clone)]
pub struct Picture {
    /// That directory.
    pub dir: PathBuf,
}

/// Of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As nearly all are.
    Gzip,
    /// As they should be.
    Zstd,
}

impl Picture {
    /// Its name for [`Snapshots::ensure`].
    pub(super) fn local(&self, compression: Compression) -> String {
        let layout = match compression {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        format!("oci-layout:{}:latest", self.dir.join(layout).display())
    }
}

/// A store.
pub(super) struct Snapshots(Images);

impl Snapshots {
    /// Opens or makes it.
    pub(super) fn open(store: &Path, picture: &Picture) -> Result<Self> {
        // As the agent's main does; another store of this process may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = ImagesConfig::new(store);
        config.local_sources = LocalSources::Under(vec![picture.dir.clone()]);
        config.converter = Converter::Program { program: this_program()?, args: vec![CONVERT.to_owned()] };
        Ok(Self(Images::open(config).context("open a store of images")?))
    }

    /// Until the image is there.
    pub(super) async fn ensure(&self, reference: &str) -> Result<Image> {
        let request = EnsureRequest {
            reference: reference.to_owned(),
            policy: PullPolicy::IfNotPresent,
            credentials: Vec::new(),
            local: LocalAccess::Trusted,
        };
        self.0.ensure(request, |_| {}).await.with_context(|| format!("bring {reference}"))
    }
}
