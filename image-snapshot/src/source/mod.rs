//! Where images come from: one contract, a registry and local layouts behind it.

mod docker_archive;
mod error;
mod files;
mod oci_layout;
mod sink;

use async_trait::async_trait;

use crate::{Digest, manifest::Descriptor, store::Access};

pub(crate) use docker_archive::DockerArchive;
pub use error::SourceError;
pub(crate) use files::check;
pub(crate) use oci_layout::OciLayout;
pub(crate) use sink::{BlobSink, channel};

/// One image at its source, as one caller may see it.
#[async_trait]
pub(crate) trait Source: Send + Sync {
    /// What the name means now.
    async fn top(&self) -> Result<Top, SourceError>;

    /// Digest of what the name means now, if that is cheaper to learn; also shows that the caller may pull. `None`: ask [`Source::top`].
    async fn head(&self) -> Result<Option<Digest>, SourceError>;

    /// A manifest or index, whole and checked against its digest.
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Fetched, SourceError>;

    /// A small blob (configuration), whole and checked against its digest.
    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError>;

    /// Who may have its layers, in the order in which to ask them: mirrors, and last the one whose word counts.
    fn servers(&self) -> Vec<&str> {
        vec!["this host"]
    }

    /// A layer's bytes, all of them from one of [`Source::servers`], by its place. The sink checks size and digest.
    async fn blob(&self, descriptor: &Descriptor, server: usize, sink: BlobSink) -> Result<(), SourceError>;

    /// Whether it has this blob for this caller and says so without sending it.
    async fn offers(&self, _descriptor: &Descriptor) -> Result<bool, SourceError> {
        Ok(false)
    }

    /// By which right the answers so far were given.
    fn access(&self) -> Access;

    /// `registry/repository`, where there is one.
    fn repository(&self) -> Option<String>;
}

/// A document with its digest.
#[derive(Debug, Clone)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
    pub(crate) digest: Digest,
}

/// What a name leads to.
#[derive(Debug, Clone)]
pub(crate) enum Top {
    /// A manifest or index.
    Document(Fetched),
    /// Entries to choose from.
    Entries(Vec<Descriptor>),
}
