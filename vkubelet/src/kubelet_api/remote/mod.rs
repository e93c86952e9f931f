//! `kubectl exec` and `kubectl attach`: the streams of a process in a pod, over SPDY/3.1.
//!
//! ```text
//! POST /exec/…?command=a&input=1  ──> order (what is asked) ──> who answers for the pod: 400, 404, 502 in plain text
//!                                 ──> 101, streams opened by the client ──> session ──> the agent's Exec or Attach
//! ```
//!
//! API servers of every version speak this to a node, whatever their own clients speak to them (they translate WebSockets;
//! from 1.36 on they would pass them through, to nodes that declare that they take them).

pub mod order;
pub mod session;
pub mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use agent_api::proto::{ExecInput, ExecOutput};
use async_trait::async_trait;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::routes::Api;
use order::{Kind, Order};

/// The protocol that an upgraded connection speaks.
const SPDY: &str = "SPDY/3.1";
/// What the streams mean. Every client since Kubernetes 1.4 offers it.
const CHANNELS: &str = "v4.channel.k8s.io";
const OFFERED: &str = "x-stream-protocol-version";
const ACCEPTED: &str = "x-accepted-stream-protocol-versions";

/// A conversation with a container's process that is about to begin.
#[async_trait]
pub trait Talk: Send {
    /// Begins it: what the client says goes in, what the process says comes out, its exit last. Dropping the answer ends a
    /// command, and detaches from a container.
    ///
    /// # Errors
    /// Why it cannot begin, for the client.
    async fn begin(
        self: Box<Self>,
        inputs: mpsc::Receiver<ExecInput>,
    ) -> Result<BoxStream<'static, Result<ExecOutput, tonic::Status>>, String>;
}

/// A container by its names.
pub(super) type Names = Path<(String, String, String)>;

pub(super) async fn exec(State(api): State<Arc<Api>>, names: Names, request: Request) -> Response {
    answer(&api, Kind::Exec, names, request).await
}

pub(super) async fn attach(State(api): State<Arc<Api>>, names: Names, request: Request) -> Response {
    answer(&api, Kind::Attach, names, request).await
}

async fn answer(api: &Api, kind: Kind, Path(names): Names, mut request: Request) -> Response {
    let bad = |text: String| (StatusCode::BAD_REQUEST, text).into_response();
    let order = match Order::parse(kind, request.uri().query().unwrap_or_default()) {
        Ok(order) => order,
        Err(error) => return bad(error.to_string()),
    };
    if !asks_for_spdy(request.headers()) {
        return bad(format!("unable to upgrade: this node speaks {SPDY} only, which the request does not ask for"));
    }
    if let Some(refusal) = disagreement(request.headers()) {
        return refusal;
    }
    let (namespace, pod, container) = names;
    let talk = match api.pods.talk(&namespace, &pod, &container, &order).await {
        Ok(talk) => talk,
        Err(error) => return error.into_response(),
    };
    let Ok(place) = Arc::clone(&api.sessions).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many sessions on this node; try again later").into_response();
    };
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return bad("unable to upgrade: this connection cannot be".to_owned());
    };
    tokio::spawn(async move {
        let _place = place;
        match upgrade.await {
            Ok(connection) => session::run(TokioIo::new(connection), &order, talk).await,
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "upgrade to SPDY failed"),
        }
    });
    let headers = [
        (header::UPGRADE.as_str(), HeaderValue::from_static(SPDY)),
        (header::CONNECTION.as_str(), HeaderValue::from_static("Upgrade")),
        (OFFERED, HeaderValue::from_static(CHANNELS)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Every word of a header that may be repeated and may hold several, with commas.
fn words<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn asks_for_spdy(headers: &HeaderMap) -> bool {
    words(headers, "connection").any(|word| word.eq_ignore_ascii_case("upgrade"))
        && words(headers, "upgrade").any(|word| word.eq_ignore_ascii_case(SPDY))
}

/// The answer to a client that does not speak what we speak.
fn disagreement(headers: &HeaderMap) -> Option<Response> {
    let mut offered = words(headers, OFFERED).peekable();
    if offered.peek().is_none() {
        return Some((StatusCode::BAD_REQUEST, format!("unable to upgrade: {OFFERED} is missing")).into_response());
    }
    if offered.any(|version| version == CHANNELS) {
        return None;
    }
    let headers = [(ACCEPTED, HeaderValue::from_static(CHANNELS))];
    let text = format!("unable to upgrade: none of the client's protocols is {CHANNELS}");
    Some((StatusCode::FORBIDDEN, headers, text).into_response())
}
