use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use agent_api::proto::{ApplyReply, Intent, Refusal, StatusUpdate};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::*;
use crate::desired::{PodRef, SourceKind};
use crate::placement::choose::Amounts;
use crate::placement::{HostView, Request};
use crate::pod::agents::AgentError;
use crate::pod::{Controller, ControllerSettings};
use crate::ports::{
    Event, EventSink, PodSource, PortError, ReferencedObject, References, StatusReport, StatusSink, Token, TokenAsk,
};

/// A source and agents that keep state and can be told to fail.
#[derive(Default)]
struct World {
    calls: Mutex<Vec<String>>,
    up: AtomicU64,
    enrolled: Mutex<Option<std::collections::BTreeSet<String>>>,
    refuse: Mutex<VecDeque<Refusal>>,
    place_fails: AtomicU64,
    config_maps: Mutex<BTreeMap<String, ReferencedObject>>,
    /// Seconds that tokens live; 0: there is no account.
    token_life: AtomicU64,
    tokens: AtomicU64,
    reports: Mutex<Vec<StatusReport>>,
    events: Mutex<Vec<Event>>,
    intents: Mutex<Vec<Intent>>,
    changes: Mutex<Option<broadcast::Sender<ReferenceChanged>>>,
}

impl World {
    fn call(&self, what: impl Into<String>) {
        self.calls.lock().unwrap().push(what.into());
    }
}

#[async_trait]
impl StatusSink for World {
    fn report(&self, _: &Arc<DesiredPod>, report: StatusReport) {
        self.reports.lock().unwrap().push(report);
    }
    async fn place(&self, _: &DesiredPod, host: &str) -> Result<(), PortError> {
        if self.place_fails.load(SeqCst) > 0 {
            self.place_fails.fetch_sub(1, SeqCst);
            return Err(PortError::CouldNotAsk { what: "placement".into(), source: "injected".into() });
        }
        self.call(format!("place {host}"));
        Ok(())
    }
    async fn remove(&self, pod: &DesiredPod) -> Result<(), PortError> {
        self.call(format!("remove {}", pod.pod_ref.name));
        Ok(())
    }
}

