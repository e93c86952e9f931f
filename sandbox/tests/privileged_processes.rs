//! Who sees whom, who buries whom, and how ends are told.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use sandbox::contract::{Sandboxes, Stdio};
use sandbox::spec::{ContainerSpec, SandboxId};
use support::{Host, exec_spec, until};

/// Zombies among this host's processes, as `PID (name) PARENT`.
fn zombies(host: &Host) -> Vec<String> {
    let mut found = Vec::new();
    for pid in host.processes_with("") {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) else { continue };
        let (name, rest) = stat.rsplit_once(") ").unwrap();
        if rest.starts_with('Z') {
            found.push(format!("{name}) {}", rest.split(' ').nth(1).unwrap()));
        }
    }
    found
}

/// A double fork whose grandchild ends after its parent.
const ORPHAN: &str = "(sleep 0.3 & ) ; exit 0";

async fn shared(host: &Host, name: &str) -> SandboxId {
    host.sandbox_with(name, |spec| spec.share_process_namespace = true).await
}

#[tokio::test]
async fn privileged_a_container_with_a_target_sees_its_processes_and_no_others() {
    privileged!("privileged_a_container_with_a_target_sees_its_processes_and_no_others");
    let host = Host::with_pool(1).await;
    let id = host.sandbox("target").await;
    for (name, time) in [("web", "1001"), ("other", "1002")] {
        let sleep = ContainerSpec { args: vec!["sleep".into(), time.into()], ..host.shell(name, "") };
        host.sandboxes().start(&id, &sleep).await.unwrap();
    }
    let look = "cat /proc/1/cmdline; ps -o args; touch /mine; ls / | grep mine; ls /proc/1/root | grep -c mine; \
                readlink /proc/1/ns/mnt; readlink /proc/self/ns/mnt";
    let debug = ContainerSpec { target: Some("web".into()), ..host.shell("debug", look) };
    host.run(&id, &debug).await;
    let seen = host.log(&id, "debug", 0);
    assert!(seen.starts_with("sleep\x001001\0") && !seen.contains("1002"), "{seen}");
    // Its root is its own; its target's is where it is looked for.
    let lines: Vec<&str> = seen.lines().collect();
    let [.., mine, of_target, theirs, own] = lines[..] else { panic!("{seen}") };
    assert!(mine == "mine" && of_target == "0" && theirs.starts_with("mnt:") && theirs != own, "{seen}");
    // It may signal what it sees.
    let mut victim = host.sandboxes().exec(&id, &exec_spec("web", &["sleep", "1003"]), Stdio::default()).await.unwrap();
    let kill = "ps -o pid,args | while read pid args; do [ \"$args\" = 'sleep 1003' ] && kill -9 $pid; done";
    let killer = ContainerSpec { target: Some("web".into()), ..host.shell("killer", kill) };
    host.run(&id, &killer).await;
    assert_eq!(victim.wait().await.unwrap().signal, Some(9), "{}", host.log(&id, "killer", 0));
    assert!(host.sandboxes().stats(&id).await.unwrap().containers.contains_key("web"));
    host.close().await;
}

#[tokio::test]
async fn privileged_orphans_are_buried() {
    privileged!("privileged_orphans_are_buried");
    let host = Host::new().await;
    let alone = host.sandbox("alone").await;
    let together = shared(&host, "together").await;
    for id in [&alone, &together] {
        // Its first process waits for whatever ends.
        let mut init = host.shell("main", "while :; do sleep 1000 & wait; done");
        init.env.push(("SHELL_IS_INIT".into(), "1".into()));
        host.sandboxes().start(id, &init).await.unwrap();
        for _ in 0..10 {
            let mut process =
                host.sandboxes().exec(id, &exec_spec("main", &["sh", "-c", ORPHAN]), Stdio::default()).await.unwrap();
            assert_eq!(process.wait().await.unwrap().code, 0);
        }
        assert_eq!(host.script(id, "job", ORPHAN).await.0.code, 0);
    }
    // In a shared namespace the pod's first process buries all, whatever the containers' own do.
    let deaf = ContainerSpec { args: vec!["sleep".into(), "1004".into()], ..host.shell("deaf", "") };
    host.sandboxes().start(&together, &deaf).await.unwrap();
    host.exec(&together, "deaf", &["sh", "-c", ORPHAN]).await;
    until("nobody is left to bury", || zombies(&host).is_empty() && host.processes_with("sleep\x000.3").is_empty())
        .await;
    // Those that a container's own first process leaves unburied are gone with it.
    host.sandboxes().start(&alone, &deaf).await.unwrap();
    host.exec(&alone, "deaf", &["sh", "-c", ORPHAN]).await;
    until("an orphan waits", || !zombies(&host).is_empty()).await;
    host.sandboxes().signal(&alone, "deaf", 9, false).await.unwrap();
    until("it is gone with its container", || zombies(&host).is_empty()).await;
    host.close().await;
}

#[tokio::test]
async fn privileged_an_end_by_signal_is_told_as_that_signal() {
    privileged!("privileged_an_end_by_signal_is_told_as_that_signal");
    let host = Host::new().await;
    // Not the first of a PID namespace, which the kernel protects from itself.
    let id = shared(&host, "signals").await;
    host.sandboxes().start(&id, &host.shell("main", "exec sleep 1000")).await.unwrap();
    for (name, signal) in [("term", 15), ("segv", 11), ("abrt", 6), ("kill", 9), ("realtime", 40)] {
        let (exit, _) = host.script(&id, name, &format!("kill -{signal} $$; sleep 10")).await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (128 + signal, Some(signal), false), "{name}");
        let (exit, ..) = host.exec(&id, "main", &["sh", "-c", &format!("kill -{signal} $$; sleep 10")]).await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (128 + signal, Some(signal), false), "{name}");
    }
    assert!(host.sandboxes().stats(&id).await.unwrap().containers.contains_key("main"));
    host.close().await;
}
