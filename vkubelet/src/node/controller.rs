//! Registers the node, keeps its status and its Lease fresh.

use std::time::Duration;

use agent_api::proto::HostStatus;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lease;
use super::object::{NodeSettings, labels, node, status};

/// How often an unchanged status is written all the same (the kubelet's `nodeStatusReportFrequency`).
const REPORT_EVERY: Duration = Duration::from_secs(300);
/// How long to wait after a failed write.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Changes of hosts that come within this time are written together.
const SETTLE: Duration = Duration::from_millis(50);

/// What the API server has of the node.
struct Written {
    node_uid: String,
    status: NodeStatus,
}

/// Runs until cancelled. `ready` becomes true once the Node and its Lease exist.
pub async fn run(
    client: Client,
    settings: NodeSettings,
    mut hosts: watch::Receiver<Vec<HostStatus>>,
    ready: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let api: Api<Node> = Api::all(client.clone());
    let mut written: Option<Written> = None;
    let mut next_report = tokio::time::Instant::now();
    let mut next_lease = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(next_report) => {}
            () = tokio::time::sleep_until(next_lease) => {}
            changed = hosts.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(SETTLE).await;
                next_report = tokio::time::Instant::now();
            }
        }
        let now = tokio::time::Instant::now();
        if now >= next_report {
            let list = hosts.borrow_and_update().clone();
            match report(&api, &settings, &list, written.as_ref().map(|w| &w.status)).await {
                Ok(report) => {
                    written = Some(report);
                    next_report = now + REPORT_EVERY;
                }
                Err(error) => {
                    tracing::warn!(node = %settings.name, error = &error as &dyn std::error::Error, "node status could not be written; trying again");
                    next_report = now + RETRY_AFTER;
                    next_lease = next_lease.max(next_report);
                }
            }
        }
        if now >= next_lease
            && let Some(written) = &written
        {
            match lease::renew(&client, &settings.name, &written.node_uid).await {
                Ok(()) => {
                    ready.send_replace(true);
                    next_lease = now + lease::RENEW_EVERY;
                }
                Err(error) => {
                    tracing::warn!(node = %settings.name, error = &error as &dyn std::error::Error, "node lease could not be renewed; trying again");
                    next_lease = now + RETRY_AFTER;
                }
            }
        }
    }
}

/// Writes the status, registering the node first when it is not there.
async fn report(
    api: &Api<Node>,
    settings: &NodeSettings,
    hosts: &[HostStatus],
    previous: Option<&NodeStatus>,
) -> Result<Written, kube::Error> {
    let now = Time(k8s_openapi::jiff::Timestamp::now());
    let existing = api.get_opt(&settings.name).await?;
    let Some(existing) = existing else {
        let created = api.create(&PostParams::default(), &node(settings, hosts, now)).await?;
        tracing::info!(node = %settings.name, "node registered");
        return Ok(Written { node_uid: created.uid().unwrap_or_default(), status: created.status.unwrap_or_default() });
    };
    let wanted = labels(settings, hosts);
    if wanted.iter().any(|(k, v)| existing.labels().get(k) != Some(v)) {
        let patch = serde_json::json!({"metadata": {"labels": wanted}});
        api.patch(&settings.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    let status = status(settings, hosts, previous.or(existing.status.as_ref()), now);
    let patch = serde_json::json!({"status": status});
    api.patch_status(&settings.name, &PatchParams::default(), &Patch::Strategic(&patch)).await?;
    Ok(Written { node_uid: existing.uid().unwrap_or_default(), status })
}
