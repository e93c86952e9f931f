use super::*;
use crate::clock::{Now, SECOND};
use crate::pod::resize::{Resizing, Waiting};
use crate::pod::state::{Event, ExitFacts, ImageFacts, StartFailure, Verdict};

#[derive(Debug)]
struct Named;

impl SandboxName for Named {
    fn of(&self, incarnation: u32) -> String {
        format!("sb-{incarnation}")
    }
}

fn at(seconds: u64) -> Now {
    Now { boottime_ns: seconds * SECOND, wall_ns: (1_700_000_000 + seconds) * SECOND }
}

struct Rig {
    pod: Pod,
    plan: Plan,
    state: PodState,
    conditions: Vec<PodCondition>,
    resizing: Option<Resizing>,
    waiting: Option<Waiting>,
    users: BTreeMap<String, User>,
    now: Now,
}

impl Rig {
    fn new(spec: serde_json::Value) -> Self {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec
        }))
        .unwrap();
        let plan = Plan::of(&pod);
        let state = PodState::new(plan.slots.len());
        Self { pod, plan, state, conditions: vec![], resizing: None, waiting: None, users: BTreeMap::new(), now: at(0) }
    }

    fn step(&mut self, seconds: u64, event: Event) {
        self.now = at(seconds);
        self.state.step(&self.plan, event, self.now).unwrap();
    }

    fn image(&mut self, seconds: u64, slot: usize) {
        let facts = ImageFacts {
            reference: "docker.io/library/busybox:1".into(),
            image_id: "docker.io/library/busybox@sha256:abc".into(),
            layers: vec![],
            high_ids: Default::default(),
        };
        self.step(seconds, Event::ImageReady { slot, facts });
    }

    fn up(&mut self) {
        self.step(0, Event::Begin);
        for slot in 0..self.plan.slots.len() {
            self.image(0, slot);
        }
        self.step(1, Event::SandboxReady { ip: Some([10, 88, 0, 5].into()) });
    }

    fn started(&mut self, seconds: u64, slot: usize) {
        let attempt = self.state.containers[slot].attempt;
        self.step(seconds, Event::Started { slot, attempt, wall_ns: at(seconds).wall_ns });
    }

    fn exited(&mut self, seconds: u64, slot: usize, code: i32, oom_killed: bool) {
        let attempt = self.state.containers[slot].attempt;
        let signal = (code > 128).then_some(code - 128);
        let exit = ExitFacts { code, signal, oom_killed, at: at(seconds), message: String::new() };
        self.step(seconds, Event::Exited { slot, attempt, exit });
    }

    fn status(&mut self) -> serde_json::Value {
        let status = write(View {
            pod: &self.pod,
            plan: &self.plan,
            state: &self.state,
            host_ips: &["192.0.2.1".to_owned()],
            sandbox_id: &Named,
            previous: &self.conditions,
            resizing: self.resizing.as_ref(),
            waiting: self.waiting.as_ref(),
            users: &self.users,
            wall_ns: self.now.wall_ns,
        });
        self.conditions = status.conditions.clone().unwrap_or_default();
        serde_json::to_value(status).unwrap()
    }
}

fn one_container() -> serde_json::Value {
    serde_json::json!({"restartPolicy": "Always", "containers": [{"name": "c", "image": "busybox:1"}]})
}

#[test]
fn a_new_pod_is_pending_and_creating() {
    let mut rig = Rig::new(one_container());
    rig.step(0, Event::Begin);
    insta::assert_json_snapshot!(rig.status());
}

#[test]
fn a_running_pod_is_ready_and_has_its_addresses() {
    let mut rig = Rig::new(serde_json::json!({"restartPolicy": "Always", "containers": [{
        "name": "c", "image": "busybox:1", "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}},
        "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": true}]}]}));
    rig.up();
    rig.started(2, 0);
    insta::assert_json_snapshot!(rig.status());
}

#[test]
fn a_crash_loop_reads_as_a_kubelet_writes_it() {
    let mut rig = Rig::new(one_container());
    rig.up();
    rig.started(2, 0);
    rig.exited(3, 0, 1, false);
    rig.started(4, 0);
    rig.exited(5, 0, 137, true);
    insta::assert_json_snapshot!(rig.status());
}

