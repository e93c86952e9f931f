//! The kubelet's HTTPS API: what the API server and metrics readers ask of a node.
//!
//! ```text
//! TLS (client certificate optional) ──> authn (certificate, else TokenReview) ──> authz (SubjectAccessReview) ──> routes
//! ```
//!
//! Never anonymous and never "always allow": a request without an identity gets 401, one without the right 403, also for
//! paths that do not exist. Only HTTP/1.1 is offered, since the streaming protocols upgrade from it.

pub mod access;
pub mod authn;
pub mod authz;
pub mod logs;
pub mod pods;
pub mod routes;
pub mod server;
