//! Whatever comes and goes, nothing of it stays: not in the agent, the keeper, the kernel or on disk.
//!
//! `NODELESS_CHURN_CYCLES=10000` is the full number; `NODELESS_CHURN_PARALLEL` is for machines that are slow themselves. A program of its own, for it counts its own descriptors and threads.
#![allow(clippy::unwrap_used, reason = "a test")]

mod churn;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use churn::census::{Census, kernel_memory, reclaim};
use churn::place::Place;
use churn::rounds::{is_crowded, number};
use churn::words::SetUp;
use sandbox::contract::Sandboxes;
use support::Host;
use tokio::task::JoinSet;

/// Cycles of a run that is not told otherwise, and how many go at a time.
const SOME: u32 = 300;
const SOME_PARALLEL: u32 = 50;
/// How long the kernel may take to be done with what has gone.
const SETTLING: Duration = Duration::from_secs(60);
/// How long it may take by itself, before its caches are emptied, and then again.
const BY_ITSELF: Duration = Duration::from_secs(5);
/// Cycles from which on kernel memory is judged as if nothing else went on: its caches are emptied before, too.
const MANY: u32 = 1000;
/// Kernel memory that a cycle may cost for good: less than anything that a sandbox has.
const CRUMBS: u64 = 512;
/// Kernel memory that comes and goes with what else the machine does.
const OTHERS: u64 = 16 << 20;

/// Sandboxes made, used and destroyed, `parallel` at a time, until `next` has come to `end`.
async fn cycles(host: &Arc<Host>, next: &Arc<AtomicU32>, parallel: u32, end: u32) {
    let mut going = JoinSet::new();
    for _ in 0..parallel {
        let (host, next) = (Arc::clone(host), Arc::clone(next));
        going.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return;
                }
                let id = host.sandbox(&format!("cycle-{number}")).await;
                let mut container = host.shell("main", "exec sleep 100000");
                container.rootfs.writable = None;
                host.sandboxes().start(&id, &container).await.unwrap();
                assert_eq!(host.exec(&id, "main", &["true"]).await.0.code, 0);
                host.sandboxes().destroy(&id).await.unwrap();
                std::fs::remove_dir_all(host.path().join("logs").join(&id.0)).unwrap();
            }
        });
    }
    while let Some(ended) = going.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_thousands_of_sandboxes_come_and_go_and_nothing_stays() {
    privileged!("privileged_thousands_of_sandboxes_come_and_go_and_nothing_stays");
    let wanted = number("NODELESS_CHURN_CYCLES").map_or(SOME, |cycles| cycles as u32);
    let parallel = number("NODELESS_CHURN_PARALLEL").map_or(SOME_PARALLEL, |parallel| parallel as u32);
    let host = Arc::new(Host::with_pool(4).await);
    let set_up = SetUp {
        run_dir: host.config.run_dir.clone(),
        program: host.config.shim_program.clone(),
        cgroup_parent: host.config.cgroup_parent.clone(),
        layer_dirs: host.config.layer_dirs.clone(),
        pool_size: host.config.pool_size,
        ahead_dir: host.config.ahead_dir.clone(),
    };
    let next = Arc::new(AtomicU32::new(0));
    // What is made once and kept: the keeper, its layer, threads, buffers.
    cycles(&host, &next, parallel, parallel * 2).await;
    let take = async || {
        host.sandboxes().drain_pool().await.unwrap();
        let keeper = host.keeper_pid().unwrap().as_raw_nonzero().get();
        Census::take(keeper, &[&set_up.run_dir, &host.path().join("logs")])
    };
    // Idle threads end after ten seconds; then the count is that of a backend at rest.
    tokio::time::sleep(Duration::from_secs(11)).await;
    if wanted >= MANY {
        reclaim();
    }
    let (before, memory_before) = (take().await, kernel_memory());

    let began = Instant::now();
    next.store(parallel * 2, Ordering::Relaxed);
    cycles(&host, &next, parallel, parallel * 2 + wanted).await;
    let took = began.elapsed().as_secs_f64();
    let deadline = Instant::now() + SETTLING;
    let mut emptied = Instant::now();
    // One of anything that stays of each cycle is more, or of every tenth of many; others on the machine are less.
    let slack = u64::from(if wanted < MANY || is_crowded() { wanted * 3 / 4 } else { wanted / 10 + 200 });
    loop {
        let after = take().await;
        let memory = kernel_memory().saturating_sub(memory_before);
        let mut left = after.more_than(&before, slack);
        left.extend(Place::look(&set_up).faults());
        // On a run of few cycles, or where others are at work, their memory hides ours: then it is only printed.
        if memory > u64::from(wanted) * CRUMBS + OTHERS && !is_crowded() {
            left.push(format!("{memory} bytes of kernel memory"));
        }
        if left.is_empty() {
            eprintln!(
                "{wanted} cycles, {parallel} at a time: {took:.1} s, {:.0} a second; kernel memory {:+.1} MiB; {:?}, were {:?}",
                f64::from(wanted) / took,
                memory as f64 / f64::from(1 << 20),
                after.machine,
                before.machine,
            );
            break;
        }
        if emptied.elapsed() > BY_ITSELF {
            reclaim();
            emptied = Instant::now();
        }
        assert!(Instant::now() < deadline, "after {wanted} cycles there is more than before: {left:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Arc::into_inner(host).unwrap().close().await;
}
