//! A stub that stands by, so that what is slow is done before a container is asked for.
//!
//! Joining a v1 cgroup takes a lock that all forks of the host share: 5 to 10 microseconds at best, 7 to 25 milliseconds when
//! an RCU grace period is waited for. So a warm sandbox has a leaf with a stub in it already, in its own PID, mount and cgroup
//! namespaces, with the container's /dev made; the first container takes both over. A sandbox that shares one PID namespace
//! among its containers has no use for it.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};

use super::launch::report_channel;
use super::reaper::LEAF_DEADLINE;
use super::rehearsal;
use super::requests::cgroup_refusal;
use super::server::Shim;
use super::stub::report::{Report, Step};
use super::stub::{self, Order, mounts};
use crate::cgroup::{CgroupError, DEFAULT_DEVICES, DeviceProgram, DeviceRule, Enforcement, Group};
use crate::protocol::shim::Reply;
use crate::protocol::{Connection, Refusal};
use crate::seccomp;
use crate::spec::{Resources, Security};
use crate::sys::clone::{Child, fork_with};

/// The leaf's name; a container's own leaf has a dot in its name.
const LEAF: &str = "first";

/// How long the agent is kept waiting for a spare at most.
const SETTLING: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A stub that waits for its [`Order`].
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) child: Child,
    pub(super) leaf: Group,
    /// Blocking, until the order is sent.
    pub(super) channel: Connection,
    /// It has said that it is.
    pub(super) ready: bool,
}

impl Shim {
    /// Makes the sandbox's spare stub. Without one everything works, later.
    pub(super) fn stand_by(&mut self) {
        rehearsal::of_request();
        // The usual filter, compiled before there is a hurry: its stubs have it from here.
        let usual = Security::default();
        let _ = seccomp::program(&usual.seccomp, &usual.capabilities);
        match self.make_spare() {
            Ok(spare) => self.spare = Some(spare),
            Err(refusal) => {
                let _ = self.pod.remove_leaf(LEAF, LEAF_DEADLINE);
                crate::sys::say::say!("no stub stands by: {refusal:?}");
            }
        }
    }

    fn make_spare(&self) -> Result<Spare, Refusal> {
        let dev = mounts::make_first_dev(self.slot.ids.base())?;
        let leaf = self.pod.create_leaf(LEAF).map_err(|error| cgroup_refusal("control group of a stub", &error))?;
        furnish(&leaf, &DEFAULT_DEVICES, self.usual_devices.as_ref())?;
        let (ours, theirs) = report_channel()?;
        let (slot, view) = (&self.slot, &self.view);
        let body = || stub::stand_by(slot.user.as_ref(), &slot.ids, (&leaf, view), &dev, theirs);
        let child = fork_with(slot.container_spaces(), leaf.clone_into(), body).step("fork of a stub")?;
        Ok(Spare { child, leaf, channel: Connection::new(ours), ready: false })
    }

    /// Waits until the spare has made what it can. The shim is nobody's yet, so there is nobody to keep waiting.
    pub(super) fn settle(&mut self) -> Result<Reply, Refusal> {
        if let Some(spare) = self.spare.as_mut().filter(|spare| !spare.ready)
            && self.configured.is_none()
        {
            let mut ends = [PollFd::from_borrowed_fd(spare.channel.socket(), PollFlags::IN)];
            if let Ok(1..) = poll(&mut ends, Some(&SETTLING)) {
                // The end of one that failed is told by its end as a child.
                spare.ready = matches!(spare.channel.receive::<Report>(), Ok((Report::Ready, _)));
            }
        }
        Ok(Reply::Done)
    }

    /// The spare with these limits and this order given, if there is one that can take them.
    pub(super) fn order(&mut self, resources: &Resources, order: &Order, fds: Vec<OwnedFd>) -> Option<Spare> {
        if order.spec.security.host_devices || !order.spec.security.devices.is_empty() {
            // Its /dev and its device rules are the usual ones.
            return None;
        }
        let mut spare = self.spare.take()?;
        // The stub lives on memory of the leaf already: a limit below that is for a fresh leaf to take.
        if spare.leaf.apply(resources).is_err() {
            self.dismiss(&spare);
            return None;
        }
        if spare.channel.send(order, fds).is_err() {
            self.dismiss(&spare);
            return None;
        }
        crate::sys::failpoint::failpoint!(StubOrdered);
        Some(spare)
    }

    /// Ends the spare, for a sandbox that will not need it.
    pub(super) fn dismiss_spare(&mut self) {
        if let Some(spare) = self.spare.take() {
            self.dismiss(&spare);
        }
    }

    /// Ends a stub and removes its leaf.
    pub(super) fn dismiss(&self, spare: &Spare) {
        let _ = pidfd_send_signal(&spare.child.pidfd, Signal::KILL);
        let _ = waitpid(Some(spare.child.pid), WaitOptions::empty());
        self.remove_spare_leaf(spare);
    }

    /// Whether this child was the spare; then it is forgotten.
    pub(super) fn spare_ended(&mut self, pid: Pid) -> bool {
        let ended = self.spare.take_if(|spare| spare.child.pid == pid);
        if let Some(spare) = &ended {
            crate::sys::say::say!("the stub that stood by has ended");
            self.remove_spare_leaf(spare);
        }
        ended.is_some()
    }

    fn remove_spare_leaf(&self, spare: &Spare) {
        if let Err(error) = self.pod.remove_leaf(spare.leaf.name(), LEAF_DEADLINE) {
            crate::sys::say::say!("control group of a stub stays for now: {error}");
        }
    }
}

/// What every container's leaf has: it is killed as a whole, and denied every device but these; says so where the host
/// cannot. `usual`: the program of [`DEFAULT_DEVICES`], where the host has loaded it.
pub(super) fn furnish(leaf: &Group, rules: &[DeviceRule], usual: Option<&DeviceProgram>) -> Result<(), Refusal> {
    leaf.kill_whole().map_err(|error| cgroup_refusal("OOM group of a container", &error))?;
    let failed = |error: CgroupError| cgroup_refusal("devices of a container", &error);
    if let Some(usual) = usual.filter(|_| *rules == DEFAULT_DEVICES)
        && leaf.obey(usual).map_err(failed)?
    {
        return Ok(());
    }
    match leaf.allow_devices(rules).map_err(failed)? {
        Enforcement::Kernel => {}
        Enforcement::None => {
            crate::sys::say::say!("this kernel controls no devices by control group: only missing nodes and nodev do")
        }
    }
    Ok(())
}
