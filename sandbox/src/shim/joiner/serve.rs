//! What runs beside a container.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::super::stub::Shared;
use super::super::stub::join::{Beside, Executed, Failure, Further};
use crate::cgroup::Group;
use crate::protocol::{Connection, Refusal};
use crate::spec::ContainerSpec;
use crate::sys::clone::{Child, Stack};
use crate::sys::process;

/// What it says: first whether it is ready, then of each child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Joined {
    /// Children may be asked for.
    Ready,
    /// The child's number, as the shim knows it; it has executed its program. With the child's descriptor, and then the master
    /// side of its terminal.
    Executed(i32),
    /// It has not, and has ended: its number and its descriptor, if there was one.
    Refused(Option<i32>, Refusal),
    /// None could be forked; or, at first, no child may be asked for.
    Failed(String),
}

/// Runs in the child, until the shim closes the channel or ends it.
pub(super) fn serve(
    shared: &Shared<'_>,
    init: &OwnedFd,
    namespace: &OwnedFd,
    spec: &ContainerSpec,
    leaf: &Group,
    channel: OwnedFd,
) -> i32 {
    let mut channel = Connection::new(channel);
    let beside = match Beside::settle(shared, init, namespace, spec, leaf, &mut channel) {
        Ok(beside) => beside,
        Err(refusal) => {
            let _ = channel.send(&Joined::Failed(format!("{refusal:?}")), vec![]);
            return 1;
        }
    };
    if channel.send(&Joined::Ready, vec![]).is_err() {
        return 1;
    }
    let Ok(mut stack) = Stack::new() else { return 1 };
    while let Ok((further, fds)) = channel.receive::<Further>() {
        let number = |child: &Child| child.pid.as_raw_nonzero().get();
        let told = match beside.execute(&mut stack, &further, &fds) {
            Ok(Executed { child, terminal }) => {
                let said = Joined::Executed(number(&child));
                channel.send(&said, std::iter::once(child.pidfd).chain(terminal).collect())
            }
            Err(Failure::Refused { refusal, child }) => {
                let said = Joined::Refused(child.as_ref().map(number), refusal);
                channel.send(&said, child.into_iter().map(|child| child.pidfd).collect())
            }
            Err(Failure::Killed { refusal, child }) => {
                let _ = channel.send(&Joined::Refused(Some(number(&child)), refusal), vec![child.pidfd]);
                process::exit_now(1);
            }
            Err(Failure::NoChild(error)) => channel.send(&Joined::Failed(error.to_string()), vec![]),
        };
        if told.is_err() {
            return 1;
        }
    }
    0
}
