//! The shim: one small process a pod.
//!
//! ```text
//!                 clients (agent, tools)          children
//!                   │  requests   ▲ answers,        │ reports, output, ends
//!                   ▼             │ notices         ▼
//!  begin.rs      from a fork of the keeper to a shim
//!  server.rs     one epoll loop, one thread ────────────────
//!  requests.rs   what each request does
//!  launch.rs     start: check, fork a stub; follow.rs: its report, until its program runs; plumbing.rs: pipes and channels
//!  exec.rs       further processes; joiner: who forks what joins a container; shared_pids.rs: PID namespaces that are joined
//!  spare.rs      a stub that stands by for the first container
//!  output.rs     what containers write: to the log, at a bounded rate, and to who is attached
//!  attach.rs     who is attached, and what they send to a container's standard input
//!  pause.rs      stopping containers and letting them go on
//!  rehearsal.rs  a start that means nothing, so that the first that means something takes less time
//!  reaper.rs     ends: logs drained, leaf killed, record written, subscribers told
//! ```
//!
//! It is PID 1 of a PID namespace of its own (see [`crate::protocol::keeper::Spawn`]): orphans come to it, and when it
//! dies the kernel kills everything below it. It lives in the sandbox's network, IPC and UTS namespaces ([`slot`]) and in
//! a mount namespace that holds nothing of the host's but the pods' control groups ([`own_root`]); what it needs of the host it gets as descriptors:
//! its listening socket, its record directory, the pod's cgroup, later the log directory, layers and volumes.
//!
//! Nobody but it writes in its record directory: `events.jsonl` ([`history`]).

mod attach;
mod begin;
mod clients;
mod container;
mod exec;
mod follow;
pub(crate) mod history;
mod joiner;
mod launch;
pub mod log;
mod output;
pub(crate) mod own_root;
mod pause;
mod plumbing;
mod poller;
mod reaper;
mod rehearsal;
mod requests;
mod server;
mod shared_pids;
mod slot;
pub(crate) mod spare;
pub(crate) mod stub;

use serde::{Deserialize, Serialize};

use self::begin::Supplied;
use self::slot::Making;
use self::spare::Spare;
use self::stub::cgroups::CgroupView;
use crate::cgroup::{DeviceProgram, Handle};
use crate::protocol::Refusal;
use crate::spec::Namespaces;

pub(crate) use self::begin::Given;
pub use self::begin::Supplies;
pub(crate) use self::slot::Begun;
/// A container's root as its first process makes it, for the benchmark of that.
pub use self::stub::rootfs::{Tree, assemble, furnish};

/// What a shim is started with, as its only argument, in JSON.
///
/// Its descriptors come later: [`Supplies`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arguments {
    /// The slot's name, for messages.
    pub slot: String,
    /// The host's id of the sandbox's root; a multiple of 65536.
    pub uid_base: u32,
    /// The pod's cgroup.
    pub cgroup: Handle,
    /// Which namespaces the sandbox has of its own.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// What is known of the program that it runs.
    #[serde(default)]
    pub program: Option<String>,
    /// The usual device program comes along, later ([`DeviceProgram::usual`]).
    #[serde(default)]
    pub device_program: bool,
    /// A container is to start in it at once: what costs time now and saves it at a start is left out.
    #[serde(default)]
    pub awaited: bool,
}

/// Why a shim could not run.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// Setting up failed.
    #[error("{operation} failed: {message}")]
    SetUp {
        /// Which step.
        operation: String,
        /// The kernel's words.
        message: String,
    },
    /// The event loop failed.
    #[error("wait for events")]
    Wait(#[source] std::io::Error),
}

impl From<Refusal> for ShimError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Failed { operation, message, .. } => Self::SetUp { operation, message },
            other => Self::SetUp { operation: "set-up".into(), message: format!("{other:?}") },
        }
    }
}

/// The whole of a shim; gives its exit status. `text`: the arguments as they were said.
pub(crate) fn main(arguments: Arguments, text: &str, given: Given<'_>) -> i32 {
    match run(arguments, text, given) {
        Ok(()) => 0,
        Err(error) => {
            crate::sys::say::say!("nodeless-shim: {}", crate::sys::say::chain(&error));
            1
        }
    }
}

