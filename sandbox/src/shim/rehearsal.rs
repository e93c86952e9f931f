//! A start that means nothing, read and written once before a real one is asked for.
//!
//! So the memory that reading one needs is the process's own by then: each page that a stub shares with its shim, and a shim
//! with nobody yet, costs a fault when it is first written to, and these faults would be a part of a container's start.

use std::hint::black_box;

use super::stub::standing::{Heard, Telling};
use crate::protocol::Call;
use crate::protocol::asking::Asking;
use crate::protocol::shim::{Request, StartFds};
use crate::spec::{ContainerSpec, Layer, Resources, Rootfs, Security, User};

/// What a shim does with a request.
pub(super) fn of_request() {
    let body = Request::Start { spec: spec(), fds: StartFds::default() };
    let Ok(text) = serde_json::to_vec(&Call { id: 0, body }) else { return };
    drop(black_box(Asking::of(&text).and_then(|asking| asking.call())));
}

/// What a stub does with its order.
pub(super) fn of_order() {
    let start = Request::Start { spec: spec(), fds: StartFds::default() };
    let told = serde_json::value::to_raw_value(&start).and_then(|start| serde_json::to_vec(&Telling::Asked(&start)));
    drop(black_box(told.and_then(|text| serde_json::from_slice::<Heard>(&text))));
}

/// About as long as usual ones are.
fn spec() -> ContainerSpec {
    let text = |length| "-".repeat(length);
    ContainerSpec {
        name: text(16),
        attempt: 0,
        args: vec![text(16); 4],
        env: vec![(text(16), text(32)); 16],
        cwd: text(16),
        user: User::default(),
        rootfs: Rootfs {
            layers: vec![Layer { id: text(71), path: text(128).into() }; 4],
            writable: Some(text(64).into()),
            writable_limit: None,
        },
        readonly_rootfs: false,
        mounts: Vec::new(),
        resources: Resources::default(),
        security: Security::default(),
        stop_signal: 0,
        stdin: false,
        stdin_once: false,
        tty: false,
        target: None,
    }
}
