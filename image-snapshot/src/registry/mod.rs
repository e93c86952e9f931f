//! Registries, by the OCI distribution protocol over HTTP.
//!
//! `oci-client` is not used: it reads manifests, tokens and error bodies of any size into memory, hides `Retry-After`, and follows no
//! policy of redirects or resumption. What this module needs of the protocol is four kinds of GET.

mod auth;
mod body;
mod endpoint;
mod pace;
mod retry;
mod session;

pub(crate) use endpoint::Registries;
pub(crate) use session::{Named, Session, select};
