//! A slot: a user namespace and the network, IPC and UTS namespaces that it owns.
//!
//! Owning them is what lets a container's root bind low ports, configure its own network where it has CAP_NET_ADMIN, and
//! nothing else. The shim then lives in the three itself, so its stubs need not join them; its credentials stay the
//! host's, and so does its mount namespace's owner: a container cannot mount.
//!
//! A sandbox without a user namespace has the three all the same (unless it is to have the host's), owned by the host's
//! user namespace. Its ids are the host's.

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chmodat, chownat, mkdirat, openat};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::own_root;
use super::stub::report::Step;
use crate::ids::Ids;
use crate::protocol::Refusal;
use crate::spec::Namespaces;
use crate::sys::clone::{self, Child};
use crate::sys::{link, mount};

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
        if self.namespaces.host_pid { clone::NEWNS } else { clone::NEWNS | clone::NEWPID }
    }
}

/// Makes the namespaces and moves the calling process into network, IPC and UTS.
/// `shm`: the host's shared memory, for a sandbox that is to have it.
pub(crate) fn make(base: u32, namespaces: Namespaces, shm: Option<OwnedFd>) -> Result<Slot, Refusal> {
    namespaces.check().map_err(|message| Refusal::Invalid { message })?;
    let ids = Ids::of(base, &namespaces).map_err(|message| Refusal::Invalid { message })?;
    let (user, net) = if namespaces.user {
        let (user, net) = make_owned(&ids)?;
        (Some(user), net)
    } else {
        (None, make_unowned(&namespaces)?)
    };
    if !namespaces.host_network {
        link::loopback_up().step("loopback interface")?;
    }
    keep_shared(ids.base(), shm)?;
    Ok(Slot { user, net, ids, namespaces })
}

/// Network, IPC and UTS namespaces of the host's user namespace, as far as the sandbox has its own; the network's.
fn make_unowned(namespaces: &Namespaces) -> Result<OwnedFd, Refusal> {
    let mut spaces = CloneFlags::CLONE_NEWUTS;
    spaces.set(CloneFlags::CLONE_NEWNET, !namespaces.host_network);
    spaces.set(CloneFlags::CLONE_NEWIPC, !namespaces.host_ipc);
    nix::sched::unshare(spaces).step("network, IPC and UTS namespaces")?;
    openat(CWD, "/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .step("open of the network namespace")
}

/// A user namespace and those that it owns.
fn make_owned(ids: &Ids) -> Result<(OwnedFd, OwnedFd), Refusal> {
    let spaces = clone::NEWUSER | clone::NEWNET | clone::NEWIPC | clone::NEWUTS;
    // The kernel makes the user namespace first, and then the others as its own.
    let maker = clone::hold(spaces).step("namespaces of the sandbox")?;
    crate::sys::failpoint::failpoint!(MakerForked);
    // Then it has done its work: the namespaces live on in our descriptors.
    adopt(&maker.child, ids)
}

/// The pod's file system in memory: what its containers share, and its first container's /dev, which is as large. Each file
/// system more costs all pods of the host.
fn keep_shared(base: u32, shm: Option<OwnedFd>) -> Result<(), Refusal> {
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

/// Maps the ids of the child's user namespace, and enters the namespaces that this one owns.
fn adopt(maker: &Child, ids: &Ids) -> Result<(OwnedFd, OwnedFd), Refusal> {
    let process = format!("/proc/{}", maker.pid.as_raw_nonzero());
    let mapping = ids.mapping();
    std::fs::write(format!("{process}/uid_map"), &mapping).step("user id mapping")?;
    std::fs::write(format!("{process}/gid_map"), &mapping).step("group id mapping")?;
    crate::sys::failpoint::failpoint!(IdsMapped);
    let open = |name: &str| {
        openat(CWD, format!("{process}/ns/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .step(format!("open of the {name} namespace"))
    };
    let (user, net) = (open("user")?, open("net")?);
    let spaces = ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
    move_into_thread_name_spaces(maker.pidfd.as_fd(), spaces).step("entering network, IPC and UTS namespaces")?;
    Ok((user, net))
}
