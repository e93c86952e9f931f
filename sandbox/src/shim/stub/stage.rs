//! What containers have in common, mounted before their root is there.
//!
//! ```text
//!  made without an order              moved when the order has come, or a root was made ahead
//!    / read-only, empty directories     / the same: beneath, out of sight
//!      proc   masked, protected           root overlay  <- the process's root
//!      dev    pts, shm, mqueue              proc dev sys
//!      sys    cgroups, masked
//! ```
//!
//! So a stub that stands by has all of it done, and one that was forked for its order does the same steps at once. The
//! mount namespace's own root stays beneath the container's, where overlayfs takes layers by descriptor (Linux 6.15): whoever
//! broke out of the change of root would find an empty directory. `pivot_root` would have to unmount it, which waits for an
//! RCU grace period, a quarter of a millisecond, in each start. For the same reason the namespace is not a copy of the shim's,
//! from which the shim's root would have to be unmounted, but of one that the keeper has made, with that directory alone.

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::CWD;
use rustix::mount::{UnmountFlags, unmount};

use super::super::own_root;
use super::cgroups::{self, Cgroups};
use super::masks;
use super::mounts;
use super::report::Step;
use crate::protocol::Refusal;
use crate::spec::Security;
use crate::sys::mount;

/// The empty directory that masks others, in the mount namespace's own root.
pub(crate) const EMPTY: &str = "/empty";

/// The prepared mounts.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    /// The mount namespace's own root.
    pub(crate) root: OwnedFd,
    /// /proc; until it is moved also the process's own.
    pub(crate) proc: OwnedFd,
    /// The root of /dev/pts.
    pub(crate) pts: OwnedFd,
    sys: OwnedFd,
    cgroups: Cgroups<'a>,
    /// The default profile's paths are hidden and protected.
    masked: bool,
    /// They are in a container's root.
    placed: bool,
}

impl<'a> Stage<'a> {
    /// Makes it, in a copy of the mount namespace `space`; the process comes from the shim's. `base` is the host's id of the
    /// container's root. `enter`: what there is to do before the process's network and IPC namespaces are the sandbox's.
    pub(crate) fn make(
        base: u32,
        (dev, space): (&OwnedFd, &OwnedFd),
        cgroups: Cgroups<'a>,
        enter: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<Self, Refusal> {
        // Of the shim's root only this is taken along.
        let (shm, groups) = (mounts::shared_memory()?, cgroups.clones()?);
        setns(space, CloneFlags::CLONE_NEWNS).step("entry into the stubs' mount namespace")?;
        unshare(CloneFlags::CLONE_NEWNS).step("private mount namespace")?;
        let root = own_root::directory("/")?;
        let profile = Security::default();
        let proc = mounts::mount_proc(&root, base)?;
        masks::protect(&root, &profile.readonly_paths)?;
        let pts = mounts::mount_dev(&root, base, dev, &shm)?;
        enter()?;
        mounts::mount_mqueue(dev, base)?;
        let sys = mounts::mount_sys(&root, base, false)?;
        cgroups::mount(&groups, &sys, base)?;
        masks::hide(&root, dev, &profile.masked_paths, EMPTY)?;
        Ok(Self { root, proc, pts, sys, cgroups, masked: true, placed: false })
    }

    /// Moves all of it into a container's root, unless it is there. What another profile hides is for the caller to hide: true
    /// when that is to be done.
    pub(crate) fn place(
        &mut self,
        tree: &OwnedFd,
        base: u32,
        dev: &OwnedFd,
        security: &Security,
    ) -> Result<bool, Refusal> {
        let profile = Security::default();
        let (masked, read_only) = (&security.masked_paths, &security.readonly_paths);
        let other = *masked != profile.masked_paths || *read_only != profile.readonly_paths;
        if self.masked && (other || security.writable_kernel) {
            self.take_back(base, dev)?;
            self.unmask(base, security.writable_kernel)?;
        }
        if !self.placed {
            self.move_into(tree, base, dev)?;
            self.placed = true;
        }
        Ok(!self.masked)
    }

    /// Moves all of it to where it was made.
    pub(crate) fn take_back(&mut self, base: u32, dev: &OwnedFd) -> Result<(), Refusal> {
        if self.placed {
            self.move_into(&self.root, base, dev)?;
            self.placed = false;
        }
        Ok(())
    }

    fn move_into(&self, root: &OwnedFd, base: u32, dev: &OwnedFd) -> Result<(), Refusal> {
        mounts::attach(&self.proc, root, "proc", base)?;
        mounts::attach(dev, root, "dev", base)?;
        mounts::attach(&self.sys, root, "sys", base)
    }

    /// Makes /proc and /sys anew, with nothing hidden; with the same control groups, for where they came from is left behind.
    fn unmask(&mut self, base: u32, writable: bool) -> Result<(), Refusal> {
        let groups =
            mount::clone_tree(CWD, &format!("/sys/{}", cgroups::PLACE), true).step("clone of the control groups")?;
        for path in ["/proc", "/sys"] {
            unmount(path, UnmountFlags::DETACH).step(format!("unmount of the prepared {path}"))?;
        }
        self.proc = mounts::mount_proc(&self.root, base)?;
        self.sys = mounts::mount_sys(&self.root, base, writable)?;
        mounts::attach(&groups, &self.sys, cgroups::PLACE, base)?;
        if writable {
            self.cgroups.let_write(&self.sys)?;
        }
        self.masked = false;
        Ok(())
    }

    /// Makes the root, which was mounted over the own one, what the process sees. Nothing is left in the own one but
    /// empty directories, which nobody can write to.
    pub(crate) fn cover(&self, tree: &OwnedFd) -> Result<(), Refusal> {
        rustix::process::fchdir(tree.as_fd()).step("change into the root")?;
        rustix::process::chroot(".").step("change of root")
    }
}
