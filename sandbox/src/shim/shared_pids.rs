//! PID namespaces that are joined: another container's, or the one that all of a pod's containers share and its first
//! process.

use std::os::fd::{AsFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::own_root;
use super::server::{PodInit, Shim};
use super::stub::identity;
use super::stub::report::Step;
use crate::protocol::Refusal;
use crate::spec::{Security, User};
use crate::sys::clone::{self, fork_with};
use crate::sys::process;

impl Shim {
    /// The first process of a PID namespace that all of the pod's containers share.
    pub(super) fn make_pod_init(&mut self) -> Result<PodInit, Refusal> {
        let user = self.slot.user.as_ref();
        let child = fork_with(clone::NEWPID, None, || pod_init(user)).step("fork of the pod's first process")?;
        Ok(PodInit { pid: child.pid, namespace: open_pid_namespace(child.pid)? })
    }
}

pub(super) fn open_pid_namespace(pid: rustix::process::Pid) -> Result<OwnedFd, Refusal> {
    let file = std::fs::File::open(format!("/proc/{}/ns/pid", pid.as_raw_nonzero())).step("open of a PID namespace")?;
    Ok(file.into())
}

/// Runs `fork` so that its child is in `namespace`.
pub(super) fn in_pid_namespace<T>(namespace: &OwnedFd, fork: impl FnOnce() -> T) -> Result<T, Refusal> {
    let own = std::fs::File::open("/proc/self/ns/pid").step("open of the own PID namespace")?;
    let kind = Some(LinkNameSpaceType::ProcessID);
    move_into_link_name_space(namespace.as_fd(), kind).step("entering a PID namespace")?;
    let result = fork();
    move_into_link_name_space(own.as_fd(), kind).step("leaving a PID namespace")?;
    Ok(result)
}

/// PID 1 of a shared PID namespace: powerless, in an empty root, reaps orphans for ever. Without a user namespace a container
/// with CAP_SYS_PTRACE may look into it; the shim's root is then not to be seen by way of it.
fn pod_init(user: Option<&OwnedFd>) -> i32 {
    let root = User::default();
    let nothing = Security { capabilities: vec![], no_new_privileges: true, ..Default::default() };
    let give_up = || {
        let wanted = identity::assume(&root, &nothing)?;
        identity::confine(&root, &nothing, wanted, None)
    };
    let powerless = process::restore_signals().is_ok()
        && rustix::process::chroot(own_root::EMPTY).is_ok()
        && rustix::process::chdir("/").is_ok()
        && identity::enter_user_namespace(user).is_ok()
        && give_up().is_ok()
        // It has the shim's memory and root. A change of ids sets this anew, by a setting of the host's.
        && rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).is_ok()
        && process::close_from(0).is_ok();
    if !powerless {
        process::exit_now(1);
    }
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(_) => {}
            // No child now; one may come to it later. A stop is what any signal-less wait is.
            Err(_) => process::wait_for_child(),
        }
    }
}