#[test]
fn a_finished_pod_has_succeeded() {
    let mut rig =
        Rig::new(serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox:1"}]}));
    rig.up();
    rig.started(2, 0);
    rig.exited(9, 0, 0, false);
    rig.step(9, Event::Released);
    insta::assert_json_snapshot!(rig.status());
}

#[test]
fn behind_an_init_container_the_others_wait() {
    let mut rig = Rig::new(serde_json::json!({"restartPolicy": "Never",
        "initContainers": [{"name": "i", "image": "busybox:1"}, {"name": "s", "image": "busybox:1", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "image": "busybox:1"}]}));
    rig.up();
    rig.started(2, 0);
    insta::assert_json_snapshot!(rig.status());
}

#[test]
fn a_refused_pod_is_failed_by_name() {
    let mut rig = Rig::new(one_container());
    rig.step(
        0,
        Event::Deny(Verdict {
            reason: "OutOfcpu".into(),
            message: "Pod was rejected: Node didn't have enough resource: cpu".into(),
            disrupted: false,
        }),
    );
    insta::assert_json_snapshot!(rig.status());
}

fn waiting_reason(status: &serde_json::Value) -> (String, String) {
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    let text = |key: &str| waiting[key].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

#[test]
fn a_failed_pull_is_first_an_error_and_then_a_back_off() {
    let mut rig = Rig::new(one_container());
    rig.step(0, Event::Begin);
    rig.step(
        1,
        Event::ImageFailed {
            slot: 0,
            reference: "busybox:1".into(),
            reason: "ErrImagePull".into(),
            message: "not found".into(),
            retry_after: None,
        },
    );
    assert_eq!(waiting_reason(&rig.status()), ("ErrImagePull".into(), "not found".into()));
    rig.step(2, Event::Tick);
    assert_eq!(
        waiting_reason(&rig.status()),
        ("ImagePullBackOff".into(), "Back-off pulling image \"busybox:1\": ErrImagePull: not found".into())
    );
}

#[test]
fn the_image_of_a_volume_is_named_when_it_is_the_one_that_fails() {
    let mut rig = Rig::new(one_container());
    rig.step(0, Event::Begin);
    let (reference, reason, message) = ("model:7".into(), "ErrImagePull".into(), "not found".into());
    rig.step(1, Event::ImageFailed { slot: 0, reference, reason, message, retry_after: None });
    rig.step(2, Event::Tick);
    let message = "Back-off pulling image \"model:7\": ErrImagePull: not found";
    assert_eq!(waiting_reason(&rig.status()), ("ImagePullBackOff".into(), message.into()));
}

#[test]
fn other_image_troubles_keep_their_names() {
    for reason in ["InvalidImageName", "ErrImageNeverPull"] {
        let mut rig = Rig::new(one_container());
        rig.step(0, Event::Begin);
        rig.step(
            1,
            Event::ImageFailed {
                slot: 0,
                reference: "busybox:1".into(),
                reason: reason.into(),
                message: "m".into(),
                retry_after: None,
            },
        );
        rig.step(5, Event::Tick);
        assert_eq!(waiting_reason(&rig.status()).0, reason);
    }
}

#[test]
fn a_container_that_cannot_be_created_says_why() {
    let mut rig = Rig::new(one_container());
    rig.up();
    let failure =
        StartFailure::Config { reason: "CreateContainerConfigError".into(), message: "secret \"s\" not found".into() };
    rig.step(2, Event::StartFailed { slot: 0, attempt: 0, failure });
    assert_eq!(waiting_reason(&rig.status()), ("CreateContainerConfigError".into(), "secret \"s\" not found".into()));
    assert_eq!(rig.status()["containerStatuses"][0]["restartCount"], 0);
}

#[test]
fn a_condition_keeps_its_time_until_it_changes() {
    let mut rig = Rig::new(one_container());
    rig.up();
    rig.started(2, 0);
    let ready = |status: &serde_json::Value| status["conditions"][2].clone();
    let first = ready(&rig.status());
    rig.now = at(50);
    assert_eq!(ready(&rig.status()), first);
    rig.exited(60, 0, 1, false);
    let after = ready(&rig.status());
    assert_eq!(after["status"], "False");
    assert_ne!(after["lastTransitionTime"], first["lastTransitionTime"]);
}

#[test]
fn a_deleted_pod_that_was_killed_has_failed() {
    let mut rig = Rig::new(one_container());
    rig.up();
    rig.started(2, 0);
    rig.step(3, Event::Delete { grace_seconds: 1 });
    assert_eq!(rig.status()["phase"], "Running");
    rig.exited(4, 0, 143, false);
    let status = rig.status();
    assert_eq!(status["phase"], "Failed");
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
}

#[test]
fn a_change_of_resources_is_told_while_it_waits_and_while_it_is_carried_out() {
    let resources = serde_json::json!({"requests": {"cpu": "2"}});
    let mut rig = Rig::new(serde_json::json!({"containers": [{"name": "a", "image": "i", "resources": resources}]}));
    rig.up();
    rig.started(2, 0);
    let message = "Node didn't have enough resource: cpu, requested: 2000, used: 0, capacity: 1000".to_owned();
    rig.waiting = Some(Waiting { pod: serde_json::Value::Null, message: Some(message.clone()), infeasible: false });
    let condition = |status: &serde_json::Value, name: &str| {
        status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == name).cloned()
    };
    let pending = condition(&rig.status(), "PodResizePending").unwrap();
    assert_eq!((&pending["status"], &pending["reason"]), (&"True".into(), &"Deferred".into()));
    assert_eq!(pending["message"], message);
    rig.waiting = None;
    let before = serde_json::from_value(serde_json::json!({"requests": {"cpu": "1"}})).unwrap();
    rig.resizing = Some(Resizing { generation: 2, before: [("a".to_owned(), before)].into(), pod: None, error: None });
    let status = rig.status();
    assert!(condition(&status, "PodResizePending").is_none());
    assert_eq!(condition(&status, "PodResizeInProgress").unwrap()["status"], "True");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["resources"]["requests"]["cpu"], "1", "what it has");
    assert_eq!(container["allocatedResources"]["cpu"], "2", "what it is given");
    rig.resizing.as_mut().unwrap().error = Some("no".to_owned());
    let progress = condition(&rig.status(), "PodResizeInProgress").unwrap();
    assert_eq!((&progress["reason"], &progress["message"]), (&"Error".into(), &"no".into()));
    rig.resizing = None;
    assert!(condition(&rig.status(), "PodResizeInProgress").is_none());
}

