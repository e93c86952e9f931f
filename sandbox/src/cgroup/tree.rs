//! PARENT in every hierarchy: makes, opens, lists and removes pods.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use super::driver::{Controller, Dirs, UnifiedDir, V1Dir};
use super::group::{Group, Handle, is_name};
use super::layout::{Hierarchy, Layout};
use super::{CONTAINERS, CgroupError, files, huge_pages, remove};
use crate::spec::SandboxId;

/// The directories under which this host's pods have their cgroups.
#[derive(Debug)]
pub struct Tree {
    parent: Group,
}

impl Tree {
    /// Opens PARENT below every hierarchy's mount point, making it (and, on v2, enabling controllers down to it)
    /// where needed. `parent` is a relative path such as `nodeless`, or, for a delegated subtree,
    /// `system.slice/nodeless.service/pods`; only what is missing is written to.
    pub fn open(layout: &Layout, parent: &str) -> Result<Self, CgroupError> {
        let components = components_of(parent)?;
        let mut v1 = Vec::with_capacity(layout.v1.len());
        for hierarchy in &layout.v1 {
            let fd = make_parent(hierarchy, &components)?;
            if hierarchy.has(Controller::Cpuset) {
                // Pods begin with what it has.
                files::write(fd.as_fd(), "cgroup.clone_children", "1")?;
            }
            let controllers = hierarchy.controllers.iter().filter_map(|name| Controller::from_name(name)).collect();
            v1.push(V1Dir { fd, controllers });
        }
        let unified = match &layout.unified {
            None => None,
            Some(path) => {
                let mut fd = open_root(path)?;
                let wanted = wanted(layout);
                for component in &components {
                    enable(fd.as_fd(), &wanted)?;
                    fd = make_child(fd.as_fd(), component)?;
                }
                let controllers = enable(fd.as_fd(), &wanted)?;
                Some(UnifiedDir { fd, controllers })
            }
        };
        let tree = Self { parent: Group::new(parent.to_owned(), Dirs { unified, containers: None, v1 }) };
        tree.warn_of_missing_controllers();
        Ok(tree)
    }

    /// Makes PARENT in one v1 hierarchy and moves the calling process in, for the sake of what it forks afterwards. Of one
    /// whose controllers change nothing for who is in a group, and of which pods need no group of their own.
    pub fn join(hierarchy: &Hierarchy, parent: &str) -> Result<(), CgroupError> {
        let fd = make_parent(hierarchy, &components_of(parent)?)?;
        files::write(fd.as_fd(), "cgroup.procs", "0")
    }

    fn warn_of_missing_controllers(&self) {
        let missing: Vec<&str> = [Controller::Cpu, Controller::Memory, Controller::Pids]
            .into_iter()
            .filter(|controller| self.parent.dirs().of(*controller).is_none())
            .map(Controller::name)
            .collect();
        if !missing.is_empty() {
            tracing::warn!(
                controllers = missing.join(","),
                "host lacks cgroup controllers: such limits will be refused"
            );
        }
    }

    /// Removes PARENT from every hierarchy, once no pod is in it. Its own ancestors stay; removing what does not exist
    /// succeeds.
    pub fn remove(layout: &Layout, parent: &str) -> Result<(), CgroupError> {
        let roots = layout.v1.iter().map(|hierarchy| &hierarchy.path).chain(&layout.unified);
        for root in roots {
            match std::fs::remove_dir(root.join(parent)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(CgroupError::Remove { name: parent.to_owned(), source }),
            }
        }
        Ok(())
    }

    /// Whether the host can protect pods' memory (v2).
    pub fn protects_memory(&self) -> bool {
        self.parent.dirs().unified.as_ref().is_some_and(|dir| dir.controllers.contains(&Controller::Memory))
    }

