//! A sandbox's namespaces, begun before its shim is: the kernel takes half a millisecond for them.
//!
//! Who makes them is a child of the keeper's and borrows its memory, which is not dumpable: the sandbox's user namespace gives nobody
//! power over it. Only the shim speaks to it then, and it ends with that one's
//! last word, so that neither the shim nor its namespaces need the keeper any more.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::Pid;

use crate::ids::Ids;
use crate::protocol::Refusal;
use crate::shim::Begun;
use crate::shim::stub::report::Step;
use crate::sys::hold::{self, Holder, Room};
use crate::sys::place;

/// Those who make namespaces.
#[derive(Debug, Default)]
pub(super) struct Makers {
    /// By process, until each is collected.
    children: BTreeMap<i32, Holder>,
    /// What one of them ran on, for the next one.
    room: Option<Room>,
}

impl Makers {
    /// Makes a sandbox's user namespace and has the others begun. `proc`: of the caller's PID namespace.
    pub(super) fn begin(&mut self, proc: &OwnedFd, ids: &Ids) -> Result<Begun, Refusal> {
        let (holder, maker) = hold::maker(self.room.take()).step("user namespace of the sandbox")?;
        let pid = holder.child.pid;
        self.children.insert(pid.as_raw_nonzero().get(), holder);
        // New as it is, it would wait for this processor.
        place::elsewhere(pid);
        crate::sys::failpoint::failpoint!(MakerForked);
        // The kernel gives what it makes to root inside, where there is one by then.
        map_ids(proc, pid, ids)?;
        crate::sys::failpoint::failpoint!(IdsMapped);
        maker.go().step("word to who makes namespaces")?;
        let user = open(proc, pid, "ns/user", OFlags::RDONLY).step("open of the user namespace")?;
        Ok(Begun { user, maker })
    }

    /// Whether there are any.
    pub(super) fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Whether it was one of these who has ended and was collected.
    pub(super) fn ended(&mut self, pid: i32) -> bool {
        let Some(holder) = self.children.remove(&pid) else { return false };
        self.room = holder.collected();
        true
    }
}

impl Drop for Makers {
    /// A keeper that ends, for whatever reason, leaves them to the shims.
    fn drop(&mut self) {
        std::mem::take(&mut self.children).into_values().for_each(Holder::leave);
    }
}

/// Maps the ids of a process's user namespace.
fn map_ids(proc: &OwnedFd, maker: Pid, ids: &Ids) -> Result<(), Refusal> {
    let mapping = ids.mapping();
    let write = |name: &str| {
        let file = open(proc, maker, name, OFlags::WRONLY)?;
        rustix::io::write(&file, mapping.as_bytes()).map(drop)
    };
    write("uid_map").step("user id mapping")?;
    write("gid_map").step("group id mapping")
}

fn open(proc: &OwnedFd, process: Pid, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = format!("{}/{name}", process.as_raw_nonzero());
    openat(proc, path, flags | OFlags::CLOEXEC, Mode::empty())
}
