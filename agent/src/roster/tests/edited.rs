//! Pods whose images are edited while they run.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_image_is_kept_and_named_and_a_debugger_comes_all_the_same() {
    let rig = Rig::new();
    let first = agent(&rig, "boot").await;
    let mut edited = pod("u", "Always", &["run"]);
    first.apply(1, intent(edited.clone(), 1)).await.unwrap();
    until(&first, "u", runs).await;
    edited["spec"]["containers"][0]["image"] = "image:2".into();
    first.apply(1, intent(edited.clone(), 2)).await.unwrap();
    let told = |roster: &Roster| reasons(roster).iter().filter(|reason| *reason == "UnsupportedPodChange").count();
    assert_eq!(told(&first), 1);
    edited["spec"]["ephemeralContainers"] = [debugger("d", &["run"])].into_iter().collect();
    first.apply(1, intent(edited.clone(), 3)).await.unwrap();
    let posted = until(&first, "u", |p| !debugger_state(p, 0)["running"].is_null()).await;
    assert!(runs(&posted) && posted.containers["c"].number == 0, "what runs does not notice");
    assert_eq!(told(&first), 1, "it is said once");
    // What starts again, starts from what it had, also for the next agent.
    first.close().await;
    drop(first);
    let second = agent(&rig, "boot").await;
    second.apply(2, intent(edited.clone(), 3)).await.unwrap();
    let sandbox = until(&second, "u", runs).await.sandbox.unwrap().0;
    rig.sandboxes.end(&sandbox, "c", 1, false);
    until(&second, "u", |p| runs(p) && p.containers["c"].number == 1).await;
    let record = second.world().ledger.load().unwrap();
    let pod = &record.pods.iter().find(|pod| pod.uid == "u").unwrap().pod;
    assert_eq!(pod["spec"]["containers"][0]["image"], "image:1");
}