    /// Protects the memory of all pods together by as much as that of each (v2): what PARENT is not granted, no pod in it
    /// has. To be called after any pod's protection changed.
    pub fn sum_protection(&self) -> Result<(), CgroupError> {
        let Some(unified) = self.parent.dirs().unified.as_ref().filter(|d| d.controllers.contains(&Controller::Memory))
        else {
            return Ok(());
        };
        let parent = unified.fd.as_fd();
        for file in ["memory.min", "memory.low"] {
            let mut sum = 0u64;
            for name in remove::subdirectories(parent)? {
                // One that goes meanwhile protects nothing.
                if let Some(pod) = remove::open_child(parent, &name)? {
                    sum = sum.saturating_add(files::read_number(pod.as_fd(), file).unwrap_or(0));
                }
            }
            if files::read_number(parent, file).ok() != Some(sum) {
                files::write(parent, file, &sum.to_string())?;
            }
        }
        Ok(())
    }

    /// The group that all pods are in.
    pub fn parent(&self) -> &Group {
        &self.parent
    }

    /// Makes what a pod's shim is cloned into, and on v2 with it all of the pod's cgroup: the rest can be made while that is done.
    pub fn begin_pod(&self, id: &SandboxId) -> Result<BegunPod<'_>, CgroupError> {
        let begun = |unified, whole| BegunPod { tree: self, id: id.clone(), unified, whole };
        match &self.parent.dirs().unified {
            Some(_) if self.parent.dirs().v1.is_empty() => {
                let pod = self.create_pod(id)?;
                let leaf = pod.create_shim_leaf()?;
                Ok(begun(None, Some((pod, leaf))))
            }
            _ if !is_name(&id.0) => Err(CgroupError::BadName { name: id.0.clone() }),
            Some(parent) => Ok(begun(Some(make_child(parent.fd.as_fd(), &id.0)?), None)),
            None => Ok(begun(None, None)),
        }
    }

    /// Makes a pod's cgroup, ready to be given leaves. Making what is there already succeeds.
    pub fn create_pod(&self, id: &SandboxId) -> Result<Group, CgroupError> {
        let mut pod = self.parent.create_leaf(&id.0)?;
        if let Some(unified) = &pod.dirs().unified {
            enable(unified.fd.as_fd(), &unified.controllers)?;
            if pod.dirs().v1.is_empty() {
                let containers = make_child(unified.fd.as_fd(), CONTAINERS)?;
                enable(containers.as_fd(), &unified.controllers)?;
                pod.set_containers(containers);
            }
        }
        Ok(pod)
    }

    /// A pod's cgroup.
    pub fn pod(&self, id: &SandboxId) -> Result<Group, CgroupError> {
        let mut pod = self.parent.leaf(&id.0)?;
        // One of an agent that made none has its leaves in the pod's own.
        if let Some(unified) = pod.dirs().unified().filter(|_| pod.dirs().v1.is_empty())
            && let Some(containers) = remove::open_child(unified, CONTAINERS)?
        {
            pod.set_containers(containers);
        }
        Ok(pod)
    }

    /// Every pod that has a cgroup in any hierarchy (so that a half-made or half-removed one is seen too), sorted.
    pub fn pods(&self) -> Result<Vec<SandboxId>, CgroupError> {
        Ok(self.parent.leaves()?.into_iter().map(SandboxId).collect())
    }

    /// Kills what runs in a pod and removes its cgroups, waiting at most `deadline` for the processes to be gone.
    /// Removing what does not exist succeeds; after [`CgroupError::StillInUse`] it may be called again.
    pub fn remove_pod(&self, id: &SandboxId, deadline: Duration) -> Result<(), CgroupError> {
        self.parent.remove_leaf(&id.0, deadline)
    }
}

/// A pod's cgroup on its way.
#[derive(Debug)]
pub struct BegunPod<'a> {
    tree: &'a Tree,
    id: SandboxId,
    /// On a hybrid host.
    unified: Option<OwnedFd>,
    /// On v2: with the leaf that the shim is in.
    whole: Option<(Group, Option<Group>)>,
}

