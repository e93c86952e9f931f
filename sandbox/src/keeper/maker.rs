//! A sandbox's namespaces, begun before its shim is: the kernel takes half a millisecond for them.
//!
//! Who makes them is a child of the keeper's and borrows its memory. Only the shim speaks to it then, and it ends with that one's
//! last word, so that neither the shim nor its namespaces need the keeper any more.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};

use crate::ids::Ids;
use crate::protocol::Refusal;
use crate::shim::Begun;
use crate::shim::stub::report::Step;
use crate::sys::clone::Child;
use crate::sys::hold::{self, Holder};
use crate::sys::place;

/// Makes a sandbox's user namespace and has the others begun. `proc`: of the caller's PID namespace. The first of the two is to be
/// collected as a child.
pub(super) fn begin(proc: &OwnedFd, ids: &Ids) -> Result<(Holder, Begun), Refusal> {
    let (holder, maker) = hold::maker().step("user namespace of the sandbox")?;
    // New as it is, it would wait for this processor.
    place::elsewhere(holder.child.pid);
    crate::sys::failpoint::failpoint!(MakerForked);
    // The kernel gives what it makes to root inside, where there is one by then.
    map_ids(proc, &holder.child, ids)?;
    crate::sys::failpoint::failpoint!(IdsMapped);
    maker.go().step("word to who makes namespaces")?;
    let user = open(proc, &holder.child, "ns/user", OFlags::RDONLY).step("open of the user namespace")?;
    Ok((holder, Begun { user, maker }))
}

/// Maps the ids of a process's user namespace.
fn map_ids(proc: &OwnedFd, maker: &Child, ids: &Ids) -> Result<(), Refusal> {
    let mapping = ids.mapping();
    let write = |name: &str| {
        let file = open(proc, maker, name, OFlags::WRONLY)?;
        rustix::io::write(&file, mapping.as_bytes()).map(drop)
    };
    write("uid_map").step("user id mapping")?;
    write("gid_map").step("group id mapping")
}

fn open(proc: &OwnedFd, process: &Child, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = format!("{}/{name}", process.pid.as_raw_nonzero());
    openat(proc, path, flags | OFlags::CLOEXEC, Mode::empty())
}
