//! CPUs of a container's own: given once, kept over a restart of the agent; the others follow what is left.

use super::*;
use crate::cpus::{Cpus, parse};

async fn agent_with_cpus(rig: &Rig) -> Arc<Roster> {
    let root = rig.dir.path().join("cpu");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("online"), "0-3\n").unwrap();
    let cpus = Cpus::read(&root, parse("0").unwrap()).unwrap();
    let world = rig.world_with("boot", |world| world.host.cpus = Some(cpus));
    let epoch = world.ledger.epoch().unwrap();
    let survivors = crate::recover::run(&world).await.unwrap();
    let roster = Roster::new(world, room(), epoch);
    roster.recovered(survivors).await;
    Arc::new(roster)
}

fn asking(uid: &str, cpu: &str) -> serde_json::Value {
    let mut json = pod(uid, "Always", &["run"]);
    json["spec"]["containers"][0]["resources"] = serde_json::json!({"limits": {"cpu": cpu, "memory": "1Mi"}});
    json
}

/// The container's CPUs, as it was started or as it was last told.
fn on(rig: &Rig, uid: &str) -> String {
    let state = rig.sandboxes.lock();
    let told = state.cpusets.get(&format!("{uid}-0/c")).cloned();
    told.or_else(|| state.sandboxes[&format!("{uid}-0")].running["c"].resources.cpuset.clone()).unwrap_or_default()
}

async fn come_to_be_on(rig: &Rig, uid: &str, cpus: &str) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while on(rig, uid) != cpus {
        assert!(Instant::now() < deadline, "{uid} is on {}, and not on {cpus}", on(rig, uid));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_cpus_are_one_containers_and_all_others_run_on_the_rest_whatever_happens_to_the_agent() {
    let rig = Rig::new();
    let roster = agent_with_cpus(&rig).await;
    for (uid, cpu) in [("shared", "500m"), ("own", "2")] {
        roster.apply(1, intent(asking(uid, cpu), 1)).await.unwrap();
        until(&roster, uid, runs).await;
    }
    assert_eq!(on(&rig, "own"), "1-2");
    come_to_be_on(&rig, "shared", "0,3").await;
    {
        let state = rig.sandboxes.lock();
        let own = &state.sandboxes["own-0"];
        let quotas = (own.running["c"].resources.cpu_quota_us, own.spec.as_ref().unwrap().resources.cpu_quota_us);
        assert_eq!(quotas, (None, None), "nobody waits on CPUs of its own");
        let shared = &state.sandboxes["shared-0"].running["c"].resources;
        assert_eq!(shared.cpu_quota_us, Some(50_000));
    }
    roster.apply(1, intent(asking("more", "2"), 1)).await.unwrap();
    let done = until(&roster, "more", |p| p.terminated).await;
    assert_eq!(status(&done)["reason"], "UnexpectedAdmissionError");
    assert!(status(&done)["message"].as_str().unwrap().contains("requested=2, available=1"));
    let record = std::fs::read_to_string(rig.state_dir().join("state/ledger/own.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["assigned"]["cpus"]["c"], serde_json::json!([1, 2]));
    roster.close().await;

    // An earlier agent may have left it elsewhere.
    rig.sandboxes.lock().cpusets.insert("shared-0/c".to_owned(), "0-3".to_owned());
    let roster = agent_with_cpus(&rig).await;
    come_to_be_on(&rig, "shared", "0,3").await;
    roster.apply(1, intent(asking("last", "1"), 1)).await.unwrap();
    until(&roster, "last", runs).await;
    assert_eq!(on(&rig, "last"), "3");
    come_to_be_on(&rig, "shared", "0").await;
    roster.apply(1, deleted(asking("own", "2"), 2, 0)).await.unwrap();
    until(&roster, "own", |p| p.terminated).await;
    come_to_be_on(&rig, "shared", "0-2").await;
    assert_eq!(on(&rig, "last"), "3", "those that have their own are left alone");
}
