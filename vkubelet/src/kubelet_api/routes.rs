//! The routes and the gate before them.

use std::collections::HashMap;
use std::sync::Arc;

use agent_api::proto::LogsRequest;
use async_trait::async_trait;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use futures::stream::BoxStream;
use http::{StatusCode, header};
use serde_json::json;
use tokio::sync::Semaphore;

use super::access::required;
use super::authn::{AuthnError, Identity, Tokens};
use super::authz::{Authorizer, AuthzError};
use super::logs;
use super::remote::order::Order;
use super::remote::{self, Talk};

/// What the routes ask of the node. The production one looks pods up in the desired store and asks their hosts.
#[async_trait]
pub trait NodePods: Send + Sync + 'static {
    /// Every pod of this node, as core/v1 Pods with their newest status.
    fn pods(&self) -> Vec<serde_json::Value>;
    /// A container's log, as a stream of bytes that ends when the log does.
    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        request: LogsRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, PodError>;
    /// A container's process, or one more in it, to talk to.
    async fn talk(&self, namespace: &str, pod: &str, container: &str, order: &Order)
    -> Result<Box<dyn Talk>, PodError>;
}

/// Why a pod cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No such pod or container.
    #[error("{0}")]
    NotFound(String),
    /// Not in a state for it, yet or any more: the kubelet answers 400 with the reason.
    #[error("{0}")]
    NotAvailable(String),
    /// The host could not be asked.
    #[error("{0}")]
    CouldNotAsk(String),
}

impl IntoResponse for PodError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::NotAvailable(_) => StatusCode::BAD_REQUEST,
            Self::CouldNotAsk(_) => StatusCode::BAD_GATEWAY,
        };
        (status, self.to_string()).into_response()
    }
}

/// Shared by all requests.
pub struct Api {
    /// Bearer tokens.
    pub tokens: Tokens,
    /// Rights.
    pub authorizer: Authorizer,
    /// Pods.
    pub pods: Arc<dyn NodePods>,
    /// Places for execs and attachments, which outlive their requests.
    pub sessions: Arc<Semaphore>,
}

/// Execs and attachments at a time: half of the streams that the connection to one host has.
pub const MOST_SESSIONS: usize = 512;

/// The identity in the connection's verified client certificate, if it brought one.
#[derive(Debug, Clone, Default)]
pub struct ConnectionIdentity(pub Option<Identity>);

/// All routes, behind the gate.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/runningpods/", get(running_pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", get(remote::exec).post(remote::exec))
        .route("/attach/{namespace}/{pod}/{container}", get(remote::attach).post(remote::attach))
        .fallback(|uri: http::Uri| async move { unanswered(uri.path()) })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&api), gate))
        .with_state(api)
}

/// What a kubelet answers and this version does not, by name: kubectl shows the text as it is.
fn unanswered(path: &str) -> (StatusCode, &'static str) {
    let text = match path.trim_start_matches('/').split('/').next() {
        Some("run") => "this version of nodeless does not answer /run; `kubectl exec` works\n",
        Some("portForward") => "this version of nodeless does not answer kubectl port-forward\n",
        _ => return (StatusCode::NOT_FOUND, "404 page not found\n"),
    };
    (StatusCode::NOT_IMPLEMENTED, text)
}

async fn gate(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let certificate = request.extensions().get::<ConnectionIdentity>().and_then(|c| c.0.clone());
    let identity = match identify(&api, certificate, bearer(&request)).await {
        Ok(identity) => identity,
        Err(error @ (AuthnError::Missing | AuthnError::Refused)) => {
            return refuse(StatusCode::UNAUTHORIZED, &error);
        }
        Err(error @ AuthnError::CouldNotAsk { .. }) => return refuse(StatusCode::SERVICE_UNAVAILABLE, &error),
    };
    let access = required(request.method(), request.uri().path());
    match api.authorizer.check(&identity, &access).await {
        Ok(()) => next.run(request).await,
        Err(error @ AuthzError::Forbidden { .. }) => refuse(StatusCode::FORBIDDEN, &error),
        Err(error @ AuthzError::CouldNotAsk { .. }) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}

fn refuse(status: StatusCode, error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::debug!(status = status.as_u16(), error = error, "kubelet API request refused");
    (status, format!("{error}\n")).into_response()
}

fn bearer(request: &Request) -> Option<String> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let token = value.strip_prefix("Bearer ")?.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

async fn identify(api: &Api, certificate: Option<Identity>, token: Option<String>) -> Result<Identity, AuthnError> {
    match (certificate, token) {
        (Some(identity), _) => Ok(identity),
        (None, Some(token)) => api.tokens.identify(&token).await,
        (None, None) => Err(AuthnError::Missing),
    }
}

async fn pods(State(api): State<Arc<Api>>) -> Response {
    Json(list(api.pods.pods())).into_response()
}

async fn running_pods(State(api): State<Arc<Api>>) -> Response {
    let running = api.pods.pods().into_iter().filter(|pod| pod["status"]["phase"] == "Running").collect();
    Json(list(running)).into_response()
}

fn list(items: Vec<serde_json::Value>) -> serde_json::Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

async fn container_logs(
    State(api): State<Arc<Api>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let now_ns = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    let mut request = match logs::parse(&query, now_ns) {
        Ok(request) => request,
        Err(error) => return (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n")).into_response(),
    };
    request.container = container;
    match api.pods.logs(&namespace, &pod, request).await {
        Ok(stream) => ([(header::CONTENT_TYPE, "text/plain")], Body::from_stream(stream)).into_response(),
        Err(error) => error.into_response(),
    }
}