#[test]
fn an_evicted_pod_has_failed_with_the_reason_and_only_for_the_nodes_sake_is_it_a_disruption() {
    for disrupted in [false, true] {
        let mut rig = Rig::new(one_container());
        rig.up();
        rig.started(2, 0);
        rig.step(3, Event::Evict { message: "too much. ".into(), disrupted });
        let status = rig.status();
        assert_eq!((&status["phase"], &status["reason"]), (&"Running".into(), &"Evicted".into()));
        rig.exited(4, 0, 137, false);
        rig.step(4, Event::Released);
        let status = rig.status();
        assert_eq!((&status["phase"], &status["reason"]), (&"Failed".into(), &"Evicted".into()));
        assert_eq!(status["message"], "too much. ");
        assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
        let conditions = status["conditions"].as_array().unwrap();
        let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget");
        assert_eq!(
            target.map(|c| (&c["status"], &c["reason"])),
            disrupted.then_some((&"True".into(), &"TerminationByKubelet".into()))
        );
    }
}

#[test]
fn who_runs_a_container_is_told_once_it_was_started() {
    let mut rig = Rig::new(one_container());
    rig.users.insert("c".to_owned(), User { uid: 1000, gid: 0, additional_gids: vec![0, 1_000_650_000] });
    rig.up();
    assert!(rig.status()["containerStatuses"][0].get("user").is_none(), "nobody runs it yet");
    rig.started(2, 0);
    let user = serde_json::json!({"linux": {"uid": 1000, "gid": 0, "supplementalGroups": [0, 1_000_650_000]}});
    assert_eq!(rig.status()["containerStatuses"][0]["user"], user);
    rig.exited(3, 0, 0, false);
    assert_eq!(rig.status()["containerStatuses"][0]["user"], user, "it ran as that");
}
