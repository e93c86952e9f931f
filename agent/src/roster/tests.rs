mod cpus;
mod devices;
mod edited;

use std::time::{Duration, Instant};

use super::*;
use crate::intent::{Deletion, Source};
use crate::resolved::{Bytes, Data, Resolved};
use crate::testing::Rig;

fn room() -> Room {
    Room {
        amounts: crate::pod::spec::resources::Amounts { milli_cpu: 4000, memory: 4 << 30, ephemeral: 1 << 30 },
        pods: 110,
        ..Room::default()
    }
}

async fn agent(rig: &Rig, boot_id: &str) -> Arc<Roster> {
    agent_that_allows(rig, boot_id, &[]).await
}

async fn agent_that_allows(rig: &Rig, boot_id: &str, allowed: &[crate::trust::Allow]) -> Arc<Roster> {
    let world = rig.world_with(boot_id, |world| world.host.trust.allowed = allowed.iter().copied().collect());
    let epoch = world.ledger.epoch().unwrap();
    let survivors = crate::recover::run(&world).await.unwrap();
    let roster = Roster::new(world, room(), epoch);
    roster.recovered(survivors).await;
    Arc::new(roster)
}

fn pod(uid: &str, restart: &str, args: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "metadata": {"name": uid, "namespace": "n", "uid": uid},
        "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "image:1", "args": args}]}
    })
}

fn intent(json: serde_json::Value, generation: u64) -> Intent {
    let uid = json["metadata"]["uid"].as_str().unwrap().to_owned();
    Intent::new(uid, generation, json, Resolved::default(), Source::Kubernetes, None).unwrap()
}

fn deleted(json: serde_json::Value, generation: u64, grace_seconds: u64) -> Intent {
    Intent { deletion: Some(Deletion { grace_seconds }), ..intent(json, generation) }
}

