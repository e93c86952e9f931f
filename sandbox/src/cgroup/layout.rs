//! Which hierarchies the host has, and where.

use std::path::{Path, PathBuf};

use cgroups_rs::fs::hierarchies::mountinfo_self;
use serde::{Deserialize, Serialize};

use super::{CgroupError, Controller, DeviceProgram, huge_pages};

/// The host's hierarchies as data. Serialisable, so that one finding serves every shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Mount point of the unified (v2) hierarchy.
    pub unified: Option<PathBuf>,
    /// v1 hierarchies that this crate uses; empty on a pure v2 host.
    pub v1: Vec<Hierarchy>,
    /// Pods are told on which CPUs to run: the controller for it is used, which costs each of them time and memory.
    #[serde(default)]
    pub cpusets: bool,
}

/// What is to be used besides what every pod needs.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    /// The unified hierarchy takes programs that decide about devices.
    device_programs: bool,
    huge_pages: bool,
    cpusets: bool,
    /// Every hierarchy that an agent or a keeper may have made a directory in.
    all: bool,
}

/// One v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Those of its controllers that this crate uses, by the kernel's names; several when mounted together.
    pub controllers: Vec<String>,
    /// Mount point.
    pub path: PathBuf,
}

impl Hierarchy {
    /// Whether it is this controller's.
    pub fn has(&self, controller: Controller) -> bool {
        self.controllers.iter().any(|name| name == controller.name())
    }
}

impl Layout {
    /// Finds the hierarchies of the running host.
    pub fn detect() -> Result<Self, CgroupError> {
        Self::detect_under(Path::new("/sys/fs/cgroup"), false)
    }

    /// As [`Layout::detect`], for pods that are told on which CPUs to run.
    pub fn detect_with_cpusets() -> Result<Self, CgroupError> {
        Self::detect_under(Path::new("/sys/fs/cgroup"), true)
    }

    /// Finds every hierarchy that pods may have a directory in, whatever this host's agent uses: for those who show them, or
    /// remove what is left in them.
    pub fn detect_all() -> Result<Self, CgroupError> {
        Self::detect_wanted(Path::new("/sys/fs/cgroup"), Wanted { cpusets: true, all: true, ..Wanted::default() })
    }

    /// Finds the hierarchies mounted at or below `root` in the caller's mount namespace.
    pub fn detect_under(root: &Path, cpusets: bool) -> Result<Self, CgroupError> {
        Self::detect_wanted(root, Wanted { cpusets, ..Wanted::default() })
    }

    fn detect_wanted(root: &Path, wanted: Wanted) -> Result<Self, CgroupError> {
        if is_cgroup2(root) {
            return Ok(Self { unified: Some(root.to_owned()), v1: Vec::new(), cpusets: wanted.cpusets });
        }
        let unified = Some(root.join("unified")).filter(|path| is_cgroup2(path));
        let mounts = mountinfo_self()
            .into_iter()
            .filter(|mount| mount.mount_point.starts_with(root))
            .map(|mount| (mount.mount_point, mount.super_opts));
        let device_programs = unified.is_some() && matches!(DeviceProgram::usual(), Ok(Some(_)));
        let layout =
            Self::of_mounts(unified, mounts, &Wanted { device_programs, huge_pages: huge_pages::any(), ..wanted });
        if layout.v1.is_empty() && layout.unified.is_none() {
            return Err(CgroupError::NoHierarchy { root: root.to_owned() });
        }
        Ok(layout)
    }

    /// Chooses among mounts: each controller once, at its first mount. Each hierarchy costs every pod two directories, so
    /// those are left out whose work the unified one does better: the freezer, devices where it takes device programs, and CPU
    /// time, unless that comes with what is needed anyway. Huge pages only when there are any.
    fn of_mounts(
        unified: Option<PathBuf>,
        mounts: impl Iterator<Item = (PathBuf, Vec<String>)>,
        wanted: &Wanted,
    ) -> Self {
        let useful = |controller: Controller, together: usize| match controller {
            _ if wanted.all => true,
            Controller::Freezer => unified.is_none(),
            Controller::Devices => !wanted.device_programs,
            Controller::Cpuacct => unified.is_none() || together > 1,
            Controller::Hugetlb => wanted.huge_pages,
            Controller::Cpuset => wanted.cpusets,
            Controller::Cpu | Controller::Memory | Controller::Pids => true,
        };
        let mut taken: Vec<Controller> = Vec::new();
        let mut v1 = Vec::new();
        for (path, options) in mounts {
            let mounted: Vec<Controller> = options
                .iter()
                .filter_map(|option| Controller::from_name(option))
                .filter(|c| !taken.contains(c))
                .collect();
            let fresh: Vec<Controller> =
                mounted.iter().copied().filter(|controller| useful(*controller, mounted.len())).collect();
            if fresh.is_empty() {
                continue;
            }
            taken.extend(&fresh);
            v1.push(Hierarchy { controllers: fresh.iter().map(|c| c.name().to_owned()).collect(), path });
        }
        // Attach order: see `Controller::ALL`.
        v1.sort_by_key(|hierarchy| {
            hierarchy
                .controllers
                .iter()
                .filter_map(|name| Controller::from_name(name))
                .max()
                .and_then(|last| Controller::ALL.iter().position(|c| *c == last))
        });
        Self { unified, v1, cpusets: wanted.cpusets }
    }

