//! A stub that stands by, so that what is slow is done before a container is asked for.
//!
//! To join a leaf and to make what every container has takes half a millisecond and more. So a warm sandbox has a leaf with a stub
//! in it already, in its own PID, mount and cgroup namespaces, with the container's /dev made; the first container takes both
//! over. A sandbox that shares one PID namespace among its containers has no use for it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, waitpid};
use serde_json::value::RawValue;

use super::own_root::OwnRoot;
use super::plumbing::report_channel;
use super::reaper::LEAF_DEADLINE;
use super::rehearsal;
use super::requests::cgroup_refusal;
use super::server::Shim;
use super::slot::Making;
use super::stub::cgroups::CgroupView;
use super::stub::report::{Proceed, Report, Step};
use super::stub::standing::{self, Telling};
use super::stub::{Order, mounts};
use crate::cgroup::{CgroupError, DEFAULT_DEVICES, DeviceProgram, DeviceRule, Enforcement, Group};
use crate::protocol::shim::Reply;
use crate::protocol::{Connection, Refusal};
use crate::spec::Resources;
use crate::sys::clone::{Child, fork_with};
use crate::sys::lend::{Lender, fork_lent};
use crate::sys::place::Away;

/// The leaf's name; a container's own leaf has a dot in its name. Whoever makes the pod's group may have made it already.
pub(crate) const LEAF: &str = "first";

/// How long the agent is kept waiting for a spare at most.
const SETTLING: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A stub that waits for its [`Order`].
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) child: Child,
    /// Whose memory it has, where it is not its own.
    pub(super) lender: Option<Lender>,
    pub(super) leaf: Group,
    /// Blocking, until the order is sent.
    pub(super) channel: Connection,
    /// It is kept from a processor until it may proceed.
    pub(super) away: Option<Away>,
    /// It has said that it is.
    pub(super) ready: bool,
    /// It has been sent the text of the last start that was asked for.
    pub(super) forwarded: bool,
}

impl Spare {
    /// Forks it while the sandbox's namespaces are made: it begins with what has nothing to do with them. `awaited`: the start that
    /// would be rehearsed is there already, or nearly.
    pub(super) fn make(
        pod: &Group,
        (view, own_root): (&CgroupView, &OwnRoot),
        making: &Making,
        usual_devices: Option<&DeviceProgram>,
        awaited: bool,
    ) -> Result<Self, Refusal> {
        if !awaited {
            rehearsal::of_request();
        }
        let dev = mounts::make_first_dev(making.ids.base())?;
        let leaf = pod.create_leaf(LEAF).map_err(|error| cgroup_refusal("control group of a stub", &error))?;
        furnish(&leaf, &DEFAULT_DEVICES, usual_devices)?;
        let shim = pidfd_open(getpid(), PidfdFlags::empty()).step("descriptor of the shim")?;
        let (ours, theirs) = report_channel()?;
        let (spaces, cgroup) = (making.container_spaces(), leaf.clone_into());
        let body = || {
            let (sandbox, mounts) = ((making.user.as_ref(), &making.ids), (&dev, &own_root.stage));
            standing::stand_by(sandbox, (&leaf, view), mounts, shim.as_fd(), theirs)
        };
        let mut away = None;
        let (child, lender) = if awaited {
            // A lender takes longer to make than it saves.
            let child = fork_with(spaces, cgroup, body).step("fork of a stub")?;
            // Both have work.
            away = Away::send(child.pid);
            (child, None)
        } else {
            let (child, lender) = fork_lent(spaces, cgroup, body).step("fork of a stub that borrows its memory")?;
            (child, Some(lender))
        };
        Ok(Self { child, lender, leaf, channel: Connection::new(ours), away, ready: false, forwarded: false })
    }
}

