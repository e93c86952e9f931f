//! The warm pool looks after itself: nobody has to ask for a sandbox for it to be whole.

#![allow(clippy::unwrap_used, reason = "a test program: helpers fail as tests do")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use sandbox::contract::Sandboxes;
use support::{Host, shim, until};

/// The shims of the warm sandboxes, by slot; only living ones.
fn shims(host: &Host) -> BTreeMap<String, Pid> {
    let slots = fs::read_dir(host.config.run_dir.join("pool")).unwrap().flatten();
    let slots = slots.map(|entry| entry.file_name().into_string().unwrap());
    let shim = |slot: &String| host.processes_with(&format!("\"slot\":\"{slot}\"")).first().copied();
    slots.filter_map(|slot| shim(&slot).map(|pid| (slot, pid))).collect()
}

async fn warm(host: &Host, count: usize) {
    let deadline = tokio::time::Instant::now() + support::PATIENCE;
    while host.sandboxes().warm().await != count {
        assert!(tokio::time::Instant::now() < deadline, "{count} warm");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn privileged_a_warm_sandbox_whose_shim_dies_is_replaced_before_anybody_asks() {
    privileged!("privileged_a_warm_sandbox_whose_shim_dies_is_replaced_before_anybody_asks");
    let host = Host::with_pool(3).await;
    warm(&host, 3).await;
    for _ in 0..3 {
        let before = shims(&host);
        let (slot, killed) = before.first_key_value().unwrap();
        kill_process(*killed, Signal::KILL).unwrap();
        until("another is there instead", || {
            let now = shims(&host);
            now.len() == 3 && !now.values().any(|pid| pid == killed)
        })
        .await;
        let others = |shims: &BTreeMap<String, Pid>| -> Vec<Pid> {
            shims.iter().filter(|(name, _)| *name != slot).map(|(_, pid)| *pid).collect()
        };
        let now = shims(&host);
        assert!(others(&before).iter().all(|pid| now.values().any(|now| now == pid)), "the others stay: {now:?}");
    }
    warm(&host, 3).await;
    let id = host.sandbox("takes").await;
    assert_eq!(host.script(&id, "main", "echo ok").await.1, "ok");
    // One that is taken is no longer the pool's.
    warm(&host, 3).await;
    host.kill_shim(&id);
    host.sandboxes().destroy(&id).await.unwrap();
    host.close().await;
}

/// Puts a program in place of another, at once.
fn replace(program: &Path, with: impl AsRef<[u8]>) {
    let new = program.with_extension("new");
    fs::write(&new, with).unwrap();
    fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(new, program).unwrap();
}

#[tokio::test]
async fn privileged_a_pool_that_could_not_be_filled_is_filled_when_it_can() {
    privileged!("privileged_a_pool_that_could_not_be_filled_is_filled_when_it_can");
    let directory = tempfile::tempdir().unwrap();
    let (program, tried) = (directory.path().join("shim"), directory.path().join("tried"));
    let whole = fs::read(shim::program().unwrap()).unwrap();
    replace(&program, &whole);
    let host = Host::with_program(program.clone(), 1).await;
    warm(&host, 1).await;
    // No keeper can be started, and the only warm sandbox dies.
    replace(&program, format!("#!/bin/sh\necho x >>{}\nexit 1\n", tried.display()));
    kill_process(host.keeper_pid().unwrap(), Signal::KILL).unwrap();
    let (_, killed) = shims(&host).pop_first().unwrap();
    kill_process(killed, Signal::KILL).unwrap();
    warm(&host, 0).await;
    let tries = || fs::read_to_string(&tried).unwrap_or_default().lines().count();
    // Each attempt asks a few times.
    until("it is tried again and again", || tries() > 40).await;
    replace(&program, &whole);
    warm(&host, 1).await;
    until("a shim waits", || shims(&host).len() == 1).await;
    host.close().await;
}

#[tokio::test]
async fn privileged_a_drained_pool_stays_empty_until_a_sandbox_is_taken() {
    privileged!("privileged_a_drained_pool_stays_empty_until_a_sandbox_is_taken");
    let host = Host::with_pool(2).await;
    warm(&host, 2).await;
    host.sandboxes().drain_pool().await.unwrap();
    assert_eq!(host.sandboxes().warm().await, 0);
    // The ends of its connections are no reason to make new ones.
    let made = tokio::time::timeout(std::time::Duration::from_millis(300), warm(&host, 1)).await;
    assert!(made.is_err(), "a warm sandbox was made");
    host.sandbox("takes").await;
    warm(&host, 2).await;
    host.close().await;
}