    /// The host has the unified hierarchy only.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty()
    }
}

fn is_cgroup2(path: &Path) -> bool {
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(list: &[(&str, &str)]) -> Vec<(PathBuf, Vec<String>)> {
        list.iter().map(|(path, options)| (path.into(), options.split(',').map(str::to_owned).collect())).collect()
    }

    #[test]
    fn controllers_mounted_together_share_a_hierarchy_and_others_are_left_out() {
        let found = mounts(&[
            ("/c/memory", "rw,memory"),
            ("/c/cpu,cpuacct", "rw,cpu,cpuacct"),
            ("/c/net_cls", "rw,net_cls"),
            ("/c/systemd", "rw,xattr,name=systemd"),
        ]);
        let layout = Layout::of_mounts(Some("/c/unified".into()), found.into_iter(), &Wanted::default());
        let names: Vec<_> = layout.v1.iter().map(|h| (h.path.to_str().unwrap(), h.controllers.join(","))).collect();
        assert_eq!(names, [("/c/cpu,cpuacct", "cpu,cpuacct".to_owned()), ("/c/memory", "memory".to_owned())]);
        assert!(!layout.is_v2());
    }

    #[test]
    fn the_v1_freezer_is_used_only_without_a_unified_mount() {
        let found = mounts(&[("/c/freezer", "rw,freezer")]);
        assert!(Layout::of_mounts(Some("/u".into()), found.clone().into_iter(), &Wanted::default()).v1.is_empty());
        assert_eq!(Layout::of_mounts(None, found.into_iter(), &Wanted::default()).v1.len(), 1);
    }

    #[test]
    fn cpu_time_is_counted_by_the_unified_mount_unless_its_hierarchy_is_used_anyway() {
        let names = |mounts: &[(&str, &str)], unified: Option<&str>| -> Vec<String> {
            let found =
                Layout::of_mounts(unified.map(PathBuf::from), self::mounts(mounts).into_iter(), &Wanted::default());
            found.v1.iter().map(|hierarchy| hierarchy.controllers.join(",")).collect()
        };
        let apart = [("/c/cpu", "rw,cpu"), ("/c/cpuacct", "rw,cpuacct")];
        assert_eq!(names(&apart, Some("/u")), ["cpu"]);
        assert_eq!(names(&apart, None), ["cpu", "cpuacct"]);
        assert_eq!(names(&[("/c/both", "rw,cpu,cpuacct")], Some("/u")), ["cpu,cpuacct"]);
    }

    #[test]
    fn the_devices_hierarchy_is_used_only_where_the_unified_mount_takes_no_programs() {
        let found = mounts(&[("/c/devices", "rw,devices")]);
        let programs = Wanted { device_programs: true, ..Wanted::default() };
        assert!(Layout::of_mounts(Some("/u".into()), found.clone().into_iter(), &programs).v1.is_empty());
        assert_eq!(Layout::of_mounts(Some("/u".into()), found.into_iter(), &Wanted::default()).v1.len(), 1);
    }

    #[test]
    fn the_huge_pages_hierarchy_is_used_only_where_there_are_huge_pages() {
        let found = mounts(&[("/c/hugetlb", "rw,hugetlb")]);
        assert!(Layout::of_mounts(None, found.clone().into_iter(), &Wanted::default()).v1.is_empty());
        assert_eq!(
            Layout::of_mounts(None, found.into_iter(), &Wanted { huge_pages: true, ..Wanted::default() }).v1[0]
                .controllers,
            ["hugetlb"]
        );
    }

    #[test]
    fn the_cpuset_hierarchy_is_used_only_when_asked_for() {
        let found = mounts(&[("/c/cpuset", "rw,cpuset"), ("/c/memory", "rw,memory")]);
        assert_eq!(Layout::of_mounts(None, found.clone().into_iter(), &Wanted::default()).v1.len(), 1);
        let layout = Layout::of_mounts(None, found.into_iter(), &Wanted { cpusets: true, ..Wanted::default() });
        assert_eq!(layout.v1.iter().map(|h| h.controllers.join(",")).collect::<Vec<_>>(), ["cpuset", "memory"]);
    }

    #[test]
    fn all_hierarchies_are_all_that_pods_may_be_in() {
        let found = mounts(&[
            ("/c/cpuacct", "rw,cpuacct"),
            ("/c/cpuset", "rw,cpuset"),
            ("/c/freezer", "rw,freezer"),
            ("/c/net_cls", "rw,net_cls"),
        ]);
        let all = Wanted { cpusets: true, all: true, ..Wanted::default() };
        let layout = Layout::of_mounts(Some("/u".into()), found.into_iter(), &all);
        assert_eq!(
            layout.v1.iter().map(|h| h.controllers.join(",")).collect::<Vec<_>>(),
            ["cpuacct", "cpuset", "freezer"]
        );
    }

    #[test]
    fn a_controller_mounted_twice_is_used_once() {
        let found = mounts(&[("/c/pids", "rw,pids"), ("/c/other", "rw,pids")]);
        let layout = Layout::of_mounts(None, found.into_iter(), &Wanted::default());
        assert_eq!(layout.v1.len(), 1);
        assert_eq!(layout.v1[0].path, Path::new("/c/pids"));
    }

    #[test]
    fn a_place_without_hierarchies_is_told_by_name() {
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(Layout::detect_under(empty.path(), false), Err(CgroupError::NoHierarchy { .. })));
    }
}
