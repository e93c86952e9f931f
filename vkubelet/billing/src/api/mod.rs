//! The billing API over HTTP.
//!
//! | route | answer |
//! | --- | --- |
//! | `GET /v1/records` | pods' bills, filtered, in pages |
//! | `GET /v1/pods/{uid}` | one pod's bill, open intervals to this nanosecond |
//! | `GET /v1/verify` | the ledger checked again |
//! | `GET /openapi.json` | this interface |
//! | `GET /healthz` | alive; the only one without a token |
//!
//! Errors are RFC 9457 problem documents. At most [`Limits::concurrent`] requests run at once, each for at most [`Limits::request`].

mod auth;
mod cursor;
mod handlers;
mod openapi;
mod params;
mod problem;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;

pub use auth::{AuthError, Authorizer, BearerToken, Identity, TokenFileError};
pub use openapi::document;
pub use problem::Problem;

use crate::live::LiveUsage;
use crate::price::Plan;
use crate::store::Store;

/// What the API serves from.
#[derive(Debug, Clone)]
pub struct Billing {
    /// The ledger.
    pub store: Arc<dyn Store>,
    /// How open intervals stand now.
    pub live: Arc<dyn LiveUsage>,
    /// Who may ask what.
    pub authorizer: Arc<dyn Authorizer>,
    /// What it costs.
    pub plan: Arc<Plan>,
}

/// How much a client may ask of the server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests at once; more are told to come back.
    pub concurrent: usize,
    /// Time for one request.
    pub request: Duration,
    /// Time for the hosts to answer how open intervals stand; after it the stored figures are given.
    pub live: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrent: 64, request: Duration::from_secs(30), live: Duration::from_secs(2) }
    }
}

#[derive(Debug, Clone)]
struct Shared {
    billing: Billing,
    limits: Limits,
    places: Arc<Semaphore>,
}

/// The routes, to be served on a listener of the caller's.
pub fn router(billing: Billing, limits: Limits) -> Router {
    let shared = Shared { billing, limits, places: Arc::new(Semaphore::new(limits.concurrent)) };
    Router::new()
        .route("/v1/records", get(handlers::records))
        .route("/v1/pods/{uid}", get(handlers::pod))
        .route("/v1/verify", get(handlers::verify))
        .route("/openapi.json", get(handlers::openapi))
        .fallback(handlers::no_such_route)
        .method_not_allowed_fallback(handlers::no_such_method)
        .layer(from_fn_with_state(shared.clone(), auth::require_identity))
        .route("/healthz", get(handlers::healthz))
        .layer(from_fn_with_state(shared.clone(), limit))
        .layer(DefaultBodyLimit::max(16 * 1024))
        .with_state(shared)
}

async fn limit(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let Ok(_place) = shared.places.try_acquire() else {
        return Problem::busy().into_response();
    };
    match tokio::time::timeout(shared.limits.request, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::too_slow().into_response(),
    }
}