impl EventSink for World {
    fn event(&self, _: &PodRef, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

#[async_trait]
impl References for World {
    async fn config_map(&self, _: &str, name: &str) -> Result<Option<ReferencedObject>, PortError> {
        Ok(self.config_maps.lock().unwrap().get(name).cloned())
    }
    async fn secret(&self, _: &str, _: &str) -> Result<Option<ReferencedObject>, PortError> {
        Ok(None)
    }
    async fn token(&self, _: &TokenAsk) -> Result<Option<Token>, PortError> {
        let life = i64::try_from(self.token_life.load(SeqCst)).unwrap();
        let token = format!("t{}", self.tokens.fetch_add(1, SeqCst));
        Ok((life > 0).then(|| Token { token, expires_unix: super::now_unix() + life }))
    }
    fn changes(&self) -> broadcast::Receiver<ReferenceChanged> {
        let mut changes = self.changes.lock().unwrap();
        changes.get_or_insert_with(|| broadcast::channel(16).0).subscribe()
    }
}

#[async_trait]
impl PodSource for World {
    fn kind(&self) -> SourceKind {
        SourceKind::Manifest
    }
    async fn create(&self, _: Value) -> Result<PodRef, PortError> {
        Err(PortError::Invalid { message: "not in this fake".into() })
    }
    async fn delete(&self, _: &PodRef, _: Option<i64>) -> Result<bool, PortError> {
        Ok(false)
    }
}

#[async_trait]
impl Agents for World {
    fn enrolled(&self) -> Option<Arc<std::collections::BTreeSet<String>>> {
        self.enrolled.lock().unwrap().clone().map(Arc::new)
    }
    fn up(&self, _: &str) -> Option<u64> {
        Some(self.up.load(SeqCst)).filter(|connection| *connection > 0)
    }
    async fn apply(&self, host: &str, intent: Intent) -> Result<(u64, ApplyReply), AgentError> {
        let connection = self.up(host).ok_or_else(|| AgentError::Down { host: host.to_owned() })?;
        self.call(format!("apply {host}{}", if intent.delete { " delete" } else { "" }));
        self.intents.lock().unwrap().push(intent);
        let refused = self.refuse.lock().unwrap().pop_front();
        Ok((connection, ApplyReply { accepted: refused.is_none(), refused }))
    }
    async fn forget(&self, host: &str, _: &str) -> Result<(), AgentError> {
        self.call(format!("forget {host}"));
        Ok(())
    }
}

struct Bench {
    world: Arc<World>,
    desired: Desired,
    controller: Controller,
    source: SourceKind,
}

fn host(id: &str, cpu: u64) -> HostView {
    HostView {
        id: id.to_owned(),
        ready: true,
        capacity: Amounts { milli_cpu: cpu, memory_bytes: 1 << 30, ephemeral_bytes: 1 << 30, pods: 10 },
        sandbox_kinds: ["namespace".to_owned()].into(),
        ..HostView::default()
    }
}

impl Bench {
    fn new() -> Self {
        Self::of(SourceKind::Manifest)
    }

    fn of(source: SourceKind) -> Self {
        let world = Arc::new(World::default());
        world.up.store(1, SeqCst);
        let ports = SourcePorts {
            kind: source,
            status: world.clone(),
            events: world.clone(),
            references: world.clone(),
            pods: world.clone(),
        };
        let desired = Desired::new([source]);
        desired.mark_listed(source);
        let settings = ControllerSettings {
            desired: desired.clone(),
            sources: vec![ports],
            cluster: ClusterSettings::default(),
            metrics: Metrics::default(),
        };
        let controller = Controller::new(settings, world.clone(), 7);
        tokio::spawn(controller.clone().dispatch(TaskTracker::new(), CancellationToken::new()));
        Self { world, desired, controller, source }
    }

    fn upsert(&self, meta: Value, spec: Value) {
        let mut metadata = json!({"uid": "u", "namespace": "ns", "name": "p"});
        for (key, value) in meta.as_object().unwrap() {
            metadata[key] = value.clone();
        }
        let mut pod = json!({"metadata": metadata, "spec": {"containers": [{"name": "a", "image": "i"}]}});
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        let bytes = Bytes::from(pod.to_string());
        self.desired.upsert(DesiredPod::from_json(self.source, bytes).unwrap());
    }

    fn say(&self, phase: &str, terminated: bool) {
        let update = StatusUpdate {
            uid: "u".into(),
            status_json: Bytes::from(json!({"phase": phase}).to_string()),
            terminated,
            ..StatusUpdate::default()
        };
        assert!(self.controller.board().send("u", Input::Status(Box::new(update))));
    }

    async fn until(&self, what: &str, mut look: impl FnMut(&World) -> bool) {
        for _ in 0..2000 {
            if look(&self.world) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never came: {what}; calls {:?}", self.world.calls.lock().unwrap());
    }

    async fn called(&self, want: &[&str]) {
        self.until(&format!("{want:?}"), |w| *w.calls.lock().unwrap() == want).await;
    }
}

#[tokio::test]
async fn a_pod_is_placed_durably_then_applied_with_a_growing_generation() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    bench.world.place_fails.store(2, SeqCst);
    bench.upsert(json!({}), json!({}));
    bench.called(&["place h", "apply h"]).await;
    bench.say("Running", false);
    bench.upsert(json!({"labels": {"a": "b"}}), json!({}));
    bench.called(&["place h", "apply h", "apply h"]).await;
    let intents = bench.world.intents.lock().unwrap();
    assert!(intents[0].generation > 7 << 32 && intents[1].generation > intents[0].generation);
}

#[tokio::test]
async fn our_own_status_writes_send_nothing() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    bench.upsert(json!({}), json!({}));
    bench.called(&["place h", "apply h"]).await;
    bench.upsert(json!({"resourceVersion": "9", "annotations": {"nodeless.dev/host": "h"}}), json!({}));
    bench.upsert(json!({"labels": {"a": "b"}}), json!({}));
    bench.called(&["place h", "apply h", "apply h"]).await;
}

#[tokio::test]
async fn a_pod_without_room_waits_says_why_once_and_goes_on_when_room_appears() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("small", 10));
    let asks = json!({"containers": [{"name": "a", "image": "i", "resources": {"requests": {"cpu": "1"}}}]});
    bench.upsert(json!({}), asks);
    bench.until("event", |w| !w.events.lock().unwrap().is_empty()).await;
    bench.controller.reservations().host(host("small", 11));
    bench.controller.reservations().host(host("large", 2000));
    bench.called(&["place large", "apply large"]).await;
    let events = bench.world.events.lock().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].reason, "FailedScheduling");
    let reports = bench.world.reports.lock().unwrap();
    assert_eq!(reports[0].status["phase"], "Pending");
}

