//! The pods' directories in the host's v1 hierarchies, for containers to be shown their own of.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::{KeeperError, Step};
use crate::cgroup::Layout;
use crate::shim::legacy_hierarchies;
use crate::sys::mount;

/// The pods' directory of one hierarchy.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// The hierarchy's controllers, separated by commas, as /proc/self/cgroup has them.
    pub(super) name: String,
    /// A detached bind of it, read-only.
    pub(super) mounted: OwnedFd,
}

/// Those of all hierarchies that have `parent`; none on a v2 host. To be called while the host's mounts are there.
pub(super) fn clones(parent: &str) -> Result<Vec<Cgroups>, KeeperError> {
    // Whether the agent uses CPU sets is not known here: where it does, their hierarchy has `parent` too.
    let layout = Layout::detect_with_cpusets()
        .map_err(|error| std::io::Error::other(error.to_string()))
        .step("search for control groups")?;
    let text = std::fs::read_to_string("/proc/self/cgroup").step("read of /proc/self/cgroup")?;
    let mut found = Vec::new();
    for hierarchy in &layout.v1 {
        let named = legacy_hierarchies(&text, std::slice::from_ref(&hierarchy.controllers)).into_iter().next();
        let Some(name) = named else { continue };
        if let Some(mounted) = bind(&hierarchy.path.join(parent))? {
            found.push(Cgroups { name, mounted });
        }
    }
    Ok(found)
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
