//! What the benchmarks' figures rest on.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

/// A pair of links, one end in another network namespace, whose only process is killed: when the fence has fallen, the end
/// here is gone with it.
const PAIRS: &str = "
    set -eu
    own=$(readlink /proc/self/ns/net)
    for number in 1 2 3 4 5 6 7 8 9 10; do
        unshare --net sleep 1000 &
        holder=$!
        until other=$(readlink /proc/$holder/ns/net) && [ \"$other\" != \"$own\" ]; do :; done
        ip link add here$number type veth peer name there netns $holder
        ip link show here$number >/dev/null
        kill -9 $holder
        wait $holder || true
    done 2>/dev/null
    unshare --user --map-root-user \"$1\" fence </dev/null
    ip -brief link show type veth";

#[test]
fn privileged_when_the_fence_has_fallen_namespaces_given_up_before_are_gone() {
    let whoami = Command::new("id").arg("-u").output().unwrap();
    if whoami.stdout != b"0\n" {
        eprintln!("SKIPPED privileged_when_the_fence_has_fallen_namespaces_given_up_before_are_gone: not root");
        return;
    }
    let done = Command::new("unshare")
        .args(["--net", "sh", "-c", PAIRS, "sh", env!("CARGO_BIN_EXE_nodeless-bench")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stdout), "held\ngone\n", "{done:?}");
    assert!(done.status.success(), "{done:?}");
}