#[tokio::test]
async fn a_pod_that_is_larger_than_the_whole_node_is_refused_once_every_host_is_known() {
    let asks =
        |cpu: &str| json!({"containers": [{"name": "a", "image": "i", "resources": {"requests": {"cpu": cpu}}}]});
    let bench = Bench::of(SourceKind::Kubernetes);
    let reservations = bench.controller.reservations();
    *bench.world.enrolled.lock().unwrap() = Some(["a", "b"].map(str::to_owned).into());
    reservations.host(host("a", 1000));
    // The other host may have the room: nobody has heard of it since we started.
    bench.upsert(json!({}), asks("3"));
    bench.until("it waits", |w| w.events.lock().unwrap().iter().any(|e| e.reason == "FailedScheduling")).await;
    reservations.host(host("b", 1999));
    bench.until("it is refused", |w| w.reports.lock().unwrap().last().is_some_and(|r| r.terminated)).await;
    {
        let (reports, events) = (bench.world.reports.lock().unwrap(), bench.world.events.lock().unwrap());
        let status = &reports.last().unwrap().status;
        let words = "Pod was rejected: Node didn't have enough resource: cpu, requested: 3000, used: 0, capacity: 2999";
        assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("OutOfcpu")));
        assert_eq!(status["message"], words);
        assert!(status["containerStatuses"].is_null(), "kubectl would show a container's reason instead");
        assert!(events.iter().any(|event| event.reason == "OutOfcpu" && event.message == words));
    }
    // What the operator writes waits for a host that he may add.
    let bench = Bench::new();
    *bench.world.enrolled.lock().unwrap() = Some(["a"].map(str::to_owned).into());
    bench.controller.reservations().host(host("a", 1000));
    bench.upsert(json!({}), asks("3"));
    bench.until("it waits", |w| !w.events.lock().unwrap().is_empty()).await;
    bench.controller.reservations().host(host("large", 4000));
    bench.called(&["place large", "apply large"]).await;
}

#[tokio::test]
async fn a_pod_that_is_resized_holds_what_it_is_resized_to() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    let asks =
        |cpu: &str| json!({"containers": [{"name": "a", "image": "i", "resources": {"requests": {"cpu": cpu}}}]});
    bench.upsert(json!({}), asks("100m"));
    bench.called(&["place h", "apply h"]).await;
    bench.upsert(json!({"generation": 2}), asks("900m"));
    bench.called(&["place h", "apply h", "apply h"]).await;
    let kind = "namespace".to_owned();
    let request = |milli_cpu| Request { milli_cpu, sandbox_kind: kind.clone(), ..Request::default() };
    assert!(bench.controller.reservations().place("other", &request(200)).is_err());
    bench.upsert(json!({"generation": 3}), asks("100m"));
    bench.called(&["place h", "apply h", "apply h", "apply h"]).await;
    assert_eq!(bench.controller.reservations().place("other", &request(200)).unwrap(), "h");
}

#[tokio::test]
async fn a_missing_config_map_waits_and_its_appearance_wakes() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    bench.upsert(json!({}), json!({"volumes": [{"name": "v", "configMap": {"name": "m"}}]}));
    bench.until("event", |w| w.events.lock().unwrap().iter().any(|e| e.reason == "MandatoryConfigMapNotFound")).await;
    bench.world.config_maps.lock().unwrap().insert("m".into(), ReferencedObject::default());
    let changed =
        ReferenceChanged { kind: crate::ports::ReferenceKind::ConfigMap, namespace: "ns".into(), name: "m".into() };
    bench.world.changes.lock().unwrap().as_ref().unwrap().send(changed).unwrap();
    bench.called(&["place h", "apply h"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_config_map_of_one_container_holds_no_pod_and_is_looked_for_until_it_is_there() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    let from = json!([{"configMapRef": {"name": "m"}}]);
    bench.upsert(
        json!({}),
        json!({"containers": [{"name": "a", "image": "i", "envFrom": from}, {"name": "b", "image": "i"}]}),
    );
    bench.called(&["place h", "apply h"]).await;
    bench.say("Pending", false);
    // Nobody tells of its appearance.
    bench.world.config_maps.lock().unwrap().insert("m".into(), ReferencedObject::default());
    bench.called(&["place h", "apply h", "apply h"]).await;
    let intents = bench.world.intents.lock().unwrap();
    let maps = |n: usize| intents[n].resolved.as_ref().unwrap().config_maps.len();
    assert_eq!((maps(0), maps(1)), (0, 1));
}

#[tokio::test]
async fn a_deletion_ends_at_the_agent_then_in_the_source_then_is_forgotten() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    bench.upsert(json!({}), json!({}));
    bench.called(&["place h", "apply h"]).await;
    bench.say("Running", false);
    bench.upsert(json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 3}), json!({}));
    bench.called(&["place h", "apply h", "apply h delete"]).await;
    assert_eq!(bench.world.intents.lock().unwrap()[1].grace_seconds, 3);
    bench.say("Failed", true);
    bench.called(&["place h", "apply h", "apply h delete", "remove p"]).await;
    bench.desired.remove("u");
    bench.called(&["place h", "apply h", "apply h delete", "remove p", "forget h"]).await;
    bench.until("board is empty", |_| bench.controller.board().all().is_empty()).await;
    assert_eq!(bench.controller.reservations().hosts()[0].used.pods, 0);
}

