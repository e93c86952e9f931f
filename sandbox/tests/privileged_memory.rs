//! What a sandbox costs in memory besides its containers: its shim, and the stub that stands by in a warm one.
#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::path::PathBuf;

use rustix::process::Pid;
use sandbox::contract::Sandboxes;
use support::Host;

/// Most that a shim may have in KiB, the pages of its program not counted: those are all shims' together.
const SHIM: u64 = 192;
/// Most that a stub which stands by may have.
const STUB: u64 = 144;
/// For a program that was built for debugging: ten times the relocations.
const DEBUGGED: u64 = 1024;

/// Anonymous memory of a process in KiB; what a shim and its stub still have in common is shared out among them.
fn own(pid: Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero())).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss_Anon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn parent(pid: Pid) -> Pid {
    let text = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let number = text.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap();
    Pid::from_raw(number.parse().unwrap()).unwrap()
}

/// As it is shipped, unless the caller has said which one.
fn program() -> (PathBuf, bool) {
    match std::env::var_os("NODELESS_SHIM") {
        Some(path) => (path.into(), false),
        None => (support::shim::built_as("shim").unwrap(), true),
    }
}

#[tokio::test]
async fn privileged_shims_and_waiting_stubs_are_small() {
    privileged!("privileged_shims_and_waiting_stubs_are_small");
    let (program, shipped) = program();
    let host = Host::with_program(program, 2).await;
    let id = host.sandbox("small").await;
    let mut spec = host.shell("main", "");
    spec.args = vec!["sleep".into(), "1000".into()];
    host.sandboxes().start(&id, &spec).await.unwrap();
    host.filled().await;

    let used = host.shim_pid(&id);
    // Two warm shims, each with its stub and who lends that its memory, which is counted for both here; and the used one, once
    // who lent its stub's memory is gone.
    let mut all = Vec::new();
    support::until("there are seven", || {
        all = host.processes_with("nodeless-shim\0shim");
        all.len() == 7
    })
    .await;
    let (most, of_stub) = if shipped { (SHIM, STUB) } else { (DEBUGGED, DEBUGGED) };
    for &pid in &all {
        let is_stub = all.contains(&parent(pid));
        let kib = own(pid);
        eprintln!("{pid:?}: {kib} KiB{}", if is_stub { ", a stub" } else { "" });
        assert!(kib <= if is_stub { of_stub } else { most }, "{pid:?}: {kib} KiB");
    }

    // Output passes through bounded room: what a flood has used is not much more, and stays.
    let flood = host.shell("flood", "busybox yes | head -c 200000");
    assert_eq!(host.run(&id, &flood).await.code, 0);
    let after = own(used);
    eprintln!("KiB after 4 MiB of log: {after}");
    assert!(after <= most + 96, "{after} KiB");
    host.close().await;
}
