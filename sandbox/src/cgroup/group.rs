//! One cgroup, in every hierarchy of the host.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::devices::DeviceRule;
use super::driver::{Controller, Dirs, Driver, Enforcement, UnifiedDir, V1Dir};
use super::loaded_program::DeviceProgram;
use super::tree::make_child;
use super::{CgroupError, SHIM_LEAF, files, remove, v1::V1, v2::V2};
use crate::contract::Usage;
use crate::spec::Resources;

/// Where a process of one thread writes `0` to be in a v1 group. For `cgroup.procs` the kernel takes the lock of all forks and ends of
/// the host, to have no thread come or go meanwhile; on a host that has been quiet it waits for an RCU grace period first, five to
/// twenty milliseconds. A thread that moves itself alone needs no such lock (`cgroup_procs_write_start`, since Linux 5.5), but the
/// unified hierarchy does not let it leave its process's group, not even where the process has no other thread.
const MEMBERS: &str = "tasks";

/// One cgroup: a pod's, or a leaf of it. Held by file descriptors: renaming, remounting and path lookups of the host
/// do not matter. Dropping it removes nothing.
#[derive(Debug)]
pub struct Group {
    name: String,
    dirs: Dirs,
    driver: &'static dyn Driver,
}

/// What a [`Group`]'s file descriptors are, in order, so that they can be passed to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// The cgroup's name below its parent.
    pub name: String,
    /// Controllers on the unified hierarchy; `None` when there is no such descriptor. It is the first one.
    pub unified: Option<Vec<String>>,
    /// Controllers of each v1 hierarchy.
    pub v1: Vec<Vec<String>>,
    /// There is one more descriptor, the last: of the group below that containers are in (a pod's on v2).
    #[serde(default)]
    pub containers: bool,
}

impl Handle {
    /// How many file descriptors there are.
    pub fn descriptors(&self) -> usize {
        usize::from(self.unified.is_some()) + self.v1.len() + usize::from(self.containers)
    }
}

/// A name that can be a directory of ours: no separators, no hidden name, not the kernel's reserved prefix. (The name of a
/// control file is refused by the kernel and by `O_DIRECTORY`.)
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.starts_with("cgroup.")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'@'))
}

impl Group {
    pub(super) fn new(name: String, dirs: Dirs) -> Self {
        let driver: &'static dyn Driver = if dirs.v1.is_empty() { &V2 } else { &V1 };
        Self { name, dirs, driver }
    }

    pub(super) fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// Its name below its parent.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The controllers that can be used in it.
    pub fn has(&self, controller: Controller) -> bool {
        self.dirs.of(controller).is_some()
    }

    /// Describes its file descriptors and lends them, in the order of the description.
    pub fn lend(&self) -> (Handle, Vec<BorrowedFd<'_>>) {
        let names = |list: &[Controller]| list.iter().map(|c| c.name().to_owned()).collect::<Vec<_>>();
        let handle = Handle {
            name: self.name.clone(),
            unified: self.dirs.unified.as_ref().map(|dir| names(&dir.controllers)),
            v1: self.dirs.v1.iter().map(|dir| names(&dir.controllers)).collect(),
            containers: self.dirs.containers.is_some(),
        };
        (handle, self.dirs.all().chain(self.dirs.containers.as_ref().map(AsFd::as_fd)).collect())
    }

    /// What the shim of this pod writes `0` to on v1, to be in all but the group of the memory controller, as a pod that is full leaves
    /// nothing for what the shim must do to say so. On v2 it has a leaf of its own beside what is limited.
    pub fn joined_by_shim(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        self.dirs.v1_of_shim().map(|dir| files::open_to_write(dir, MEMBERS)).collect()
    }

    /// The other end of [`Group::lend`]. `None` when the number of descriptors is not the described one.
    pub fn receive(handle: Handle, fds: Vec<OwnedFd>) -> Option<Self> {
        let controllers = |names: &[String]| names.iter().filter_map(|n| Controller::from_name(n)).collect::<Vec<_>>();
        if fds.len() != handle.descriptors() {
            return None;
        }
        let mut fds = fds;
        let containers = if handle.containers { fds.pop() } else { None };
        let mut fds = fds.into_iter();
        let unified = match &handle.unified {
            Some(names) => Some(UnifiedDir { fd: fds.next()?, controllers: controllers(names) }),
            None => None,
        };
        let v1 = handle.v1.iter().zip(fds).map(|(names, fd)| V1Dir { fd, controllers: controllers(names) }).collect();
        Some(Self::new(handle.name, Dirs { unified, containers, v1 }))
    }

    pub(super) fn set_containers(&mut self, directory: OwnedFd) {
        self.dirs.containers = Some(directory);
    }

    /// Makes the leaf that this pod's shim is in: on v2, where none can be in the pod's own group.
    pub fn create_shim_leaf(&self) -> Result<Option<Self>, CgroupError> {
        let Some(unified) = self.dirs.unified.as_ref().filter(|_| self.dirs.v1.is_empty()) else { return Ok(None) };
        let own =
            UnifiedDir { fd: make_child(unified.fd.as_fd(), SHIM_LEAF)?, controllers: unified.controllers.clone() };
        let leaf = Self::new(SHIM_LEAF.to_owned(), Dirs { unified: Some(own), containers: None, v1: Vec::new() });
        // Nothing is limited, but nothing is swapped out either.
        leaf.apply(&Resources::default())?;
        Ok(Some(leaf))
    }