async fn until(roster: &Roster, uid: &str, what: impl Fn(&Posted) -> bool) -> Posted {
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut changes = roster.world().board.changes();
    loop {
        if let Some(posted) = roster.world().board.get(uid).filter(|p| what(p)) {
            return posted;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if tokio::time::timeout(left, changes.changed()).await.is_err() {
            panic!("never came: {:?}", roster.world().board.get(uid).map(|p| status(&p)));
        }
    }
}

fn status(posted: &Posted) -> serde_json::Value {
    serde_json::from_slice(&posted.status_json).unwrap_or_default()
}

fn phase(posted: &Posted) -> String {
    status(posted)["phase"].as_str().unwrap_or_default().to_owned()
}

fn runs(posted: &Posted) -> bool {
    posted.containers.get("c").is_some_and(|c| c.running)
}

fn reasons(roster: &Roster) -> Vec<String> {
    roster.world().journal.after(0, 1000).into_iter().map(|e| e.reason).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_to_its_end_and_everything_is_released() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    roster.apply(1, intent(pod("u", "Never", &["exit", "0"]), 1)).await.unwrap();
    let done = until(&roster, "u", |p| p.terminated).await;
    assert_eq!(phase(&done), "Succeeded");
    let t = done.timeline;
    let road =
        [t.accepted_ns, t.held_ns, t.sandbox_ready_ns, t.started_ns, t.first_byte_ns, t.finished_ns, t.released_ns];
    assert!(road.iter().all(|at| *at > 0) && t.image_ready_ns > 0, "{t:?}");
    assert!(t.accepted_ns <= t.held_ns && t.held_ns <= t.sandbox_ready_ns && t.sandbox_ready_ns <= t.started_ns);
    assert!(rig.sandboxes.ids().is_empty() && rig.network.attached.lock().unwrap().is_empty());
    let (start, stop) = rig.meter.closed.lock().unwrap()["u-0"];
    assert_eq!((start.boottime_ns, stop.boottime_ns), (t.held_boottime_ns, t.released_boottime_ns));
    assert_eq!(reasons(&roster), ["Pulling", "Pulled", "Created", "Started"]);
    roster.forget(1, "u").await.unwrap();
    assert!(roster.world().board.get("u").is_none());
    assert!(!rig.state_dir().join("state/pods/u").exists() && !rig.state_dir().join("state/ledger/u.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_is_graceful_and_then_firm() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    for (uid, program, code) in [("soft", "run", 143), ("hard", "deaf", 137)] {
        let json = pod(uid, "Always", &[program]);
        roster.apply(1, intent(json.clone(), 1)).await.unwrap();
        until(&roster, uid, |p| phase(p) == "Running").await;
        assert!(matches!(roster.forget(1, uid).await, Err(RosterError::NotTerminated { .. })));
        roster.apply(1, deleted(json, 2, 1)).await.unwrap();
        let done = until(&roster, uid, |p| p.terminated).await;
        assert_eq!(status(&done)["containerStatuses"][0]["state"]["terminated"]["exitCode"], code);
        assert_eq!(done.generation, 2);
    }
    assert!(reasons(&roster).contains(&"Killing".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_by_name_in_status_and_event() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    let mut json = pod("u", "Never", &["run"]);
    json["spec"]["hostNetwork"] = true.into();
    json["spec"]["future"] = 1.into();
    roster.apply(1, intent(json, 1)).await.unwrap();
    let done = until(&roster, "u", |p| p.terminated).await;
    assert_eq!((phase(&done).as_str(), status(&done)["reason"].as_str()), ("Failed", Some("UnsupportedPodField")));
    assert!(status(&done)["message"].as_str().unwrap().contains("spec.hostNetwork"));
    assert_eq!(reasons(&roster), ["UnknownPodField", "UnsupportedPodField"]);
    assert_eq!(rig.sandboxes.count(""), 0, "nothing was touched");
    let mut big = pod("big", "Never", &["run"]);
    big["spec"]["containers"][0]["resources"] = serde_json::json!({"requests": {"cpu": "5"}});
    roster.apply(1, intent(big, 1)).await.unwrap();
    let done = until(&roster, "big", |p| p.terminated).await;
    assert_eq!(status(&done)["reason"], "OutOfcpu");
}

#[tokio::test(flavor = "multi_thread")]
async fn room_is_never_given_away_twice() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    let asks = (0..6).map(|n| {
        let mut json = pod(&format!("u{n}"), "Never", &["run"]);
        json["spec"]["containers"][0]["resources"] = serde_json::json!({"requests": {"cpu": "1"}});
        roster.apply(1, intent(json, 1))
    });
    futures::future::try_join_all(asks).await.unwrap();
    let mut running = 0;
    for n in 0..6 {
        let posted = until(&roster, &format!("u{n}"), |p| p.terminated || phase(p) == "Running").await;
        running += usize::from(!posted.terminated);
    }
    assert_eq!(running, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_may_name_a_user_of_a_high_id() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    let mut json = pod("u", "Never", &["run"]);
    json["spec"]["containers"][0]["image"] = "as-70000:1".into();
    roster.apply(1, intent(json, 1)).await.unwrap();
    let posted = until(&roster, "u", runs).await;
    let id = posted.sandbox.unwrap();
    let state = rig.sandboxes.inner.lock().unwrap();
    let sandbox = &state.sandboxes[&id.0];
    assert_eq!(sandbox.running["c"].user.uid, 70_000);
    assert!(sandbox.spec.as_ref().unwrap().namespaces.has_id(70_000));
}

fn debugger(name: &str, args: &[&str]) -> serde_json::Value {
    serde_json::json!({"name": name, "image": "image:1", "args": args, "targetContainerName": "c", "stdin": true})
}

fn debugger_state(posted: &Posted, index: usize) -> serde_json::Value {
    status(posted)["ephemeralContainerStatuses"][index]["state"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_container_joins_a_running_pod_runs_once_and_holds_nothing_up() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    let plain = pod("u", "Always", &["run"]);
    roster.apply(1, intent(plain.clone(), 1)).await.unwrap();
    let sandbox = until(&roster, "u", runs).await.sandbox.unwrap().0;
    let with = |containers: &[serde_json::Value]| {
        let mut json = plain.clone();
        json["spec"]["ephemeralContainers"] = containers.into();
        json
    };
    roster.apply(1, intent(with(&[debugger("one", &["run"])]), 2)).await.unwrap();
    let posted = until(&roster, "u", |p| !debugger_state(p, 0)["running"].is_null()).await;
    assert!(posted.containers["one"].running, "logs, exec and attach find it");
    let started = rig.sandboxes.lock().sandboxes[&sandbox].running["one"].clone();
    assert_eq!((started.target.as_deref(), started.stdin), (Some("c"), true));
    // It ends, and is not started again, whatever the pod's policy; another has its turn.
    rig.sandboxes.end(&sandbox, "one", 1, false);
    until(&roster, "u", |p| debugger_state(p, 0)["terminated"]["exitCode"] == 1).await;
    roster.apply(1, intent(with(&[debugger("one", &["run"]), debugger("two", &["exit", "0"])]), 3)).await.unwrap();
    let posted = until(&roster, "u", |p| debugger_state(p, 1)["terminated"]["exitCode"] == 0).await;
    assert!(!debugger_state(&posted, 0)["terminated"].is_null());
    assert_eq!(phase(&posted), "Running");
    assert!(posted.containers["c"].running && posted.containers["c"].number == 0, "the pod's own does not notice");
    // One that asks for what its host does not allow is refused alone, by name.
    let mut rude = debugger("three", &["run"]);
    rude["securityContext"] = serde_json::json!({"privileged": true});
    let all = [debugger("one", &["run"]), debugger("two", &["exit", "0"]), rude];
    roster.apply(1, intent(with(&all), 4)).await.unwrap();
    let posted = until(&roster, "u", |p| debugger_state(p, 2)["waiting"]["message"].is_string()).await;
    let message = debugger_state(&posted, 2)["waiting"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("spec.ephemeralContainers[three].securityContext.privileged"), "{message}");
    assert!(posted.containers["c"].running);
}

/// As an agent meets it whose debugger came before the pod, or before an agent that runs debuggers.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_has_an_ephemeral_container_already_runs_with_it() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    let mut json = pod("u", "Never", &["run"]);
    json["spec"]["ephemeralContainers"] = [debugger("d", &["run"])].into_iter().collect();
    json["spec"]["initContainers"] = serde_json::json!([{"name": "stuck", "image": "image:1", "args": ["run"]}]);
    json["spec"]["ephemeralContainers"][0]["targetContainerName"] = "stuck".into();
    roster.apply(1, intent(json, 1)).await.unwrap();
    let posted = until(&roster, "u", |p| !debugger_state(p, 0)["running"].is_null()).await;
    assert_eq!(phase(&posted), "Pending", "it is there to find out why an init container does not end");
}

/// A claim lives from a pod's admission to its end, over a restart of the agent.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_is_given_to_one_pod_until_its_end() {
    let rig = Rig::new();
    let allowed = [crate::trust::Allow::HostNetwork];
    let roster = agent_that_allows(&rig, "boot", &allowed).await;
    let claiming = |uid: &str, address: &str| {
        let mut json = pod(uid, "Never", &["run"]);
        json["spec"]["hostNetwork"] = true.into();
        json["spec"]["containers"][0]["ports"] =
            serde_json::json!([{"containerPort": 80, "hostPort": 80, "protocol": "TCP", "hostIP": address}]);
        intent(json, 1)
    };
    roster.apply(1, claiming("first", "")).await.unwrap();
    // Beside the first, which may not even run yet; and its own refusal keeps the port from nobody.
    roster.apply(1, claiming("second", "192.0.2.1")).await.unwrap();
    let refused = until(&roster, "second", |p| p.terminated).await;
    assert_eq!((phase(&refused), &status(&refused)["reason"]), ("Failed".to_owned(), &"NodePorts".into()));
    assert_eq!(
        status(&refused)["message"],
        "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
    );
    until(&roster, "first", runs).await;
    roster.close().await;
    drop(roster);
    let roster = agent_that_allows(&rig, "boot", &allowed).await;
    roster.apply(1, claiming("third", "")).await.unwrap();
    assert_eq!(status(&until(&roster, "third", |p| p.terminated).await)["reason"], "NodePorts");
    rig.sandboxes.end("first-0", "c", 0, false);
    until(&roster, "first", |p| p.terminated).await;
    roster.apply(1, claiming("fourth", "")).await.unwrap();
    until(&roster, "fourth", runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_restarts_the_container_and_an_oom_kill_is_told() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    roster.apply(1, intent(pod("u", "Always", &["run"]), 1)).await.unwrap();
    until(&roster, "u", |p| phase(p) == "Running").await;
    rig.sandboxes.end("u-0", "c", 137, true);
    let again = until(&roster, "u", |p| status(p)["containerStatuses"][0]["restartCount"] == 1 && runs(p)).await;
    assert_eq!(status(&again)["containerStatuses"][0]["lastState"]["terminated"]["reason"], "OOMKilled");
    rig.sandboxes.end("u-0", "c", 1, false);
    let waiting =
        until(&roster, "u", |p| status(p)["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff")
            .await;
    assert_eq!(phase(&waiting), "Running");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be_had_are_told_as_a_kubelet_tells_them() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    for (uid, image, reason) in [("a", "absent:1", "ErrImagePull"), ("b", "no name:1", "InvalidImageName")] {
        let mut json = pod(uid, "Always", &["run"]);
        json["spec"]["containers"][0]["image"] = image.into();
        roster.apply(1, intent(json.clone(), 1)).await.unwrap();
        let waiting = |p: &Posted| status(p)["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
        until(&roster, uid, |p| waiting(p) == reason).await;
        roster.apply(1, deleted(json, 2, 0)).await.unwrap();
        until(&roster, uid, |p| p.terminated).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_restart_touches_nothing_that_runs_and_learns_what_ended() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    for uid in ["stays", "ends"] {
        roster.apply(3, intent(pod(uid, "Never", &["run"]), 1)).await.unwrap();
        until(&roster, uid, runs).await;
    }
    roster.close().await;
    drop(roster);
    rig.sandboxes.end("ends-0", "c", 7, false);
    let starts = rig.sandboxes.count("start");
    let roster = agent(&rig, "boot").await;
    let ended = until(&roster, "ends", |p| p.terminated).await;
    assert_eq!(status(&ended)["containerStatuses"][0]["state"]["terminated"]["exitCode"], 7);
    let stays = until(&roster, "stays", runs).await;
    assert_eq!(phase(&stays), "Running");
    assert_eq!(status(&stays)["conditions"][2]["status"], "True");
    assert_eq!(rig.sandboxes.count("start"), starts, "nothing was started again");
    assert!(rig.meter.open.lock().unwrap().contains_key("stays-0"));
    // The fence survives, too.
    assert!(matches!(roster.fence(2).await, Err(RosterError::Fenced { highest: 3, .. })));
    // The same intent again changes nothing.
    roster.apply(3, intent(pod("stays", "Never", &["run"]), 1)).await.unwrap();
    assert_eq!(rig.sandboxes.count("start"), starts);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_host_restart_pods_start_again_or_fail_as_their_policy_says() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot-1").await;
    for (uid, restart) in [("again", "Always"), ("never", "Never")] {
        roster.apply(1, intent(pod(uid, restart, &["run"]), 1)).await.unwrap();
        until(&roster, uid, runs).await;
    }
    roster.close().await;
    drop(roster);
    rig.sandboxes.lock().sandboxes.clear();
    let roster = agent(&rig, "boot-2").await;
    let again = until(&roster, "again", |p| runs(p) && p.containers.get("c").is_some_and(|c| c.number == 1)).await;
    assert_eq!(again.sandbox.unwrap().0, "again-1");
    let never = until(&roster, "never", |p| p.terminated).await;
    assert_eq!(phase(&never), "Failed");
    assert_eq!(rig.network.attached.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_that_nobody_knows_are_destroyed_unless_the_ledger_is_damaged() {
    use sandbox::contract::Sandboxes as _;
    let rig = Rig::new();
    let stray = sandbox::spec::SandboxId("stray-0".to_owned());
    rig.sandboxes.prepare(&stray).await.unwrap();
    drop(agent(&rig, "boot").await);
    assert!(rig.sandboxes.ids().is_empty());
    rig.sandboxes.prepare(&stray).await.unwrap();
    std::fs::write(rig.state_dir().join("state/ledger/torn.json"), "{").unwrap();
    drop(agent(&rig, "boot").await);
    assert_eq!(rig.sandboxes.ids(), ["stray-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_sandbox_is_replaced() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    roster.apply(1, intent(pod("u", "Always", &["run"]), 1)).await.unwrap();
    until(&roster, "u", runs).await;
    rig.sandboxes.lose("u-0");
    let again = until(&roster, "u", |p| p.sandbox.as_ref().is_some_and(|s| s.0 == "u-1") && runs(p)).await;
    assert_eq!(phase(&again), "Running");
    assert!(again.timeline.held_boottime_ns > 0);
    assert_eq!((again.timeline.released_ns, again.timeline.released_boottime_ns), (0, 0), "it is held again");
    assert_eq!(rig.sandboxes.ids(), ["u-1"]);
    assert_eq!(rig.meter.closed.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_before_its_shim_died_ended_as_it_did() {
    let rig = Rig::new();
    let mut roster = agent(&rig, "boot").await;
    // With the agent there; without; and with an agent that could only write down that it accepted the pod.
    for (uid, away, late) in [("here", false, false), ("away", true, false), ("late", true, true)] {
        let document = rig.state_dir().join(format!("state/ledger/{uid}.json"));
        roster.apply(1, intent(pod(uid, "OnFailure", &["run"]), 1)).await.unwrap();
        let accepted = std::fs::read(&document).unwrap();
        until(&roster, uid, runs).await;
        if away {
            roster.close().await;
        }
        if late {
            std::fs::write(&document, accepted).unwrap();
        }
        rig.sandboxes.end(&format!("{uid}-0"), "c", 0, false);
        rig.sandboxes.lose(&format!("{uid}-0"));
        if away {
            roster = agent(&rig, "boot").await;
        }
        let done = until(&roster, uid, |p| p.terminated).await;
        assert_eq!(phase(&done), "Succeeded", "{}", status(&done));
        assert_eq!(rig.sandboxes.count(&format!("prepare {uid}-1")), 0, "it was run again");
        let times = done.timeline;
        assert!(0 < times.held_boottime_ns && times.held_boottime_ns < times.released_boottime_ns, "{uid}: {times:?}");
        assert!(!rig.meter.open.lock().unwrap().contains_key(&format!("{uid}-0")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_cannot_be_made_is_tried_again() {
    let rig = Rig::new();
    rig.sandboxes.lock().failing.insert("configure", 1);
    let roster = agent(&rig, "boot").await;
    roster.apply(1, intent(pod("u", "Never", &["exit", "0"]), 1)).await.unwrap();
    let done = until(&roster, "u", |p| p.terminated).await;
    assert_eq!(phase(&done), "Succeeded");
    assert!(reasons(&roster).contains(&"FailedCreatePodSandBox".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brake_holds_a_sync_that_would_remove_too_many() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    let json = |n: usize| pod(&format!("u{n}"), "Never", &["run"]);
    for n in 0..6 {
        roster.apply(1, intent(json(n), 1)).await.unwrap();
        until(&roster, &format!("u{n}"), runs).await;
    }
    let synced = roster.sync(2, vec![intent(json(0), 1)], &[], &[]).await.unwrap();
    assert_eq!(synced.held, ["u1", "u2", "u3", "u4", "u5"]);
    assert_eq!(rig.sandboxes.ids().len(), 6);
    // With an operator's word those go that it names; the rest is judged by itself.
    let synced = roster.sync(2, vec![intent(json(0), 1)], &[], &["u5".to_owned()]).await.unwrap();
    assert_eq!(synced.held, ["u1", "u2", "u3", "u4"]);
    until(&roster, "u5", |p| p.terminated).await;
    // With a mark on each they go, and a few may go without.
    let marked: Vec<Intent> = (0..3).map(|n| deleted(json(n), 2, 0)).collect();
    let synced = roster.sync(2, marked, &[], &[]).await.unwrap();
    assert_eq!(synced, Synced::default());
    for n in 0..5 {
        until(&roster, &format!("u{n}"), |p| p.terminated).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_material_is_on_tmpfs_only_and_survives_the_agent_but_not_the_pod() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    let mut json = pod("u", "Always", &["run"]);
    json["spec"]["volumes"] = serde_json::json!([{"name": "s", "secret": {"secretName": "s"}}]);
    json["spec"]["containers"][0]["volumeMounts"] = serde_json::json!([{"name": "s", "mountPath": "/s"}]);
    let with = |text: &str, generation| {
        let data: Data = [("key".to_owned(), Bytes(text.as_bytes().to_vec()))].into();
        let resolved = Resolved { secrets: [("s".to_owned(), data)].into(), ..Resolved::default() };
        Intent { resolved: Arc::new(resolved), ..intent(json.clone(), generation) }
    };
    roster.apply(1, with("hunter2", 1)).await.unwrap();
    until(&roster, "u", runs).await;
    let secret = rig.state_dir().join("run/secrets/u/volumes/s/key");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "hunter2");
    let mut pending = vec![rig.state_dir().join("state")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().flatten().map(|e| e.path()));
        } else {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
            assert!(!text.contains("hunter2"), "{path:?}");
        }
    }
    // A restart of the agent finds it again; a newer intent swaps it live.
    roster.close().await;
    let roster = agent(&rig, "boot").await;
    roster.apply(1, with("hunter3", 2)).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&secret).unwrap() != "hunter3" {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    roster.apply(1, Intent { deletion: Some(Deletion { grace_seconds: 0 }), ..with("hunter3", 3) }).await.unwrap();
    until(&roster, "u", |p| p.terminated).await;
    assert!(!rig.state_dir().join("run/secrets/u").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uid_that_is_no_file_name_is_refused() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    for uid in ["../x", "a/b", ".x", &"x".repeat(200)] {
        let result = roster.apply(1, intent(pod(uid, "Never", &["run"]), 1)).await;
        assert!(matches!(result, Err(RosterError::BadUid { .. })), "{uid}");
    }
}

/// Longest wait for an agent's last system calls: of one that is really killed none comes after the next one's first.
const GONE: Duration = Duration::from_secs(300);

/// Kills an agent after a while: its tasks are dropped wherever they wait.
fn agent_for(rig: &Rig, pause: Duration, intents: &[Intent]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let roster = agent(rig, "boot").await;
        let work = async {
            for intent in intents {
                // An intent whose acknowledgement is lost is sent again by the next vkubelet.
                let _ = roster.apply(1, intent.clone()).await;
            }
            std::future::pending::<()>().await;
        };
        let _ = tokio::time::timeout(pause, work).await;
    });
    runtime.shutdown_timeout(GONE);
}

#[test]
fn an_agent_killed_at_any_moment_leaves_pods_that_are_fully_up_or_fully_gone() {
    for step in 0_u32..40 {
        let rig = Rig::new();
        let wanted: Vec<Intent> = ["a", "b"].map(|uid| intent(pod(uid, "Always", &["run"]), 1)).into();
        agent_for(&rig, Duration::from_micros(u64::from(step) * 400), &wanted);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let roster = agent(&rig, "boot").await;
            for intent in &wanted {
                roster.apply(2, intent.clone()).await.unwrap();
            }
            for uid in ["a", "b"] {
                until(&roster, uid, runs).await;
            }
            assert_eq!(rig.sandboxes.ids().len(), 2, "step {step}");
            assert_eq!(rig.network.attached.lock().unwrap().len(), 2, "step {step}");
            assert_eq!(rig.meter.open.lock().unwrap().len(), 2, "step {step}");
        });
        runtime.shutdown_timeout(GONE);
        let marked: Vec<Intent> = ["a", "b"].map(|uid| deleted(pod(uid, "Always", &["run"]), 2, 0)).into();
        agent_for(&rig, Duration::from_micros(u64::from(step) * 300), &marked);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let roster = agent(&rig, "boot").await;
            for intent in &marked {
                roster.apply(3, intent.clone()).await.unwrap();
            }
            for uid in ["a", "b"] {
                until(&roster, uid, |p| p.terminated).await;
                roster.forget(3, uid).await.unwrap();
            }
        });
        runtime.shutdown_timeout(GONE);
        assert!(rig.sandboxes.ids().is_empty() && rig.network.attached.lock().unwrap().is_empty(), "step {step}");
        assert!(rig.meter.open.lock().unwrap().is_empty(), "step {step}");
        let left: Vec<_> = std::fs::read_dir(rig.state_dir().join("state/pods")).unwrap().collect();
        assert!(left.is_empty(), "step {step}: {left:?}");
    }
}

fn sized(uid: &str, milli_cpu: u64, policy: &str) -> serde_json::Value {
    let mut json = pod(uid, "Always", &["run"]);
    let cpu = format!("{milli_cpu}m");
    json["spec"]["containers"][0]["resources"] =
        serde_json::json!({"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {"cpu": cpu, "memory": "64Mi"}});
    json["spec"]["containers"][0]["resizePolicy"] =
        serde_json::json!([{"resourceName": "cpu", "restartPolicy": policy}]);
    json["spec"]["terminationGracePeriodSeconds"] = 1.into();
    json
}

fn condition(posted: &Posted, name: &str) -> Option<serde_json::Value> {
    status(posted)["conditions"].as_array()?.iter().find(|c| c["type"] == name).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_reaches_the_kernel_the_meter_and_the_status() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    roster.apply(1, intent(sized("u", 1000, "NotRequired"), 1)).await.unwrap();
    until(&roster, "u", runs).await;
    roster.apply(1, intent(sized("u", 2000, "NotRequired"), 2)).await.unwrap();
    let posted = until(&roster, "u", |p| {
        status(p)["containerStatuses"][0]["resources"]["limits"]["cpu"] == "2000m"
            && condition(p, "PodResizeInProgress").is_none()
    })
    .await;
    assert_eq!(status(&posted)["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(posted.requests.milli_cpu, 2000);
    let memory = Some(64u64 << 20);
    assert_eq!(
        rig.sandboxes.lock().updates,
        [
            format!("pod quota {:?} memory {memory:?}", Some(200_000)),
            format!("c quota {:?} memory {memory:?}", Some(200_000)),
            format!("pod quota {:?} memory {memory:?}", Some(200_000)),
        ]
    );
    assert_eq!(*rig.meter.resized.lock().unwrap(), [(2000, 64 << 20), (2000, 64 << 20)]);
    // Less again: it is held until the kernel has taken it back.
    roster.apply(1, intent(sized("u", 500, "NotRequired"), 3)).await.unwrap();
    until(&roster, "u", |p| {
        status(p)["containerStatuses"][0]["resources"]["limits"]["cpu"] == "500m"
            && condition(p, "PodResizeInProgress").is_none()
    })
    .await;
    assert_eq!(rig.meter.resized.lock().unwrap()[2..], [(2000, 64 << 20), (500, 64 << 20)]);
    let told = reasons(&roster);
    assert_eq!(told.iter().filter(|r| *r == "ResizeStarted").count(), 2, "{told:?}");
    assert_eq!(told.iter().filter(|r| *r == "ResizeCompleted").count(), 2, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_without_room_waits_and_is_made_when_there_is_room() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    roster.apply(1, intent(sized("other", 2000, "NotRequired"), 1)).await.unwrap();
    roster.apply(1, intent(sized("u", 1000, "NotRequired"), 2)).await.unwrap();
    until(&roster, "u", runs).await;
    until(&roster, "other", runs).await;
    roster.apply(1, intent(sized("u", 3000, "NotRequired"), 3)).await.unwrap();
    let posted = until(&roster, "u", |p| condition(p, "PodResizePending").is_some()).await;
    let pending = condition(&posted, "PodResizePending").unwrap();
    assert_eq!(pending["reason"], "Deferred");
    assert_eq!(
        pending["message"],
        "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000"
    );
    assert_eq!((posted.requests.milli_cpu, rig.sandboxes.lock().updates.len()), (1000, 0));
    roster.apply(1, deleted(sized("other", 2000, "NotRequired"), 4, 0)).await.unwrap();
    until(&roster, "other", |p| p.terminated).await;
    let posted = until(&roster, "u", |p| {
        p.requests.milli_cpu == 3000
            && condition(p, "PodResizePending").is_none()
            && condition(p, "PodResizeInProgress").is_none()
    })
    .await;
    assert_eq!(status(&posted)["containerStatuses"][0]["resources"]["requests"]["cpu"], "3000m");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_that_was_written_down_is_carried_out_by_the_next_agent() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    roster.apply(1, intent(sized("u", 1000, "NotRequired"), 1)).await.unwrap();
    until(&roster, "u", runs).await;
    rig.sandboxes.lock().failing.insert("update", u32::MAX);
    roster.apply(1, intent(sized("u", 2000, "NotRequired"), 2)).await.unwrap();
    let posted = until(&roster, "u", |p| {
        condition(p, "PodResizeInProgress").is_some_and(|condition| condition["reason"] == "Error")
    })
    .await;
    assert_eq!(status(&posted)["containerStatuses"][0]["resources"]["limits"]["cpu"], "1000m", "what it has");
    assert_eq!(status(&posted)["containerStatuses"][0]["allocatedResources"]["cpu"], "2000m");
    roster.close().await;
    rig.sandboxes.lock().failing.clear();
    let roster = agent(&rig, "boot").await;
    let posted =
        until(&roster, "u", |p| !p.status_json.is_empty() && condition(p, "PodResizeInProgress").is_none()).await;
    assert_eq!(status(&posted)["containerStatuses"][0]["resources"]["limits"]["cpu"], "2000m");
    assert_eq!(rig.sandboxes.lock().updates.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_beyond_the_host_is_infeasible_until_something_else_is_wanted() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    roster.apply(1, intent(sized("u", 1000, "NotRequired"), 1)).await.unwrap();
    until(&roster, "u", runs).await;
    roster.apply(1, intent(sized("u", 5000, "NotRequired"), 2)).await.unwrap();
    let posted = until(&roster, "u", |p| condition(p, "PodResizePending").is_some()).await;
    let pending = condition(&posted, "PodResizePending").unwrap();
    assert_eq!(pending["reason"], "Infeasible");
    assert_eq!(pending["message"], "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000");
    assert!(reasons(&roster).contains(&"ResizeInfeasible".to_owned()));
    roster.apply(1, intent(sized("u", 2000, "NotRequired"), 3)).await.unwrap();
    until(&roster, "u", |p| p.requests.milli_cpu == 2000 && condition(p, "PodResizePending").is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_that_needs_a_restart_starts_the_container_again_with_what_it_is_given() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    roster.apply(1, intent(sized("u", 1000, "RestartContainer"), 1)).await.unwrap();
    until(&roster, "u", runs).await;
    roster.apply(1, intent(sized("u", 2000, "RestartContainer"), 2)).await.unwrap();
    let posted = until(&roster, "u", |p| runs(p) && p.containers["c"].number == 1).await;
    assert_eq!(status(&posted)["containerStatuses"][0]["restartCount"], 1);
    assert!(rig.sandboxes.lock().updates.iter().all(|line| line.starts_with("pod ")));
    let told = reasons(&roster);
    assert!(told.contains(&"Killing".to_owned()) && !told.contains(&"BackOff".to_owned()), "{told:?}");
}
