//! A shim that does not answer, as while its disk is stalled: its own pod waits, nobody else.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

mod support;

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sandbox::contract::{SandboxEvent, Sandboxes};
use sandbox::spec::SandboxId;
use support::Host;

/// Holds a process still until it is dropped.
struct Held(Pid);

impl Held {
    fn hold(pid: Pid) -> Self {
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

async fn running(host: &Host, name: &str) -> SandboxId {
    let id = host.sandbox(name).await;
    support::start(host, &id, &host.shell("main", "echo up; exec sleep 1000")).await;
    id
}

#[tokio::test]
async fn privileged_a_shim_that_does_not_answer_holds_up_nobody_else_and_is_not_taken_for_dead() {
    privileged!("privileged_a_shim_that_does_not_answer_holds_up_nobody_else_and_is_not_taken_for_dead");
    let mut host = Host::with_pool(1).await;
    let (stuck, other) = (running(&host, "stuck").await, running(&host, "other").await);
    let held = Held::hold(host.shim_pid(&stuck));
    let stats = host.sandboxes().stats(&stuck).await.unwrap();
    assert!(stats.pod.memory_bytes > 0 && stats.containers.is_empty(), "{stats:?}");
    assert_eq!(host.exec(&other, "main", &["echo", "here"]).await.1, "here\n");
    // The next agent finds both, and waits for the one no longer than it must.
    let began = Instant::now();
    host.reopen().await;
    let listed = host.sandboxes().list().await.unwrap();
    let alive: Vec<_> = listed.iter().map(|listed| (listed.id.0.as_str(), listed.alive)).collect();
    assert_eq!(alive, [("other", true), ("stuck", true)]);
    assert!(began.elapsed() >= Duration::from_secs(1), "it was not asked");
    assert_eq!(host.exec(&other, "main", &["echo", "here"]).await.1, "here\n");
    let third = running(&host, "third").await;
    // Asked again and again, it has no room for those who ask: that is not its death either.
    let mut events = host.sandboxes().events(&stuck).await.unwrap();
    for _ in 0..200 {
        let asked = host.sandboxes().signal(&stuck, "main", 0, false);
        let _ = tokio::time::timeout(Duration::from_millis(1), asked).await;
    }
    let mut late = host.sandboxes().events(&stuck).await.unwrap();
    drop(held);
    for events in [&mut events, &mut late] {
        let first = support::in_time("its events come", events.recv()).await.unwrap();
        assert!(matches!(first, SandboxEvent::Started { .. }), "{first:?}");
    }
    assert_eq!(host.exec(&stuck, "main", &["echo", "again"]).await.1, "again\n");
    // One that never answers again goes when it is told to.
    let held = Held::hold(host.shim_pid(&third));
    host.sandboxes().destroy(&third).await.unwrap();
    drop(held);
    host.close().await;
}

#[tokio::test]
async fn privileged_a_warm_shim_that_does_not_answer_is_replaced_by_the_next_agent() {
    privileged!("privileged_a_warm_shim_that_does_not_answer_is_replaced_by_the_next_agent");
    let mut host = Host::with_pool(1).await;
    let warm = async |host: &Host| {
        let deadline = Instant::now() + support::PATIENCE;
        while host.sandboxes().warm().await != 1 {
            assert!(Instant::now() < deadline, "one is warm");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    warm(&host).await;
    let slot = std::fs::read_dir(host.config.run_dir.join("pool")).unwrap().next().unwrap().unwrap().file_name();
    let shim = host.processes_with(&format!("\"slot\":\"{}\"", slot.to_str().unwrap()))[0];
    let held = Held::hold(shim);
    host.reopen().await;
    warm(&host).await;
    let id = running(&host, "takes").await;
    assert_eq!(host.exec(&id, "main", &["echo", "ok"]).await.1, "ok\n");
    drop(held);
    host.close().await;
}
