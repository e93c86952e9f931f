//! A slot: a user namespace and the network, IPC and UTS namespaces that it owns.
//!
//! Owning them is what lets a container's root bind low ports, configure its own network where it has CAP_NET_ADMIN, and
//! nothing else. The shim then lives in the three itself, so its stubs need not join them; its credentials stay the
//! host's, and so does its mount namespace's owner: a container cannot mount.
//!
//! A sandbox without a user namespace has the three all the same (unless it is to have the host's), owned by the host's
//! user namespace. Its ids are the host's.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::own_root;
use super::stub::report::Step;
use crate::ids::Ids;
use crate::protocol::Refusal;
use crate::spec::Namespaces;
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
    let (mut ours, mut theirs) = UnixStream::pair().step("channel to the namespaces' maker")?;
    let child = clone::fork_with(clone::NEWUSER, None, || maker(&mut theirs)).step("user namespace")?;
    drop(theirs);
    crate::sys::failpoint::failpoint!(MakerForked);
    let made = adopt(&mut ours, child.pid, ids);
    // It has done its work; its namespaces live on in our descriptors.
    pidfd_send_signal(&child.pidfd, Signal::KILL).step("end of the namespaces' maker")?;
    waitpid(Some(child.pid), WaitOptions::empty()).step("end of the namespaces' maker")?;
    made
}

/// What the containers share of file systems.
fn keep_shared(base: u32, shm: Option<OwnedFd>) -> Result<(), Refusal> {
    let id = base.to_string();
    let options =
        [("uid", Some(id.as_str())), ("gid", Some(id.as_str())), ("mode", Some("1777")), ("size", Some(SHM_SIZE))];
    let strict = mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let shm = match shm {
        Some(shm) => shm,
        None => mount::create("tmpfs", &options, strict).step("the pod's shared memory")?,
    };
    let empty = mount::create("tmpfs", &[("mode", Some("0555")), ("size", Some("4k"))], strict | mount::RDONLY)
        .step("the empty directory")?;
    own_root::keep(&shm, own_root::SHM)?;
    own_root::keep(&empty, own_root::EMPTY)
}

/// The child: waits for its id mapping, makes the namespaces as root of the user namespace, waits to be killed.
fn maker(channel: &mut UnixStream) -> i32 {
    let mut byte = [0];
    if channel.read_exact(&mut byte).is_err() {
        return 1;
    }
    let spaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    let made = nix::sched::unshare(spaces).map_or_else(|errno| errno as i32, |()| 0);
    if channel.write_all(&[u8::try_from(made).unwrap_or(255)]).is_err() {
        return 1;
    }
    let _ = channel.read_exact(&mut byte);
    0
}

fn adopt(channel: &mut UnixStream, maker: Pid, ids: &Ids) -> Result<(OwnedFd, OwnedFd), Refusal> {
    let process = format!("/proc/{}", maker.as_raw_nonzero());
    let mapping = ids.mapping();
    std::fs::write(format!("{process}/uid_map"), &mapping).step("user id mapping")?;
    std::fs::write(format!("{process}/gid_map"), &mapping).step("group id mapping")?;
    crate::sys::failpoint::failpoint!(IdsMapped);
    let mut byte = [1];
    channel.write_all(&byte).step("word to the namespaces' maker")?;
    channel.read_exact(&mut byte).step("answer of the namespaces' maker")?;
    if byte[0] != 0 {
        let error = std::io::Error::from_raw_os_error(i32::from(byte[0]));
        return Err(Refusal::failed("network, IPC and UTS namespaces", &error));
    }
    let open = |name: &str| {
        openat(CWD, format!("{process}/ns/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .step(format!("open of the {name} namespace"))
    };
    let (user, net, ipc, uts) = (open("user")?, open("net")?, open("ipc")?, open("uts")?);
    let enter = |fd: &OwnedFd, kind, name: &str| {
        move_into_link_name_space(fd.as_fd(), Some(kind)).step(format!("entering the {name} namespace"))
    };
    enter(&net, LinkNameSpaceType::Network, "network")?;
    enter(&ipc, LinkNameSpaceType::InterProcessCommunication, "IPC")?;
    enter(&uts, LinkNameSpaceType::HostNameAndNISDomainName, "UTS")?;
    Ok((user, net))
}