#[tokio::test]
async fn a_deletion_that_was_marked_and_done_at_once_keeps_its_grace_period() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    bench.upsert(json!({}), json!({"terminationGracePeriodSeconds": 600}));
    bench.called(&["place h", "apply h"]).await;
    bench.say("Running", false);
    bench.upsert(json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0}), json!({}));
    bench.desired.remove("u");
    bench.called(&["place h", "apply h", "apply h delete"]).await;
    assert_eq!(bench.world.intents.lock().unwrap()[1].grace_seconds, 0);
}

#[tokio::test]
async fn a_token_is_replaced_in_a_running_pod_before_it_ends() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    bench.world.token_life.store(2, SeqCst);
    let source = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 600}});
    bench.upsert(json!({}), json!({"volumes": [{"name": "v", "projected": {"sources": [source]}}]}));
    bench.called(&["place h", "apply h"]).await;
    bench.say("Running", false);
    bench.world.token_life.store(3600, SeqCst);
    bench.called(&["place h", "apply h", "apply h"]).await;
    let intents = bench.world.intents.lock().unwrap();
    let token = |i: usize| intents[i].resolved.as_ref().unwrap().tokens[0].token.clone();
    assert_eq!((token(0).as_str(), token(1).as_str()), ("t0", "t1"));
}

#[tokio::test]
async fn a_pod_stays_on_its_host_while_that_is_away_and_is_not_removed() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    bench.upsert(json!({"annotations": {"nodeless.dev/host": "gone"}}), json!({}));
    bench.world.up.store(0, SeqCst);
    bench.upsert(
        json!({"annotations": {"nodeless.dev/host": "gone"}, "deletionTimestamp": "2026-01-01T00:00:00Z"}),
        json!({}),
    );
    bench.until("intent", |_| bench.controller.board().get("u").is_some_and(|e| e.intent.is_some())).await;
    assert!(bench.world.calls.lock().unwrap().is_empty());
    bench.world.up.store(5, SeqCst);
    bench.controller.board().send("u", Input::HostUp);
    bench.called(&["apply gone delete"]).await;
    bench.controller.board().send("u", Input::Absent { connection: 5 });
    bench.called(&["apply gone delete", "remove p"]).await;
}

#[tokio::test]
async fn lack_of_room_at_the_agent_undoes_the_placement_and_other_refusals_are_final() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    let refusal = |reason: &str| Refusal { uid: "u".into(), reason: reason.into(), message: "no".into() };
    bench.world.refuse.lock().unwrap().extend([refusal("OutOfcpu"), refusal("UnsupportedPodField")]);
    bench.upsert(json!({}), json!({}));
    bench.called(&["place h", "apply h", "place h", "apply h"]).await;
    bench.until("failed", |w| w.reports.lock().unwrap().iter().any(|r| r.status["phase"] == "Failed")).await;
    bench.upsert(json!({"labels": {"a": "b"}}), json!({}));
    bench.upsert(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({}));
    bench.called(&["place h", "apply h", "place h", "apply h", "remove p"]).await;
}

#[tokio::test]
async fn a_pod_that_ended_in_its_source_is_not_started() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    let pod = json!({"metadata": {"uid": "u", "namespace": "ns", "name": "p"}, "spec": {"containers": []},
        "status": {"phase": "Succeeded"}});
    let bytes = Bytes::from(pod.to_string());
    bench.desired.upsert(DesiredPod::from_json(SourceKind::Manifest, bytes).unwrap());
    bench.until("entry", |_| !bench.controller.board().all().is_empty()).await;
    bench.upsert(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({}));
    bench.called(&["remove p"]).await;
}

#[tokio::test]
async fn a_lost_host_takes_readiness_and_nothing_else() {
    let bench = Bench::new();
    bench.controller.reservations().host(host("h", 1000));
    bench.upsert(json!({}), json!({}));
    bench.called(&["place h", "apply h"]).await;
    bench.say("Running", false);
    bench.controller.board().send("u", Input::HostLost);
    bench.until("event", |w| w.events.lock().unwrap().iter().any(|e| e.reason == "HostLost")).await;
    assert_eq!(bench.world.reports.lock().unwrap().last().unwrap().status["phase"], "Running");
    assert_eq!(*bench.world.calls.lock().unwrap(), ["place h", "apply h"]);
}
