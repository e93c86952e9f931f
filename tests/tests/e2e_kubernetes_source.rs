//! The Kubernetes source against a real API server, as `system:node:NAME`, without an agent: what the node writes and reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tests::cluster::{Cluster, client};
use tokio_util::sync::CancellationToken;
use vkubelet::desired::{Desired, DesiredPod, PodRef, SourceKind};
use vkubelet::hosts::EpochSource;
use vkubelet::node::epoch::LeaseEpoch;
use vkubelet::node::object::NodeSettings;
use vkubelet::ports::{EventType, PortError, SourcePorts, StatusReport, TokenAsk};

struct Fixture {
    admin: Client,
    node: Client,
    name: String,
    desired: Desired,
    ports: SourcePorts,
    stop: CancellationToken,
}

impl Fixture {
    async fn new(name: &str) -> Result<Self> {
        let cluster = Cluster::up()?;
        let credentials = cluster.node_credentials(name)?;
        let admin = client(&cluster.admin_kubeconfig()).await?;
        let node = client(&credentials.join("node.kubeconfig")).await?;
        let (stop, desired) = (CancellationToken::new(), Desired::new([SourceKind::Kubernetes]));
        let settings = NodeSettings {
            name: name.to_owned(),
            address: "127.0.0.1".to_owned(),
            kubelet_port: 10250,
            labels: [].into(),
            taints: vec![],
        };
        let (_hosts, watch) = tokio::sync::watch::channel(vec![]);
        let (ready, mut is_ready) = tokio::sync::watch::channel(false);
        tokio::spawn(vkubelet::node::controller::run(node.clone(), settings, watch, ready, stop.clone()));
        tokio::time::timeout(Duration::from_secs(20), is_ready.wait_for(|ready| *ready))
            .await
            .context("node ready")??;
        let ports = vkubelet::sources::kubernetes::start(node.clone(), name, desired.clone(), stop.clone());
        tokio::time::timeout(Duration::from_secs(20), desired.complete()).await.context("pods listed")?;
        Ok(Self { admin, node, name: name.to_owned(), desired, ports, stop })
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), "default")
    }

    async fn pod(&self, name: &str) -> Result<Arc<DesiredPod>> {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"nodeName": self.name, "containers": [{"name": "c", "image": "none"}]},
        }))?;
        self.pods().create(&PostParams::default(), &pod).await?;
        eventually("the pod is in the desired store", || async { self.desired.find("default", name) }).await
    }

    async fn end(self) -> Result<()> {
        self.stop.cancel();
        let nodes: Api<Node> = Api::all(self.admin.clone());
        nodes.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(found) = ask().await {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("not within 20 s: {what}")
}

fn report(status: serde_json::Value) -> StatusReport {
    StatusReport {
        generation: 1,
        host: "h".into(),
        status: Arc::new(status),
        terminated: false,
        timeline: None,
        start: tracing::Span::none(),
    }
}

#[tokio::test]
async fn e2e_a_node_registers_with_lease_and_labels_and_takes_rising_epochs() -> Result<()> {
    let f = Fixture::new("registers").await?;
    let node = Api::<Node>::all(f.admin.clone()).get("registers").await?;
    ensure!(node.metadata.labels.unwrap_or_default().get("type").is_some_and(|t| t == "virtual-kubelet"));
    let leases: Api<Lease> = Api::namespaced(f.admin.clone(), "kube-node-lease");
    let lease = leases.get("registers").await?;
    ensure!(lease.spec.and_then(|s| s.lease_duration_seconds) == Some(40));
    ensure!(lease.metadata.owner_references.is_some_and(|o| o.iter().any(|o| o.kind == "Node")));
    let epochs = LeaseEpoch::new(f.node.clone(), "registers".to_owned());
    let (a, b) = (epochs.next().await?, epochs.next().await?);
    ensure!(b > a, "epochs rise: {a}, {b}");
    f.end().await
}

#[tokio::test]
async fn e2e_status_and_placement_are_written_and_the_pod_is_removed_by_uid() -> Result<()> {
    let f = Fixture::new("writes").await?;
    let pod = f.pod("status").await?;
    f.ports.status.place(&pod, "host-1").await?;
    eventually("the placement comes back", || async {
        f.desired.get(pod.uid()).filter(|p| p.placement.as_deref() == Some("host-1"))
    })
    .await?;
    f.ports.status.report(&pod, report(json!({"phase": "Pending", "containerStatuses": []})));
    f.ports
        .status
        .report(&pod, report(json!({"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]})));
    eventually("the status is written", || async {
        let pod = f.pods().get("status").await.ok()?;
        (pod.status?.phase? == "Running").then_some(())
    })
    .await?;
    f.pods().delete("status", &DeleteParams::default()).await?;
    let going =
        eventually("the deletion is seen", || async { f.desired.get(pod.uid()).filter(|p| p.deletion.is_some()) })
            .await?;
    ensure!(going.deletion.is_some_and(|d| d.grace_seconds == 30));
    f.ports.status.report(&going, report(json!({"phase": "Succeeded"})));
    f.ports.status.remove(&going).await?;
    eventually("the pod is gone", || async { f.desired.get(pod.uid()).is_none().then_some(()) }).await?;
    ensure!(f.pods().get_opt("status").await?.is_none());
    f.end().await
}

#[tokio::test]
async fn e2e_a_pod_of_the_same_name_with_another_uid_is_not_touched() -> Result<()> {
    let f = Fixture::new("stale").await?;
    let first = f.pod("twin").await?;
    f.pods().delete("twin", &DeleteParams::default().grace_period(0)).await?;
    eventually("the first is gone", || async { f.desired.get(first.uid()).is_none().then_some(()) }).await?;
    let second = f.pod("twin").await?;
    let placed = f.ports.status.place(&first, "h").await;
    ensure!(matches!(placed, Err(PortError::Stale { .. })), "{placed:?}");
    f.ports.status.remove(&first).await?;
    let still = f.pods().get("twin").await?;
    ensure!(still.metadata.uid.as_deref() == Some(second.uid()), "the second pod was removed");
    f.pods().delete("twin", &DeleteParams::default().grace_period(0)).await?;
    f.end().await
}

#[tokio::test]
async fn e2e_references_are_read_and_absent_ones_told_apart_from_refused_ones() -> Result<()> {
    let f = Fixture::new("references").await?;
    let maps: Api<ConfigMap> = Api::namespaced(f.admin.clone(), "default");
    let map = serde_json::from_value(json!({"metadata": {"generateName": "e2e-"}, "data": {"k": "v"}}))?;
    let map = maps.create(&PostParams::default(), &map).await?.metadata.name.unwrap_or_default();
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "refers"},
        "spec": {"nodeName": "references", "containers": [{"name": "c", "image": "none", "envFrom": [
            {"configMapRef": {"name": map}}, {"configMapRef": {"name": "absent"}}]}]},
    }))?;
    f.pods().create(&PostParams::default(), &pod).await?;
    let pod = eventually("the pod is seen", || async { f.desired.find("default", "refers") }).await?;
    let references = &f.ports.references;
    let found =
        eventually("the map may be read", || async { references.config_map("default", &map).await.ok().flatten() })
            .await?;
    ensure!(found.data.get("k").is_some_and(|v| v == b"v"));
    let absent = eventually("absence is an answer", || async { references.config_map("default", "absent").await.ok() });
    ensure!(absent.await?.is_none());
    let stranger = references.secret("default", "of-nobody").await;
    ensure!(matches!(stranger, Err(PortError::Denied { .. })), "{stranger:?}");
    let ask = TokenAsk {
        pod: pod.pod_ref.clone(),
        service_account: "default".into(),
        audience: String::new(),
        expiration_seconds: 3607,
    };
    let token = references.token(&ask).await?.context("a token")?;
    ensure!(token.token.split('.').count() == 3, "a JWT");
    let ask = TokenAsk { service_account: "nobody".into(), ..ask };
    ensure!(!matches!(references.token(&ask).await, Ok(Some(_))), "a token of a service account that is not there");
    f.pods().delete("refers", &DeleteParams::default().grace_period(0)).await?;
    maps.delete(&map, &DeleteParams::default()).await?;
    f.end().await
}

#[tokio::test]
async fn e2e_equal_events_are_counted_in_one_object() -> Result<()> {
    let f = Fixture::new("events").await?;
    let pod = f.pod("talks").await?;
    let event = vkubelet::ports::Event {
        kind: EventType::Normal,
        reason: "Pulled".into(),
        message: "already present".into(),
        field_path: "spec.containers{c}".into(),
        unix_ns: i64::try_from(jiff::Timestamp::now().as_nanosecond())?,
    };
    let PodRef { uid, .. } = pod.pod_ref.clone();
    for _ in 0..3 {
        f.ports.events.event(&pod.pod_ref, event.clone());
    }
    let events: Api<Event> = Api::namespaced(f.admin.clone(), "default");
    eventually("the event counts three", || async {
        let list = events.list(&ListParams::default().fields(&format!("involvedObject.uid={uid}"))).await.ok()?;
        (list.items.len() == 1 && list.items[0].count == Some(3)).then_some(())
    })
    .await?;
    f.pods().delete("talks", &DeleteParams::default().grace_period(0)).await?;
    f.end().await
}
