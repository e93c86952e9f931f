//! Devices: given once, kept over a restart of the agent, given again when their pod is gone.

use super::*;
use crate::devices::Policy;

const POLICY: &str = "[\"a.com/own\"]\ndevices = [\"/dev/full\", \"/dev/zero\"]\npath = \"/dev/own/\"\n";

async fn agent_with_devices(rig: &Rig) -> Arc<Roster> {
    let file = rig.dir.path().join("devices.toml");
    std::fs::write(&file, POLICY).unwrap();
    let devices = Policy::load(&file).unwrap();
    let room = Room { scalars: devices.capacity(), ..room() };
    let world = rig.world_with("boot", |world| world.host.trust.devices = devices);
    let epoch = world.ledger.epoch().unwrap();
    let survivors = crate::recover::run(&world).await.unwrap();
    let roster = Roster::new(world, room, epoch);
    roster.recovered(survivors).await;
    Arc::new(roster)
}

fn asking(uid: &str, units: &str) -> serde_json::Value {
    let mut json = pod(uid, "Always", &["run"]);
    json["spec"]["containers"][0]["resources"] = serde_json::json!({"limits": {"a.com/own": units}});
    json
}

fn paths(rig: &Rig, uid: &str) -> Vec<String> {
    let state = rig.sandboxes.lock();
    let devices = &state.sandboxes[&format!("{uid}-0")].running["c"].security.devices;
    devices.iter().map(|device| device.path.display().to_string()).collect()
}

async fn refused(roster: &Roster, uid: &str) -> String {
    roster.apply(1, intent(asking(uid, "1"), 1)).await.unwrap();
    let done = until(roster, uid, |p| p.terminated).await;
    assert_eq!(status(&done)["reason"], "UnexpectedAdmissionError");
    status(&done)["message"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_one_pods_until_its_sandbox_is_gone_whatever_happens_to_the_agent() {
    let rig = Rig::new();
    let roster = agent_with_devices(&rig).await;
    for (uid, path) in [("p", "/dev/own/full"), ("q", "/dev/own/zero")] {
        roster.apply(1, intent(asking(uid, "1"), 1)).await.unwrap();
        until(&roster, uid, runs).await;
        assert_eq!(paths(&rig, uid), [path]);
    }
    let words = "Pod was rejected: Allocate failed due to requested number of devices unavailable for a.com/own. \
        Requested: 1, Available: 0, which is unexpected";
    assert_eq!(refused(&roster, "r").await, words);
    let record = std::fs::read_to_string(rig.state_dir().join("state/ledger/p.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["assigned"]["devices"]["c"]["a.com/own"], serde_json::json!(["/dev/full"]));
    roster.close().await;

    let roster = agent_with_devices(&rig).await;
    assert_eq!(refused(&roster, "s").await, words, "what was given is known before the first new pod is looked at");
    assert_eq!(rig.sandboxes.count("prepare"), 2, "nothing was touched for those that were refused");
    // One whose sandbox is still being taken down keeps it.
    rig.sandboxes.lock().failing.insert("destroy", 2);
    roster.apply(1, deleted(asking("p", "1"), 2, 0)).await.unwrap();
    assert_eq!(refused(&roster, "t").await, words);
    until(&roster, "p", |p| p.terminated).await;
    roster.apply(1, intent(asking("u", "1"), 1)).await.unwrap();
    until(&roster, "u", runs).await;
    assert_eq!(paths(&rig, "u"), ["/dev/own/full"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_is_not_offered_is_refused_by_its_field() {
    let rig = Rig::new();
    let roster = agent(&rig, "boot").await;
    roster.apply(1, intent(asking("p", "1"), 1)).await.unwrap();
    let done = until(&roster, "p", |p| p.terminated).await;
    assert_eq!(status(&done)["reason"], "UnsupportedPodField");
    assert!(status(&done)["message"].as_str().unwrap().ends_with("spec.containers[c].resources.limits[a.com/own]"));
}
