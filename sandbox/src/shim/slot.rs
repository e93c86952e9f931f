//! A slot: a user namespace and the network, IPC and UTS namespaces that it owns.
//!
//! Owning them is what lets a container's root bind low ports, configure its own network where it has CAP_NET_ADMIN, and
//! nothing else. The shim then lives in the three itself, so its stubs need not join them; its credentials stay the
//! host's, and so does its mount namespace's owner: a container cannot mount.
//!
//! A sandbox without a user namespace has the three all the same (unless it is to have the host's), owned by the host's
//! user namespace. Its ids are the host's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chmodat, chownat, mkdirat, openat};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::own_root;
use super::stub::report::Step;
use crate::ids::Ids;
use crate::protocol::Refusal;
use crate::spec::Namespaces;
use crate::sys::hold::Maker;
use crate::sys::{clone, link, mount};

/// Size of the pod's shared memory.
const SHM_SIZE: &str = "65536k";

/// The namespaces and file systems that a sandbox's containers share.
#[derive(Debug)]
pub(crate) struct Slot {
    /// The user namespace, if it has one of its own.
    pub(crate) user: Option<OwnedFd>,
    /// The network namespace.
    pub(crate) net: OwnedFd,
    /// Its ids, and what they are on the host.
    pub(crate) ids: Ids,
    /// Which namespaces it has of its own.
    pub(crate) namespaces: Namespaces,
}

impl Slot {
    /// The namespaces that a container's first process is forked into, as `clone` flags.
    pub(crate) fn container_spaces(&self) -> u64 {
        container_spaces(&self.namespaces)
    }
}

fn container_spaces(namespaces: &Namespaces) -> u64 {
    if namespaces.host_pid { 0 } else { clone::NEWPID }
}

/// What is begun before the shim is, for a sandbox with a user namespace of its own: that, and who makes in it what it owns. The kernel
/// takes half a millisecond for it, in which the shim has other things to do.
#[derive(Debug)]
pub(crate) struct Begun {
    /// The user namespace, with its ids.
    pub(crate) user: OwnedFd,
    /// Who makes network, IPC and UTS namespaces.
    pub(crate) maker: Maker,
}

impl Begun {
    /// How many descriptors it is.
    pub(crate) const FDS: usize = 1 + Maker::FDS;

    /// Its descriptors, for another process to [adopt](Self::adopt).
    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; Self::FDS] {
        let [pidfd, channel] = self.maker.fds();
        [self.user.as_fd(), pidfd, channel]
    }

    /// From its descriptors.
    pub(crate) fn adopt([user, pidfd, channel]: [OwnedFd; Self::FDS]) -> Self {
        Self { user, maker: Maker::adopt([pidfd, channel]) }
    }
}

/// A slot on its way.
#[derive(Debug)]
pub(crate) struct Making {
    /// Its ids, and what they are on the host.
    pub(crate) ids: Ids,
    /// The user namespace, if it has one of its own.
    pub(crate) user: Option<OwnedFd>,
    namespaces: Namespaces,
    /// Who makes those that the sandbox owns.
    maker: Option<Maker>,
}

impl Making {
    /// `base`: the host's id of the sandbox's root. `begun`: where it has a user namespace of its own.
    pub(crate) fn of(base: u32, namespaces: Namespaces, begun: Option<Begun>) -> Result<Self, Refusal> {
        let ids = Ids::of(base, &namespaces).map_err(|message| Refusal::Invalid { message })?;
        let (user, maker) = begun.map(|Begun { user, maker }| (user, maker)).unzip();
        Ok(Self { ids, user, namespaces, maker })
    }

    /// See [`Slot::container_spaces`].
    pub(crate) fn container_spaces(&self) -> u64 {
        container_spaces(&self.namespaces)
    }

    /// Moves the calling process into network, IPC and UTS namespaces.
    pub(crate) fn finish(self) -> Result<Slot, Refusal> {
        let Self { ids, user, namespaces, maker } = self;
        match maker {
            Some(maker) => {
                let made =
                    maker.made().map_err(|(what, error)| Refusal::failed(format!("{what} of the sandbox"), &error))?;
                // They live on with the process that enters them.
                join(made.pidfd.as_fd())?;
            }
            None => make_unowned(&namespaces)?,
        }
        let own = own_root::directory(own_root::PROC)?;
        let net = openat(own, "self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .step("open of the network namespace")?;
        Ok(Slot { user, net, ids, namespaces })
    }
}

/// Network, IPC and UTS namespaces of the host's user namespace, as far as the sandbox has its own.
fn make_unowned(namespaces: &Namespaces) -> Result<(), Refusal> {
    let mut spaces = CloneFlags::CLONE_NEWUTS;
    spaces.set(CloneFlags::CLONE_NEWNET, !namespaces.host_network);
    spaces.set(CloneFlags::CLONE_NEWIPC, !namespaces.host_ipc);
    nix::sched::unshare(spaces).step("network, IPC and UTS namespaces")?;
    if namespaces.host_network { Ok(()) } else { link::loopback_up().step("loopback interface") }
}

/// The pod's file system in memory: what its containers share, and its first container's /dev, which is as large. Each file
/// system more costs all pods of the host. `base`: the host's id of its owner. `shm`: the host's shared memory, for a sandbox that is
/// to have it.
pub(crate) fn keep_shared(base: u32, shm: Option<OwnedFd>) -> Result<(), Refusal> {
    let id = base.to_string();
    let options =
        [("uid", Some(id.as_str())), ("gid", Some(id.as_str())), ("mode", Some("0755")), ("size", Some(SHM_SIZE))];
    let pod = mount::create("tmpfs", &options, mount::NOSUID | libc::MOUNT_ATTR_STRICTATIME)
        .step("the pod's file system in memory")?;
    own_root::keep(&pod, own_root::POD)?;
    let owner = (Some(Uid::from_raw(base)), Some(Gid::from_raw(base)));
    for (path, mode) in [(own_root::SHM, 0o1777), (own_root::FIRST_DEV, 0o755)] {
        mkdirat(CWD, path, Mode::from_raw_mode(0o700)).step(format!("directory {path}"))?;
        chownat(CWD, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).step(format!("owner of {path}"))?;
        chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty()).step(format!("mode of {path}"))?;
    }
    match shm {
        Some(hosts) => own_root::keep(&hosts, own_root::SHM),
        None => Ok(()),
    }
}

/// Moves the calling process into the network, IPC and UTS namespaces of the one with this descriptor.
pub(crate) fn join(process: BorrowedFd<'_>) -> Result<(), Refusal> {
    let spaces = ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
    move_into_thread_name_spaces(process, spaces).step("entering network, IPC and UTS namespaces")
}
