//! The routes.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Json, http};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Identity, Problem, Shared, cursor, openapi, params};
use crate::bill::{PodBill, bill, with_live};
use crate::store::{StoreError, VerifyReport};

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// A page of bills.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RecordPage {
    /// The bills, one for each pod, in an order that never changes.
    records: Vec<PodBill>,
    /// Give this as `cursor` to go on; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// One pod's bill.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LiveBill {
    #[serde(flatten)]
    bill: PodBill,
    /// The hosts were asked just now; if not, open intervals stand at their last durable tick.
    live: bool,
}

/// Bills of pods that held something in `[from, to)`, each with all of its intervals.
#[utoipa::path(
    get, path = "/v1/records", tag = "bills",
    params(
        ("namespace" = Option<String>, Query, description = "Only pods of this namespace"),
        ("pod" = Option<String>, Query, description = "Only pods with this name or UID"),
        ("from" = Option<String>, Query, description = "Only pods that held something at or after this instant: RFC 3339 or seconds since 1970"),
        ("to" = Option<String>, Query, description = "Only pods that held something before this instant: RFC 3339 or seconds since 1970"),
        ("limit" = Option<u32>, Query, description = "Bills on one page, 1 to 1000, 100 by default", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "Where to go on, from `next_cursor` of the page before"),
    ),
    responses(
        (status = 200, description = "A page of bills", body = RecordPage),
        (status = 400, description = "A parameter is wrong; `parameter` names it", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "No valid token", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not allowed to read these bills", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too busy, or authorisation could not be asked for", body = Problem, content_type = "application/problem+json"),
    ),
    security(("bearer" = [])),
)]
pub(super) async fn records(
    State(shared): State<Shared>,
    Extension(who): Extension<Identity>,
    pairs: Pairs,
) -> Result<Json<RecordPage>, Problem> {
    let query = params::pod_query(given(pairs)?)?;
    let billing = &shared.billing;
    billing.authorizer.authorize(&who, query.namespace.as_deref()).await?;
    let page = billing.store.pods(&query).await.map_err(failed)?;
    let next_cursor = page.next.map(|after| cursor::encode(after, &query));
    let records = page.pods.iter().filter_map(|pod| bill(pod, &billing.plan)).collect();
    Ok(Json(RecordPage { records, next_cursor }))
}

/// One pod's bill; what it holds now is counted to this nanosecond.
#[utoipa::path(
    get, path = "/v1/pods/{uid}", tag = "bills",
    params(("uid" = String, Path, description = "Pod UID")),
    responses(
        (status = 200, description = "The bill", body = LiveBill),
        (status = 401, description = "No valid token", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Not allowed to read this bill", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "This pod has held nothing", body = Problem, content_type = "application/problem+json"),
    ),
    security(("bearer" = [])),
)]
pub(super) async fn pod(
    State(shared): State<Shared>,
    Extension(who): Extension<Identity>,
    Path(uid): Path<String>,
    pairs: Pairs,
) -> Result<Json<LiveBill>, Problem> {
    params::none(&given(pairs)?)?;
    let billing = &shared.billing;
    // Live first: what is released in between is then found in the ledger, never lost between both.
    let live = match tokio::time::timeout(shared.limits.live, billing.live.live(&uid)).await {
        Ok(Ok(intervals)) => Some(intervals),
        Ok(Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "live usage could not be asked for");
            None
        }
        Err(_) => None,
    };
    let asked = live.is_some();
    let stored = billing.store.pod(&uid).await.map_err(failed)?;
    let found = with_live(stored, live.unwrap_or_default());
    let namespace = found.as_ref().map(|pod| pod.namespace.clone());
    // Who may not read everything learns of a pod elsewhere only that they may not.
    billing.authorizer.authorize(&who, namespace.as_deref()).await?;
    let bill = found.and_then(|pod| bill(&pod, &billing.plan));
    bill.map(|bill| Json(LiveBill { bill, live: asked }))
        .ok_or_else(|| Problem::not_found(format!("pod {uid} has held nothing")))
}

/// Every chain and every interval of the ledger checked again.
#[utoipa::path(
    get, path = "/v1/verify", tag = "ledger",
    responses(
        (status = 200, description = "What was checked; `faults` is empty when the ledger is whole", body = VerifyReport),
        (status = 401, description = "No valid token", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "Only for those who may read everything", body = Problem, content_type = "application/problem+json"),
    ),
    security(("bearer" = [])),
)]
pub(super) async fn verify(
    State(shared): State<Shared>,
    Extension(who): Extension<Identity>,
    pairs: Pairs,
) -> Result<Json<VerifyReport>, Problem> {
    params::none(&given(pairs)?)?;
    shared.billing.authorizer.authorize(&who, None).await?;
    shared.billing.store.verify().await.map(Json).map_err(failed)
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "interface",
    responses((status = 200, description = "OpenAPI document of this interface", body = serde_json::Value)),
    security(("bearer" = [])),
)]
pub(super) async fn openapi() -> Response {
    Json(openapi::document()).into_response()
}

/// Alive.
#[utoipa::path(get, path = "/healthz", tag = "interface", responses((status = 200, description = "Alive", body = str)), security(()))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

pub(super) async fn no_such_route(uri: http::Uri) -> Problem {
    Problem::not_found(format!("{} is not a path of this interface; see /openapi.json", uri.path()))
}

pub(super) async fn no_such_method() -> Problem {
    Problem::method()
}

fn given(pairs: Pairs) -> Result<Vec<(String, String)>, Problem> {
    pairs.map(|Query(pairs)| pairs).map_err(|rejection| Problem::parameter("query", rejection.body_text()))
}

fn failed(error: StoreError) -> Problem {
    tracing::error!(error = &error as &dyn std::error::Error, "the ledger could not be asked");
    Problem::internal()
}