    /// Makes a child cgroup in every hierarchy. Making what is there already succeeds.
    pub fn create_leaf(&self, name: &str) -> Result<Self, CgroupError> {
        self.child(name, |dir| make_child(dir, name))
    }

    /// Opens a child cgroup; [`CgroupError::NotFound`] when any hierarchy lacks it.
    pub fn leaf(&self, name: &str) -> Result<Self, CgroupError> {
        self.child(name, |dir| {
            remove::open_child(dir, name)?.ok_or_else(|| CgroupError::NotFound { name: name.to_owned() })
        })
    }

    fn child(
        &self,
        name: &str,
        open: impl Fn(BorrowedFd<'_>) -> Result<OwnedFd, CgroupError>,
    ) -> Result<Self, CgroupError> {
        if !is_name(name) {
            return Err(CgroupError::BadName { name: name.to_owned() });
        }
        let unified = match &self.dirs.unified {
            Some(dir) => {
                let place = self.dirs.of_leaves().unwrap_or(dir.fd.as_fd());
                Some(UnifiedDir { fd: open(place)?, controllers: dir.controllers.clone() })
            }
            None => None,
        };
        let mut v1 = Vec::with_capacity(self.dirs.v1.len());
        for dir in &self.dirs.v1 {
            v1.push(V1Dir { fd: open(dir.fd.as_fd())?, controllers: dir.controllers.clone() });
        }
        Ok(Self::new(name.to_owned(), Dirs { unified, containers: None, v1 }))
    }

    /// Names of its children in any hierarchy, sorted.
    pub fn leaves(&self) -> Result<Vec<String>, CgroupError> {
        let mut names = BTreeSet::new();
        for dir in self.dirs.of_leaves().into_iter().chain(self.dirs.v1.iter().map(|dir| dir.fd.as_fd())) {
            names.extend(remove::subdirectories(dir)?);
        }
        Ok(names.into_iter().collect())
    }

    /// Kills what runs in a child and removes it everywhere, waiting at most `deadline` for its processes to be gone.
    /// Removing what does not exist succeeds.
    pub fn remove_leaf(&self, name: &str, deadline: Duration) -> Result<(), CgroupError> {
        if !is_name(name) {
            return Err(CgroupError::BadName { name: name.to_owned() });
        }
        let started = Instant::now();
        match self.leaf(name) {
            Ok(leaf) => leaf.kill()?,
            // Half-made or half-removed: nothing can run where one hierarchy lacks it, except by our own crash in
            // the middle of an attach; the removal below then says so.
            Err(CgroupError::NotFound { .. }) => {}
            Err(other) => return Err(other),
        }
        remove::remove(&self.dirs, name, started, deadline)
    }

    /// Sets the limits of a cgroup that was just made (what is `None` is left as the kernel made it).
    pub fn apply(&self, resources: &Resources) -> Result<(), CgroupError> {
        self.driver.apply(&self.dirs, resources, true)
    }

    /// Changes the limits of a cgroup in use (what is `None` becomes unlimited).
    pub fn update(&self, resources: &Resources) -> Result<(), CgroupError> {
        self.driver.apply(&self.dirs, resources, false)
    }

    /// For a container's leaf: the OOM killer takes all of its processes or none (v2).
    pub fn kill_whole(&self) -> Result<(), CgroupError> {
        self.driver.kill_whole(&self.dirs)
    }

    /// Denies every device but these.
    pub fn allow_devices(&self, rules: &[DeviceRule]) -> Result<Enforcement, CgroupError> {
        self.driver.allow_devices(&self.dirs, rules)
    }

    /// Denies every device but those of a program that is loaded already; false where programs do not decide.
    pub fn obey(&self, program: &DeviceProgram) -> Result<bool, CgroupError> {
        match self.dirs.unified() {
            Some(dir) if self.dirs.of(Controller::Devices).is_none() => program.put(dir).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Moves the calling process, which was cloned into [`Group::clone_into`], into the rest of it. It has one thread.
    pub fn complete(&self) -> Result<(), CgroupError> {
        self.dirs.v1.iter().try_for_each(|dir| files::write(dir.fd.as_fd(), MEMBERS, "0"))
    }

    /// Moves another process in.
    pub fn attach(&self, pid: u32) -> Result<(), CgroupError> {
        self.driver.attach(&self.dirs, pid)
    }

    /// The descriptor for `CLONE_INTO_CGROUP`: on v2 that alone puts a process into all of it, on a hybrid host there is more to
    /// [join](Group::complete). A process that exists gets into a group of the unified hierarchy by a lock of the whole host only.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.dirs.unified()
    }

    /// SIGKILL for every process in it and below.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.driver.kill(&self.dirs)
    }

    /// Stops every process in it and below.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        self.driver.set_frozen(&self.dirs, true)
    }

    /// Continues them.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.driver.set_frozen(&self.dirs, false)
    }

    /// Resource use now.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        self.driver.usage(&self.dirs)
    }

    /// How many of its processes the kernel's OOM killer has ended since it was made.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        self.driver.oom_kills(&self.dirs)
    }

    /// The processes in it and below it, by their numbers in the caller's PID namespace.
    pub fn processes(&self) -> Result<Vec<rustix::process::Pid>, CgroupError> {
        self.dirs.of_shim().next().map_or_else(|| Ok(Vec::new()), super::v1::members)
    }

    /// Processes live in it or below it.
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        match self.dirs.unified() {
            Some(dir) => Ok(files::read_keyed(dir, "cgroup.events", "populated")? == Some(1)),
            None => self.dirs.all().try_fold(false, |found, dir| Ok(found || remove::has_members(dir)?)),
        }
    }
}
