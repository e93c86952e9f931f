//! From an image's name to layers that can be mounted at once.
//!
//! ```text
//!  name ──reference──> source (registry, oci-layout:) ──manifest──> layers' digests, diff ids, chain ids
//!                                                                        │ one flight per chain id
//!   network ─> blob digest ─> decompress ─> diff id ─> tar ─> convert ──> EROFS file ─> store ─> Rootfs
//!                                                        ^
//!                              layers below (merged view of their EROFS files)
//! ```
//!
//! | module | job |
//! | --- | --- |
//! | [`reference`], [`credential`], [`config`] | what the caller says |
//! | [`source`], `registry` | where bytes come from |
//! | [`manifest`] | what the documents mean; pure |
//! | [`convert`] | tar + layers below -> EROFS; pure over `Read`, unprivileged |
//! | [`erofs`] | the on-disk format, writer and reader |
//! | [`merged`](Rootfs) | what an overlay of the layers shows, without mounting |
//! | [`store`] | disk layout, crash safety, leases, collection |
//! | [`Images`] | the front door: policy, single flight, progress |
//!
//! This crate must not know: Kubernetes, HTTP servers, sandboxes, mounting. It never writes outside its store directory, and takes no
//! decision about the host from an image's configuration.

pub mod config;
pub mod convert;
pub mod credential;
mod digest;
pub mod erofs;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod image;
mod images;
pub mod manifest;
mod merged;
mod progress;
pub mod reference;
mod registry;
pub mod source;
pub mod store;
#[cfg(test)]
mod testing;

pub use config::{Concurrency, Converter, Copies, ImagesConfig, LocalSources, Platform, RegistryHost, Timeouts};
pub use convert::Limits;
pub use credential::{Credential, CredentialError, RegistryAuth, Secret};
pub use digest::{Algorithm, Digest, DigestError};
pub use error::{ErrorKind, ImageError};
pub use image::{Image, ImageConfig, LayerSnapshot, Rootfs, RootfsError};
pub use images::{EnsureRequest, Eviction, GcReport, ImageSummary, Images, Lease, LocalAccess, PullPolicy, Usage};
pub use progress::{LayerPhase, LayerPlan, Progress};
pub use reference::{Reference, ReferenceError, RegistryReference};
