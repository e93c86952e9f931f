//! What differs between hosts.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::CgroupError;
use super::devices::DeviceRule;
use crate::contract::Usage;
use crate::spec::Resources;

/// A resource controller that this crate uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Weights and quotas.
    Cpu,
    /// CPU time used (v1; part of the core on v2).
    Cpuacct,
    /// On which CPUs; only where it is asked for.
    Cpuset,
    /// Memory limits and use.
    Memory,
    /// Process counts.
    Pids,
    /// Huge pages, only where the host has any; on hybrid hosts as a rule on the unified hierarchy.
    Hugetlb,
    /// Device allow-lists (v1; an eBPF program on v2).
    Devices,
    /// Freezing (v1 without a unified mount; part of the core on v2).
    Freezer,
}

impl Controller {
    /// All of them, in the order in which a process is attached: memory last, so that what it allocates on the way is
    /// charged outside the limit.
    pub const ALL: [Self; 8] =
        [Self::Cpu, Self::Cpuacct, Self::Cpuset, Self::Pids, Self::Hugetlb, Self::Devices, Self::Freezer, Self::Memory];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Hugetlb => "hugetlb",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
        }
    }

    /// By the kernel's name; `None` for those that this crate does not use.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|controller| controller.name() == name)
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a rule is really enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// By the kernel.
    Kernel,
    /// Not by this host's control groups; the other walls (`nodev`, no `CAP_MKNOD`, user namespace) stand alone.
    None,
}

/// One cgroup's directories: a file descriptor in each hierarchy.
#[derive(Debug)]
pub struct Dirs {
    pub(super) unified: Option<UnifiedDir>,
    /// v2, of a pod: the group below that its containers are in, and whose memory is limited. The shim is beside it: a pod that
    /// is full, as of files in memory that no end of a process frees, has nothing left for what the shim must do to say so; the
    /// kernel would end it, alone as it is.
    pub(super) containers: Option<OwnedFd>,
    pub(super) v1: Vec<V1Dir>,
}

/// A directory of the unified hierarchy.
#[derive(Debug)]
pub(super) struct UnifiedDir {
    pub(super) fd: OwnedFd,
    /// Controllers in use there; on hybrid hosts at most that of huge pages.
    pub(super) controllers: Vec<Controller>,
}

/// A directory of one v1 hierarchy.
#[derive(Debug)]
pub(super) struct V1Dir {
    pub(super) fd: OwnedFd,
    pub(super) controllers: Vec<Controller>,
}

impl Dirs {
    /// Where a controller's files are.
    pub(super) fn of(&self, controller: Controller) -> Option<BorrowedFd<'_>> {
        let unified = self.unified.iter().find(|dir| dir.controllers.contains(&controller)).map(|dir| dir.fd.as_fd());
        let unified = match (&self.containers, controller) {
            (Some(containers), Controller::Memory) => unified.map(|_| containers.as_fd()),
            _ => unified,
        };
        unified.or_else(|| self.v1.iter().find(|dir| dir.controllers.contains(&controller)).map(|dir| dir.fd.as_fd()))
    }

    /// Whether a controller's files are those of cgroup v1.
    pub(super) fn is_v1(&self, controller: Controller) -> bool {
        !self.unified.iter().any(|dir| dir.controllers.contains(&controller))
    }

    /// As [`Dirs::of`], for a limit that was asked.
    pub(super) fn needed(&self, controller: Controller) -> Result<BorrowedFd<'_>, CgroupError> {
        self.of(controller).ok_or(CgroupError::ControllerMissing { controller })
    }

    /// The unified hierarchy's directory.
    pub(super) fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|dir| dir.fd.as_fd())
    }

    /// The unified hierarchy's directory that leaves are made in.
    pub(super) fn of_leaves(&self) -> Option<BorrowedFd<'_>> {
        self.containers.as_ref().map(AsFd::as_fd).or_else(|| self.unified())
    }

    /// As [`Dirs::all`], without v1's memory controller where that has a hierarchy for itself.
    pub(super) fn of_shim(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.unified().into_iter().chain(self.v1_of_shim())
    }

    /// v1's part of that.
    pub(super) fn v1_of_shim(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.v1.iter().filter(|dir| dir.controllers != [Controller::Memory]).map(|dir| dir.fd.as_fd())
    }

    /// Every hierarchy's directory, the unified one first.
    pub(super) fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.unified().into_iter().chain(self.v1.iter().map(|dir| dir.fd.as_fd()))
    }
}

/// What each kind of host does its own way; chosen at run time. All calls are about one cgroup, given by its
/// directories.
pub trait Driver: Send + Sync + fmt::Debug {
    /// Sets limits. `fresh`: the cgroup was just made, so what is `None` need not be reset.
    fn apply(&self, dirs: &Dirs, resources: &Resources, fresh: bool) -> Result<(), CgroupError>;
    /// When the OOM killer takes one of its processes, it takes all of them. For a container; never for a pod, all of
    /// whose containers would go.
    fn kill_whole(&self, dirs: &Dirs) -> Result<(), CgroupError>;
    /// Denies every device but these.
    fn allow_devices(&self, dirs: &Dirs, rules: &[DeviceRule]) -> Result<Enforcement, CgroupError>;
    /// Moves a process (0: the caller) in.
    fn attach(&self, dirs: &Dirs, pid: u32) -> Result<(), CgroupError>;
    /// SIGKILL for every process in it and below.
    fn kill(&self, dirs: &Dirs) -> Result<(), CgroupError>;
    /// Stops or continues every process in it and below.
    fn set_frozen(&self, dirs: &Dirs, frozen: bool) -> Result<(), CgroupError>;
    /// Resource use now.
    fn usage(&self, dirs: &Dirs) -> Result<Usage, CgroupError>;
    /// How many of its processes the kernel's OOM killer has ended.
    fn oom_kills(&self, dirs: &Dirs) -> Result<u64, CgroupError>;
}
