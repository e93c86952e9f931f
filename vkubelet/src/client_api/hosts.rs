//! Hosts, and what their mass-delete brakes hold.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;

use super::types::{HostItem, List, ReleasedItem};
use super::{ClientApi, Problem};
use crate::hosts::ConnectedHost;
use crate::placement::HostView;
use crate::pod::ReleaseError;

/// Lets the pods go whose removal the host holds.
pub(super) async fn release(
    State(api): State<ClientApi>,
    Path(host): Path<String>,
) -> Result<Json<ReleasedItem>, Problem> {
    match api.controller.release(&host).await {
        Ok(pods) => Ok(Json(ReleasedItem { host, pods })),
        Err(ReleaseError::Call { host, source }) => Err(Problem::of_host(&host, &source)),
        Err(error @ ReleaseError::Away { .. }) => Err(Problem::not_found(error.to_string())),
        Err(error @ ReleaseError::NothingHeld { .. }) => Err(Problem::new(StatusCode::CONFLICT, error.to_string())),
    }
}

pub(super) async fn list(State(api): State<ClientApi>) -> Json<List<HostItem>> {
    let mut connected: HashMap<String, ConnectedHost> =
        api.hosts.list().into_iter().map(|host| (host.handle.host_id().to_owned(), host)).collect();
    let mut items: Vec<HostItem> = api
        .controller
        .reservations()
        .hosts()
        .into_iter()
        .map(|view| {
            let host = connected.remove(&view.id);
            item(&api, view, host.as_ref())
        })
        .collect();
    for (id, host) in connected {
        items.push(item(&api, HostView { id, ..HostView::default() }, Some(&host)));
    }
    items.sort_by(|a, b| a.id.cmp(&b.id));
    Json(List { items })
}

fn item(api: &ClientApi, view: HostView, host: Option<&ConnectedHost>) -> HostItem {
    let status = host.map(|h| h.status.clone()).unwrap_or_default();
    let bad = status.conditions.iter().filter(|c| (c.r#type == "Ready") != c.status);
    HostItem {
        connected: host.is_some(),
        ready: view.ready && !view.pressed,
        conditions: bad.map(|c| format!("{}: {} {}", c.r#type, c.reason, c.message)).collect(),
        architecture: view.architecture,
        capacity_milli_cpu: view.capacity.milli_cpu,
        capacity_memory_bytes: view.capacity.memory_bytes,
        capacity_pods: view.capacity.pods,
        used_milli_cpu: view.used.milli_cpu,
        used_memory_bytes: view.used.memory_bytes,
        used_pods: view.used.pods,
        version: host.map(|h| h.handle.agent_version().to_owned()).unwrap_or_default(),
        kernel: status.kernel_version,
        addresses: status.addresses,
        held_pods: api.controller.held(&view.id),
        peer: host.map(|h| h.peer.to_string()).unwrap_or_default(),
        id: view.id,
    }
}
