//! Who may die: the agent, the keeper, a shim; and that nothing is left.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use sandbox::contract::{SandboxError, SandboxEvent, Sandboxes, Stdio};
use support::{Host, exec_spec, exit_of, until};

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn privileged_a_killed_shim_takes_its_containers_along_and_is_told_as_lost() {
    privileged!("privileged_a_killed_shim_takes_its_containers_along_and_is_told_as_lost");
    let host = Host::new().await;
    let id = host.sandbox("lost").await;
    let mut events = host.sandboxes().events(&id).await.unwrap();
    host.script(&id, "done", "exit 4").await;
    let started = host.sandboxes().start(&id, &host.shell("main", "exec sleep 1000")).await.unwrap();
    host.kill_shim(&id);
    let mut told = Vec::new();
    while let Some(event) = events.recv().await {
        told.push(event);
    }
    assert!(matches!(told.last(), Some(SandboxEvent::Lost { .. })), "{told:?}");
    let gone = || !std::path::Path::new(&format!("/proc/{}", started.pid)).exists();
    until("the container died with its shim", gone).await;
    // Asked later, by a new agent: the dead shim's record, to the end.
    let mut again = host.sandboxes().events(&id).await.unwrap();
    assert_eq!(exit_of(&mut again, "done", 0).await.code, 4);
    let listed = host.sandboxes().list().await.unwrap();
    assert_eq!((listed.len(), listed[0].alive), (1, false));
    host.close().await;
}

#[tokio::test]
async fn privileged_an_agents_restart_loses_nothing() {
    privileged!("privileged_an_agents_restart_loses_nothing");
    let mut host = Host::with_pool(1).await;
    let id = host.sandbox("survivor").await;
    let started = host.sandboxes().start(&id, &host.shell("main", "exec sleep 1000")).await.unwrap();
    host.sandboxes().start(&id, &host.shell("brief", "sleep 0.2; echo late; exit 9")).await.unwrap();
    host.reopen().await;
    let listed = host.sandboxes().list().await.unwrap();
    assert_eq!((listed.len(), listed[0].alive), (1, true));
    assert_eq!(listed[0].labels["pod.name"], "survivor");
    let mut events = host.sandboxes().events(&id).await.unwrap();
    match events.recv().await.unwrap() {
        SandboxEvent::Started { container, started: told, .. } => {
            assert_eq!((container.as_str(), told), ("main", started))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(exit_of(&mut events, "brief", 0).await.code, 9);
    assert_eq!(host.log(&id, "brief", 0), "late");
    let (exit, ..) = host.exec(&id, "main", &["true"]).await;
    assert_eq!(exit.code, 0);
    host.close().await;
}

#[tokio::test]
async fn privileged_an_agent_learns_which_layers_are_mounted_for_the_one_before_it() {
    privileged!("privileged_an_agent_learns_which_layers_are_mounted_for_the_one_before_it");
    let mut host = Host::with_pool(1).await;
    assert!(host.sandboxes().mounted_layers().await.unwrap().is_empty());
    let id = host.sandbox("survivor").await;
    host.sandboxes().start(&id, &host.shell("main", "exec sleep 1000")).await.unwrap();
    host.reopen().await;
    let mounted = host.sandboxes().mounted_layers().await.unwrap();
    assert_eq!(mounted, ["sha256:busybox"]);
    host.sandboxes().release_layers(&mounted).await.unwrap();
    assert!(host.sandboxes().mounted_layers().await.unwrap().is_empty());
    let (exit, ..) = host.exec(&id, "main", &["true"]).await;
    assert_eq!(exit.code, 0, "the container has a clone of its own");
    host.close().await;
}

#[tokio::test]
async fn privileged_a_killed_keeper_is_started_again_and_nobody_notices() {
    privileged!("privileged_a_killed_keeper_is_started_again_and_nobody_notices");
    let host = Host::new().await;
    let id = host.sandbox("orphan").await;
    host.sandboxes().start(&id, &host.shell("main", "exec sleep 1000")).await.unwrap();
    let first = host.keeper_pid().unwrap();
    kill(first.as_raw_nonzero().get());
    let (exit, log) = host.script(&id, "second", "echo still here").await;
    assert_eq!((exit.code, log.as_str()), (0, "still here"));
    let other = host.sandbox("other").await;
    assert_eq!(host.script(&other, "main", "echo new").await.1, "new");
    let (exit, ..) = host.exec(&id, "main", &["cat", "/etc/passwd"]).await;
    assert_eq!(exit.code, 0);
    assert_ne!(host.keeper_pid().unwrap(), first);
    host.close().await;
}

#[tokio::test]
async fn privileged_destroy_may_be_repeated_and_ends_the_events() {
    privileged!("privileged_destroy_may_be_repeated_and_ends_the_events");
    let host = Host::new().await;
    let id = host.sandbox("destroyed").await;
    let mut events = host.sandboxes().events(&id).await.unwrap();
    let mut stubborn = host.shell("main", "trap '' TERM; while :; do sleep 1; done");
    stubborn.resources.pids_limit = Some(50);
    let started = host.sandboxes().start(&id, &stubborn).await.unwrap();
    host.sandboxes().exec(&id, &exec_spec("main", &["sleep", "1000"]), Stdio::default()).await.unwrap();
    host.sandboxes().destroy(&id).await.unwrap();
    host.sandboxes().destroy(&id).await.unwrap();
    let mut told = Vec::new();
    while let Some(event) = events.recv().await {
        told.push(event);
    }
    assert!(!told.iter().any(|event| matches!(event, SandboxEvent::Lost { .. })), "{told:?}");
    assert!(!std::path::Path::new(&format!("/proc/{}", started.pid)).exists());
    assert!(matches!(host.sandboxes().events(&id).await, Err(SandboxError::NotFound { .. })));
    assert!(matches!(host.sandboxes().stats(&id).await, Err(SandboxError::NotFound { .. })));
    host.close().await;
}

#[tokio::test]
async fn privileged_many_sandboxes_come_and_go_without_a_trace() {
    privileged!("privileged_many_sandboxes_come_and_go_without_a_trace");
    let host = Host::with_pool(2).await;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // Of whatever names this host's directory, or is of a kind that nobody else here mounts.
    let own = host.path().display().to_string();
    let mounts = || {
        let all = std::fs::read_to_string("/proc/self/mounts").unwrap();
        all.lines().filter(|line| line.contains(&own) || line.contains(" overlay ") || line.contains(" erofs ")).count()
    };
    let cycle = async |number: u32| {
        let id = host.sandbox(&format!("churn-{number}")).await;
        let (exit, log) = host.script(&id, "main", "echo hi; exit 1").await;
        assert_eq!((exit.code, log.as_str()), (1, "hi"));
        host.sandboxes().start(&id, &host.shell("long", "exec sleep 1000")).await.unwrap();
        assert_eq!(host.exec(&id, "long", &["true"]).await.0.code, 0);
        host.sandboxes().destroy(&id).await.unwrap();
    };
    cycle(0).await;
    let (fds_before, mounts_before) = (descriptors(), mounts());
    for number in 1..20 {
        cycle(number).await;
    }
    until("descriptors are back", || descriptors() <= fds_before + 4).await;
    assert_eq!(mounts(), mounts_before);
    host.close().await;
}
