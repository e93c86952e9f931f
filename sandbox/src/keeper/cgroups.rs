//! The pods' directories in the host's v1 hierarchies, for containers to be shown their own of.
//!
//! Programs that size themselves by their limits want to see more than is limited: a JVM honours a memory limit only where
//! it finds the controllers `cpu`, `cpuacct`, `cpuset` and `memory`, each mounted and its own group in it. A group more for
//! each pod costs each launch time and each idle pod memory, so in hierarchies of which pods have no group of their own the
//! keeper itself is in PARENT, and with it all that it forks. Containers see that one.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::{KeeperError, Step};
use crate::cgroup::{Controller, Hierarchy, Layout, Tree};
use crate::shim::legacy_hierarchies;
use crate::sys::{mount, say};

/// The pods' directory of one hierarchy.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// The hierarchy's controllers, separated by commas, as /proc/self/cgroup has them.
    pub(super) name: String,
    /// A detached bind of it, read-only.
    pub(super) mounted: OwnedFd,
}

/// Those of all hierarchies that have `parent`, which the process enters where that means nothing but to be seen there; none
/// on a v2 host. To be called while the host's mounts are there.
pub(super) fn clones(parent: &str) -> Result<Vec<Cgroups>, KeeperError> {
    // What the agent uses is not known here: there, `parent` is when the keeper is started.
    let layout = Layout::detect_all()
        .map_err(|error| std::io::Error::other(error.to_string()))
        .step("search for control groups")?;
    let text = std::fs::read_to_string("/proc/self/cgroup").step("read of /proc/self/cgroup")?;
    let mut found = Vec::new();
    for hierarchy in &layout.v1 {
        let named = legacy_hierarchies(&text, std::slice::from_ref(&hierarchy.controllers)).into_iter().next();
        let Some(name) = named else { continue };
        if is_for_show(hierarchy)
            && let Err(error) = Tree::join(hierarchy, parent)
        {
            // Nothing is limited by it.
            let controllers = hierarchy.controllers.join(",");
            let error = say::chain(&error);
            tracing::warn!(controllers, error, "containers will not see their group of these controllers");
        }
        if let Some(mounted) = bind(&hierarchy.path.join(parent))? {
            found.push(Cgroups { name, mounted });
        }
    }
    Ok(found)
}

/// Whether being in a group of it says on which CPUs one has run and may run, and limits nothing by itself.
fn is_for_show(hierarchy: &Hierarchy) -> bool {
    let seen = |name: &String| matches!(Controller::from_name(name), Some(Controller::Cpuset | Controller::Cpuacct));
    hierarchy.controllers.iter().all(seen)
}

fn bind(directory: &Path) -> Result<Option<OwnedFd>, KeeperError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match openat(CWD, directory, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.step(format!("open of {}", directory.display()))?,
    };
    let bound = mount::clone_tree(opened, "", false).step(format!("bind of {}", directory.display()))?;
    mount::set(&bound, mount::RDONLY | mount::NOSUID | mount::NODEV | mount::NOEXEC, false)
        .step(format!("attributes of {}", directory.display()))?;
    Ok(Some(bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_limits_nothing_is_for_show() {
        let of = |names: &[&str]| Hierarchy {
            controllers: names.iter().map(|name| (*name).to_owned()).collect(),
            path: "/c".into(),
        };
        assert!(is_for_show(&of(&["cpuset"])) && is_for_show(&of(&["cpuacct"])));
        assert!(!is_for_show(&of(&["cpu", "cpuacct"])) && !is_for_show(&of(&["memory"])));
    }
}
