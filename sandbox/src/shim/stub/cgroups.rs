//! A container's view of its control groups.
//!
//! On v2 a mount of its own, whose root is that of its cgroup namespace. Mounting a v1 hierarchy walks through all control
//! groups of the host under a lock of the whole host, each time; so there the container gets binds of its own directories.
//! The keeper has the hierarchies at hand for that, and the directory that holds them, which is one for the whole host
//! ([`own_root::CGROUPS`], [`own_root::CGROUP_HOLDER`]). As the container is in a cgroup namespace of its own, a bind says the
//! same of itself as a mount would.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, OFlags, openat};
use rustix::io::Errno;

use super::super::own_root;
use super::mounts::{STRICT, attach};
use super::report::Step;
use crate::protocol::Refusal;
use crate::sys::{mount, paths};

/// Where in a /sys it is.
pub(crate) const PLACE: &str = "fs/cgroup";

/// How the view is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CgroupView {
    /// The unified hierarchy.
    Unified,
    /// v1 hierarchies.
    Legacy {
        /// Each a directory's name, which is also its list of controllers.
        hierarchies: Vec<String>,
        /// As these, for those in which all pods of the host are in one group.
        shared: Vec<String>,
        /// The pod's group in each.
        pod: String,
    },
}

/// One container's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cgroups<'a> {
    pub(crate) view: &'a CgroupView,
    /// Its leaf in the pod's group.
    pub(crate) leaf: &'a str,
}

/// What is mounted on `fs/cgroup` of a /sys, read-only: it, and by their names what is mounted in it.
#[derive(Debug)]
pub(crate) struct Clones<'a>(OwnedFd, Vec<(&'a str, OwnedFd)>);

/// Mounts it.
pub(crate) fn mount(Clones(holder, inside): &Clones<'_>, sys: &OwnedFd, base: u32) -> Result<(), Refusal> {
    attach(holder, sys, PLACE, base)?;
    inside.iter().try_for_each(|(name, group)| attach(group, holder, name, base))
}

impl<'a> Cgroups<'a> {
    /// Makes what is to be mounted, of what is in the shim's root.
    pub(crate) fn clones(self) -> Result<Clones<'a>, Refusal> {
        match self.view {
            CgroupView::Unified => {
                let unified = mount::create("cgroup2", &[], STRICT | mount::RDONLY).step("mount of /sys/fs/cgroup")?;
                Ok(Clones(unified, Vec::new()))
            }
            CgroupView::Legacy { hierarchies, shared, pod } => {
                let holder = own_root::directory(own_root::CGROUP_HOLDER)?;
                let holder = mount::clone_tree(holder, "", false).step("clone of the control groups' directory")?;
                let mut inside = Vec::with_capacity(hierarchies.len() + shared.len());
                let own = |hierarchy: &'a String| {
                    (hierarchy, format!("{}/{hierarchy}/{pod}/{}", own_root::CGROUPS, self.leaf))
                };
                let all = |hierarchy: &'a String| (hierarchy, format!("{}/{hierarchy}", own_root::CGROUPS));
                for (hierarchy, path) in hierarchies.iter().map(own).chain(shared.iter().map(all)) {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let own = match openat(CWD, &path, flags, rustix::fs::Mode::empty()) {
                        // One that the host uses since after the keeper's start.
                        Err(Errno::NOENT) => continue,
                        other => other.step(format!("open of the {hierarchy} control group"))?,
                    };
                    let own =
                        mount::clone_tree(own, "", false).step(format!("bind of the {hierarchy} control group"))?;
                    inside.push((hierarchy.as_str(), own));
                }
                Ok(Clones(holder, inside))
            }
        }
    }

    /// Opens what is mounted to writing, by whom the files' modes let; not the directory nor the groups that all of the
    /// host's have.
    pub(crate) fn let_write(self, sys: &OwnedFd) -> Result<(), Refusal> {
        let open = |path: &str| paths::open_plain(sys, path, OFlags::PATH | OFlags::DIRECTORY);
        let writable = |path: &str| match open(path) {
            Err(Errno::NOENT) => Ok(()),
            other => other
                .map_err(std::io::Error::from)
                .and_then(|group| mount::clear(group, mount::RDONLY))
                .step(format!("writable /sys/{path}")),
        };
        match self.view {
            CgroupView::Unified => writable(PLACE),
            CgroupView::Legacy { hierarchies, .. } => {
                hierarchies.iter().try_for_each(|hierarchy| writable(&format!("{PLACE}/{hierarchy}")))
            }
        }
    }
}
