//! The shim's own root, in which stubs assemble containers: the keeper's template and a /proc of its own.
//!
//! Nothing of the host's paths is reachable from it but the pods' control groups. It is read-only, and one file system for all
//! shims of the host: one costs its own slabs, and in each memory control group of the host a place for what its shrinker
//! counts. A stub begins in it, takes clones of what its container is to have, and goes on in a mount namespace of its own
//! ([`super::stub::stage`]).
//!
//! ```text
//!  /           tmpfs, read-only
//!  /null       a null device
//!  /proc       of the shim's PID namespace (in the template: empty)
//!  /pod        tmpfs, the pod's own: /pod/shm its shared memory, /pod/dev the first container's /dev
//!  /root       where the keeper makes the stubs' root
//!  /parts      directories that stubs mount on or show as empty
//!  /cgroups    the pods' control groups in each v1 hierarchy, read-only
//! ```

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::stub::report::Step;
use crate::protocol::Refusal;
use crate::sys::mount;

/// A null device.
pub(crate) const NULL: &str = "/null";
/// What the pod has of file systems in memory.
pub(crate) const POD: &str = "/pod";
/// The pod's shared memory; or the host's, mounted over it.
pub(crate) const SHM: &str = "/pod/shm";
/// The first container's /dev.
pub(crate) const FIRST_DEV: &str = "/pod/dev";
/// Where the keeper makes the stubs' root.
pub(crate) const STUB_ROOT: &str = "/root";
/// Where each shim mounts its own, and the keeper its own.
pub(crate) const PROC: &str = "/proc";
/// Below it each v1 hierarchy's directory of pods, by the list of its controllers.
pub(crate) const CGROUPS: &str = "/cgroups";
/// The directory that a container sees as /sys/fs/cgroup on v1, with one in it for each hierarchy.
pub(crate) const CGROUP_HOLDER: &str = "/parts/cgroups";
/// Directories of the keeper's that all shims of the host share, read-only.
pub(crate) const PARTS_PATH: &str = "/parts";
/// What there is of them; parents come first.
pub(crate) const PARTS: [&str; 9] = [
    "cgroups",
    "stage",
    "stage/proc",
    "stage/dev",
    "stage/sys",
    "stage/empty",
    LAYERS_PART,
    "stage/writable",
    "stage/root",
];
/// Where a stub attaches layers, each on the directory of its number, on kernels that take them by path only.
pub(crate) const LAYERS_PART: &str = "stage/layers";
/// Layers of an image at most, there: what image builders allow.
pub(crate) const MOST_LAYERS: usize = 128;
/// An empty directory.
pub(crate) const EMPTY: &str = "/parts/stage/empty";
/// The root of the stubs' mount namespaces is a clone of it.
pub(crate) const STAGE: &str = "/parts/stage";

/// What setting up gave.
#[derive(Debug)]
pub(crate) struct OwnRoot {
    /// The mount namespace that stubs start from.
    pub(crate) stage: OwnedFd,
    /// `fdinfo` of this process in a /proc of the keeper's PID namespace: there, PIDs are the host's.
    pub(crate) host_fdinfo: Option<OwnedFd>,
}

/// A /proc of the shim's PID namespace, attached nowhere yet.
pub(crate) fn make_proc() -> Result<OwnedFd, Refusal> {
    mount::create("proc", &[], mount::NOSUID | mount::NODEV | mount::NOEXEC).step("mount of /proc")
}

/// Attaches a mount for the stubs. By path, because before Linux 6.15 only what is attached in one's own mount namespace
/// can be cloned: a stub begins in this one.
pub(crate) fn keep(mounted: &OwnedFd, path: &str) -> Result<(), Refusal> {
    mount::attach(mounted, directory(path)?).step(format!("mount of {path}"))
}

/// A directory of this root, as the calling process has it.
pub(crate) fn directory(path: &str) -> Result<OwnedFd, Refusal> {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step(format!("open of {path}"))
}

/// Opens the null device.
pub(crate) fn null() -> Result<OwnedFd, Refusal> {
    openat(CWD, NULL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open of the null device")
}

impl OwnRoot {
    /// The host's number of the process behind `pidfd`, where the keeper had a /proc that tells.
    pub(crate) fn host_pid(&self, pidfd: &OwnedFd) -> Option<u32> {
        let directory = self.host_fdinfo.as_ref()?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(directory, pidfd.as_raw_fd().to_string(), flags, Mode::empty()).ok()?;
        let mut text = [0; 512];
        let length = rustix::io::read(&file, &mut text).ok()?;
        let text = std::str::from_utf8(text.get(..length)?).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
    }
}
