//! `/metrics`, `/healthz`, `/readyz`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use prometheus_client::registry::Registry;

/// What must hold before the daemon is ready, by name. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    checks: Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>,
}

impl Readiness {
    /// Sets a check: met, or why not.
    pub fn set(&self, name: &'static str, state: Result<(), String>) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).insert(name, state);
    }

    /// One line per check, and whether all are met.
    #[must_use]
    pub fn report(&self) -> (bool, String) {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<String> = checks
            .iter()
            .map(|(name, state)| match state {
                Ok(()) => format!("[+]{name} ok"),
                Err(why) => format!("[-]{name} {why}"),
            })
            .collect();
        (checks.values().all(Result::is_ok), lines.join("\n") + "\n")
    }
}

#[derive(Clone)]
struct Shared {
    registry: Arc<Registry>,
    readiness: Readiness,
}

/// The routes.
pub fn router(registry: Registry, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(Shared { registry: Arc::new(registry), readiness })
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shared.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let (ready, text) = shared.readiness.report();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unmet_check_is_not_ready_and_says_why() {
        let readiness = Readiness::default();
        readiness.set("sources", Ok(()));
        readiness.set("node", Err("not registered".into()));
        assert_eq!(readiness.report(), (false, "[-]node not registered\n[+]sources ok\n".to_owned()));
        readiness.set("node", Ok(()));
        assert!(readiness.report().0);
    }
}