impl BegunPod<'_> {
    /// The descriptor for `CLONE_INTO_CGROUP`.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        let whole = self.whole.as_ref().and_then(|(pod, leaf)| leaf.as_ref().unwrap_or(pod).clone_into());
        whole.or_else(|| self.unified.as_ref().map(AsFd::as_fd))
    }

    /// How the whole of it will be described: see [`Group::lend`].
    pub fn handle(&self) -> Handle {
        let (parent, _) = self.tree.parent.lend();
        let containers = parent.unified.is_some() && parent.v1.is_empty();
        Handle { name: self.id.0.clone(), containers, ..parent }
    }

    /// Makes the rest of it. With it comes what its shim writes `0` to, to be in it: see [`Group::joined_by_shim`].
    pub fn finish(self) -> Result<(Group, Vec<OwnedFd>), CgroupError> {
        let (pod, leaf) = match self.whole {
            Some(whole) => whole,
            None => (self.tree.create_pod(&self.id)?, None),
        };
        let joined = leaf.as_ref().unwrap_or(&pod).joined_by_shim()?;
        Ok((pod, joined))
    }
}

fn components_of(parent: &str) -> Result<Vec<&str>, CgroupError> {
    let components: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
    if components.is_empty() || !components.iter().all(|part| is_name(part)) {
        return Err(CgroupError::BadName { name: parent.to_owned() });
    }
    Ok(components)
}

/// PARENT in a v1 hierarchy, made where it is missing.
fn make_parent(hierarchy: &Hierarchy, components: &[&str]) -> Result<OwnedFd, CgroupError> {
    let mut fd = open_root(&hierarchy.path)?;
    for component in components {
        let child = make_child(fd.as_fd(), component)?;
        if hierarchy.has(Controller::Cpuset) {
            hand_down_cpus(fd.as_fd(), child.as_fd())?;
        }
        fd = child;
    }
    Ok(fd)
}

fn open_root(path: &Path) -> Result<OwnedFd, CgroupError> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| CgroupError::OpenHierarchy { path: path.to_owned(), source: errno.into() })
}

/// v1: a group without CPUs and memory nodes of its own takes no process.
fn hand_down_cpus(parent: BorrowedFd<'_>, child: BorrowedFd<'_>) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if files::read(child, file)?.trim().is_empty() {
            files::write(child, file, files::read(parent, file)?.trim())?;
        }
    }
    Ok(())
}

/// Makes a directory unless it is there, and opens it.
pub(super) fn make_child(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, CgroupError> {
    match mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(CgroupError::Create { name: name.to_owned(), source: errno.into() }),
    }
    remove::open_child(dir, name)?.ok_or_else(|| CgroupError::NotFound { name: name.to_owned() })
}

/// What is used of the unified hierarchy: on a hybrid host the rest is elsewhere, and a host without huge pages has nothing
/// to limit.
fn wanted(layout: &Layout) -> Vec<Controller> {
    let has_huge_pages = huge_pages::any();
    let used = |controller: &Controller| match controller {
        Controller::Hugetlb => has_huge_pages,
        Controller::Cpuset => layout.cpusets,
        _ => layout.is_v2(),
    };
    Controller::ALL.into_iter().filter(used).collect()
}

/// Enables, for the children of a v2 cgroup, those of the wanted controllers that it has. Returns which are then enabled.
fn enable(dir: BorrowedFd<'_>, wanted: &[Controller]) -> Result<Vec<Controller>, CgroupError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let parse = |text: &str| text.split_whitespace().filter_map(Controller::from_name).collect::<Vec<_>>();
    let mut available = parse(&files::read(dir, "cgroup.controllers")?);
    available.retain(|controller| wanted.contains(controller));
    let enabled = parse(&files::read(dir, "cgroup.subtree_control")?);
    let missing: Vec<String> = available.iter().filter(|c| !enabled.contains(c)).map(|c| format!("+{c}")).collect();
    if !missing.is_empty() {
        files::write(dir, "cgroup.subtree_control", &missing.join(" ")).map_err(explain_busy)?;
    }
    Ok(available)
}

fn explain_busy(error: CgroupError) -> CgroupError {
    match error {
        CgroupError::Write { file, value, source } if source.kind() == io::ErrorKind::ResourceBusy => {
            let reason = "processes live in that cgroup itself: delegate a subtree without any";
            CgroupError::Write { file, value, source: io::Error::new(io::ErrorKind::ResourceBusy, reason) }
        }
        other => other,
    }
}