impl Shim {
    /// Takes the sandbox's spare stub on, as its namespaces are there. Without one everything works, later.
    pub(super) fn stand_by(&mut self, spare: Result<Spare, Refusal>) {
        match spare {
            Ok(mut spare) => {
                if let Some(away) = spare.away.take() {
                    away.back();
                }
                // One that has ended meanwhile is told of by its end as a child.
                let _ = spare.channel.send(&Proceed, vec![]);
                self.spare = Some(spare);
            }
            Err(refusal) => {
                let _ = self.pod.remove_leaf(LEAF, LEAF_DEADLINE);
                crate::sys::say::say!("no stub stands by: {refusal:?}");
            }
        }
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

    /// Has the spare make the root of the first container ahead. As [`Shim::settle`], nobody is kept waiting.
    pub(super) fn assemble(&mut self, fds: Vec<OwnedFd>) -> Result<Reply, Refusal> {
        let not_now = || Refusal::Invalid { message: "no root can be made ahead now".into() };
        if self.ahead.is_some() || self.configured.is_some() || fds.len() < 2 {
            return Err(not_now());
        }
        let copies = fds.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>().step("copies of descriptors")?;
        let mut spare = self.spare.take_if(|spare| spare.ready).ok_or_else(not_now)?;
        let ask = || {
            spare.channel.send(&Telling::Assemble, copies).ok()?;
            let mut ends = [PollFd::from_borrowed_fd(spare.channel.socket(), PollFlags::IN)];
            poll(&mut ends, Some(&SETTLING)).ok().filter(|ready| *ready > 0)?;
            match spare.channel.receive::<Report>() {
                Ok((Report::Assembled, root)) => Some(Ok(root.into_iter().next())),
                Ok((Report::Failed { refusal }, _)) => Some(Err(refusal)),
                _ => None,
            }
        };
        let Some(answer) = ask() else {
            // What it would say now would be taken for something else.
            self.dismiss(spare);
            return Err(Refusal::Failed {
                operation: "making of a root ahead".into(),
                message: "the stub that stood by did not answer".into(),
                errno: None,
            });
        };
        crate::sys::failpoint::failpoint!(AheadAssembled);
        self.spare = Some(spare);
        let root = answer?.ok_or_else(|| Refusal::Unsupported { what: "a root made ahead".into() })?;
        self.ahead = Some(fds.into_iter().chain([root]).collect());
        Ok(Reply::Done)
    }

    /// Has the spare read the start that was just asked for, so that it knows it when it is ordered. Whether it will be is decided
    /// meanwhile.
    pub(super) fn forward_start(&mut self, start: &RawValue) {
        if self.configured.is_some()
            && let Some(spare) = &mut self.spare
        {
            spare.forwarded = spare.channel.send(&Telling::Asked(start), vec![]).is_ok();
        }
    }

    /// The spare with these limits and this order given, if there is one that can take them.
    pub(super) fn order(&mut self, resources: &Resources, order: &Order, fds: Vec<OwnedFd>) -> Option<Spare> {
        if order.spec.security.host_devices || !order.spec.security.devices.is_empty() {
            // Its /dev and its device rules are the usual ones.
            return None;
        }
        if order.counts.assembled && self.ahead.is_none() {
            return None;
        }
        let mut spare = self.spare.take()?;
        // On v2 the stub lives on memory of the leaf already: a limit below that is for a fresh leaf to take.
        if spare.leaf.apply(resources).is_err() {
            self.dismiss(spare);
            return None;
        }
        let telling = if spare.forwarded { Telling::AsAsked(order.counts) } else { Telling::Order(order) };
        if spare.channel.send(&telling, fds).is_err() {
            self.dismiss(spare);
            return None;
        }
        crate::sys::failpoint::failpoint!(StubOrdered);
        Some(spare)
    }

    /// Ends the spare, for a sandbox that will not need it.
    pub(super) fn dismiss_spare(&mut self) {
        self.ahead = None;
        if let Some(spare) = self.spare.take() {
            self.dismiss(spare);
        }
    }

    /// Ends a stub and removes its leaf.
    pub(super) fn dismiss(&self, spare: Spare) {
        let _ = pidfd_send_signal(&spare.child.pidfd, Signal::KILL);
        let _ = waitpid(Some(spare.child.pid), WaitOptions::empty());
        self.remove_spare_leaf(spare);
    }

    /// Whether this child was the spare; then it is forgotten.
    pub(super) fn spare_ended(&mut self, pid: Pid) -> bool {
        let Some(spare) = self.spare.take_if(|spare| spare.child.pid == pid) else { return false };
        self.ahead = None;
        crate::sys::say::say!("the stub that stood by has ended");
        self.remove_spare_leaf(spare);
        true
    }

    fn remove_spare_leaf(&self, mut spare: Spare) {
        // On v2 it is in the leaf too.
        spare.lender = None;
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
