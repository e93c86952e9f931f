//! The client API: HTTP/JSON over a Unix socket, for `nodeless`.
//!
//! | route | answer |
//! | --- | --- |
//! | `GET /v1/pods` | every pod ([`types::PodItem`]) |
//! | `POST /v1/pods` | takes a core/v1 Pod: writes a manifest, or creates it in the API |
//! | `GET /v1/pods/{ns}/{name}` | one pod, with status, timeline and events |
//! | `GET /v1/pods/{ns}/{name}/watch` | the pod now and on each change, a JSON object a line, until it is gone |
//! | `DELETE /v1/pods/{ns}/{name}?grace=S` | asks for its deletion |
//! | `GET /v1/pods/{ns}/{name}/logs` | its log; query as the kubelet's (`follow`, `tailLines`, …) and `container` |
//! | `POST /v1/pods/{ns}/{name}/exec` | upgrade to [`frames`]; query `command` (repeated), `container`, `stdin` |
//! | `GET /v1/hosts` | the hosts |
//! | `POST /v1/hosts/{id}/release` | confirms the removal of the pods that the host's mass-delete brake holds |
//! | `GET /v1/images`, `POST /v1/images`, `DELETE /v1/images?reference=R&domain=D` | snapshots (D: that domain's copy only); POST answers with progress, a JSON object a line |
//! | `POST /v1/images/verify?repair=B` | reads every layer; what it found, a JSON object a line |
//! | `POST /v1/images/gc?unused=S` | removes images that nobody uses or pins, and that have not been used for so many seconds |
//! | `GET /v1/problems` | manifests that are not taken, and why |
//! | `/billing/…` | the billing API |
//!
//! Errors are RFC 9457 problem documents. Who may ask: root and the user that vkubelet runs as (SO_PEERCRED).

mod exec;
pub mod frames;
mod hosts;
mod images;
mod pods;
mod problem;
mod server;
pub mod types;

use axum::Router;
use axum::routing::{get, post};

use crate::hosts::Hosts;
use crate::pod::Controller;
use crate::pod::access::PodAccess;
use crate::sources::manifest::ManifestSource;

pub use problem::Problem;
pub use server::serve;

/// What the routes need.
#[derive(Debug, Clone)]
pub struct ClientApi {
    /// Pods and sources.
    pub controller: Controller,
    /// Logs and exec.
    pub access: PodAccess,
    /// Hosts.
    pub hosts: Hosts,
    /// Present with a manifest directory.
    pub manifest: Option<ManifestSource>,
    /// The billing API for callers that were admitted already.
    pub billing: Router,
}

fn router(api: ClientApi) -> Router {
    let billing = api.billing.clone();
    Router::new()
        .route("/v1/pods", get(pods::list).post(pods::create))
        .route("/v1/pods/{namespace}/{name}", get(pods::get).delete(pods::delete))
        .route("/v1/pods/{namespace}/{name}/watch", get(pods::watch))
        .route("/v1/pods/{namespace}/{name}/logs", get(pods::logs))
        .route("/v1/pods/{namespace}/{name}/exec", post(exec::exec))
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/hosts/{id}/release", post(hosts::release))
        .route("/v1/images", get(images::list).post(images::pull).delete(images::remove))
        .route("/v1/images/verify", post(images::verify))
        .route("/v1/images/gc", post(images::collect))
        .route("/v1/problems", get(pods::problems))
        .fallback(|| async { Problem::not_found("no such route") })
        .with_state(api)
        .nest("/billing", billing)
}
