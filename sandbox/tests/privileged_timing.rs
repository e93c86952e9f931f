//! How long a launch takes, printed (`--nocapture`); what is asserted is generous, for the machine is shared.

#![allow(clippy::unwrap_used, reason = "helpers fail as tests do")]

mod support;

use sandbox::contract::{SandboxEvent, Sandboxes};
use sandbox::sys::clock::boottime_ns;
use support::Host;

const LAUNCHES: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_launch_from_the_warm_pool_is_timed() {
    privileged!("privileged_a_launch_from_the_warm_pool_is_timed");
    // As an agent's task, on a worker.
    tokio::spawn(launches()).await.unwrap();
}

async fn launches() {
    let host = Host::with_pool(4).await;
    let (mut prepared, mut started, mut written, mut destroyed) = (vec![], vec![], vec![], vec![]);
    for number in 0..LAUNCHES {
        host.filled().await;
        let mut spec = host.shell("main", "");
        spec.args = vec!["/bin/echo".into(), "x".into()];
        let begin = boottime_ns();
        let id = host.sandbox(&format!("t-{number}")).await;
        let ready = boottime_ns();
        let mut events = host.sandboxes().events(&id).await.unwrap();
        let told = host.sandboxes().start(&id, &spec).await.unwrap();
        let first = loop {
            if let SandboxEvent::FirstByte { boottime_ns, .. } = events.recv().await.unwrap() {
                break boottime_ns;
            }
        };
        support::exit_of(&mut events, "main", 0).await;
        let over = boottime_ns();
        host.sandboxes().destroy(&id).await.unwrap();
        destroyed.push(boottime_ns() - over);
        prepared.push(ready - begin);
        started.push(told.boottime_ns - ready);
        written.push(first - begin);
    }
    let show = |name: &str, times: &mut Vec<u64>| {
        times.sort_unstable();
        let at = |share: usize| times[times.len() * share / 100] / 1000;
        eprintln!("{name}: p50 {} us, p95 {} us", at(50), at(95));
        at(50)
    };
    show("prepare and configure", &mut prepared);
    show("start to exec", &mut started);
    let p50 = show("prepare to first byte", &mut written);
    show("destroy", &mut destroyed);
    // A net for what waits for something: an emulated guest takes some 150 ms, a crowded machine more.
    assert!(p50 < 5_000_000, "{p50} us");
    host.close().await;
}