/// Runs a shim until it is told to shut down.
fn run(arguments: Arguments, text: &str, mut given: Given<'_>) -> Result<(), ShimError> {
    let Arguments { cgroup, namespaces, .. } = &arguments;
    if namespaces.host_pid && rustix::process::getpid().is_init() {
        // A keeper that does not know of the choice: in this namespace its containers would see their shim only.
        let message = "the keeper has made a PID namespace all the same: it is older than this agent".to_owned();
        return Err(ShimError::SetUp { operation: "the host's PID namespace".into(), message });
    }
    let view = cgroup_view(cgroup, given.groups);
    begin::isolate()?;
    let making = Making::of(arguments.uid_base, namespaces.clone(), given.begun.take())?;
    let (own_root, supplies) = given.move_in(text)?;
    let mut supplied = Supplied::receive(supplies, &arguments)?;
    crate::sys::failpoint::join_beside(&supplied.record, &arguments.slot);
    crate::sys::failpoint::failpoint!(ShimBegun);
    supplied.join()?;
    crate::sys::failpoint::failpoint!(ChildGrouped);
    let Supplied { listener, record, pod, shm, devices, .. } = supplied;
    slot::keep_shared(making.ids.base(), shm)?;
    crate::sys::failpoint::failpoint!(ShimRooted);
    let usual_devices = devices.map(DeviceProgram::adopt);
    let spare = Spare::make(&pod, (&view, &own_root), &making, usual_devices.as_ref(), arguments.awaited);
    let history =
        history::History::open(&record).map_err(|error| Refusal::failed("open of the event record", &error))?;
    crate::sys::failpoint::failpoint!(HistoryOpened);
    let slot = making.finish()?;
    crate::sys::failpoint::failpoint!(NamespacesEntered);
    let mut shim = server::Shim::new(listener, pod, slot, own_root, view, history)?;
    shim.program = arguments.program;
    shim.usual_devices = usual_devices;
    shim.stand_by(spare);
    // Whoever has ended before anybody listened for that.
    shim.reap();
    crate::sys::failpoint::failpoint!(StubReady);
    shim.serve()
}

/// The v1 hierarchies that this crate uses, by all of their controllers as /proc/self/cgroup lists them.
fn cgroup_view(handle: &Handle, groups: &str) -> CgroupView {
    if handle.v1.is_empty() {
        return CgroupView::Unified;
    }
    let hierarchies = legacy_hierarchies(groups, &handle.v1);
    let shared = shared_hierarchies(groups, &hierarchies);
    CgroupView::Legacy { hierarchies, shared, pod: handle.name.clone() }
}

/// Of the lines of /proc/self/cgroup, the lists of controllers of which the process is in a group that it shares with all
/// pods, because it limits nothing: see `keeper::cgroups`.
fn shared_hierarchies(text: &str, own: &[String]) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .filter(|(list, group)| *group != "/" && list.split(',').any(|name| matches!(name, "cpuset" | "cpuacct")))
        .map(|(list, _)| list.to_owned())
        .filter(|list| !own.contains(list))
        .collect()
}

/// Of the lines of /proc/self/cgroup, the lists of controllers that are used.
pub(crate) fn legacy_hierarchies(text: &str, used: &[Vec<String>]) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split(':').nth(1))
        .filter(|list| list.split(',').any(|name| used.iter().flatten().any(|ours| ours == name)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hierarchies_in_use_are_shown() {
        let text = "12:pids:/x\n11:cpu,cpuacct:/x\n3:net_cls:/\n1:name=systemd:/\n0::/x\n";
        let used = vec![vec!["pids".to_owned()], vec!["cpu".to_owned(), "cpuacct".to_owned()]];
        assert_eq!(legacy_hierarchies(text, &used), ["pids", "cpu,cpuacct"]);
    }

    #[test]
    fn hierarchies_are_shared_where_the_shim_is_in_a_group_that_no_pod_has_of_its_own() {
        let text = "9:cpuset:/x\n8:cpuacct:/x\n7:cpu:/x/pod\n6:memory:/y\n0::/x\n";
        let used = vec!["cpu".to_owned(), "memory".to_owned()];
        assert_eq!(shared_hierarchies(text, &used), ["cpuset", "cpuacct"]);
        assert_eq!(shared_hierarchies("9:cpuset:/\n8:cpuacct:/\n", &used), [""; 0]);
        assert_eq!(shared_hierarchies("9:cpuset:/x/pod\n", &["cpuset".to_owned()]), [""; 0]);
        assert_eq!(shared_hierarchies("7:cpu,cpuacct:/x/pod\n", &["cpu,cpuacct".to_owned()]), [""; 0]);
    }
}
