//! Three mount namespaces with next to nothing in them: one for the keeper, one that shims start from, one that stubs do.
//!
//! Copying a mount namespace takes time in proportion to its mounts (27 us with few, 1.2 ms with a thousand), and whatever
//! is in it is kept from being unmounted elsewhere. So none has anything of the host's, and only the keeper's has layers.
//!
//! ```text
//!  the template: what a shim starts from, and its root afterwards ([`crate::shim::own_root`])
//!    /        tmpfs, read-only: empty directories and a null device, for all shims of the host
//!    /proc    empty: each shim mounts its own
//!    /parts   the same tmpfs once more, without devices
//!    /cgroups the pods' directory of each v1 hierarchy, read-only
//!  the stage: what a stub starts from ([`crate::shim::stub::stage`])
//!    /        of the same tmpfs the directories for a container's mounts, read-only
//! ```

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, chmodat, makedev, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::cgroups::{self, Cgroups};
use super::{KeeperError, Step};
use crate::shim::own_root;
use crate::sys::mount;

/// Where layers are mounted in the keeper's namespace.
pub(super) const LAYERS: &str = "/layers";

/// What a shim is made with.
#[derive(Debug)]
pub(super) struct Spaces {
    /// The mount namespace that it starts from.
    pub(super) template: OwnedFd,
    /// The one that stubs start from.
    pub(super) stage: OwnedFd,
    /// A /proc of the keeper's PID namespace, attached nowhere: from below it nothing else is to be reached.
    pub(super) proc: OwnedFd,
    /// The control groups that the keeper is in, as /proc/self/cgroup tells them.
    pub(super) groups: String,
}

/// Moves the process into a namespace of its own and gives what shims are made with. Paths of the host are gone afterwards;
/// descriptors opened before go on working.
///
/// `cgroup_parent`: below which control group pods are.
pub(super) fn enter(cgroup_parent: Option<&str>) -> Result<Spaces, KeeperError> {
    unshare()?;
    let cgroups = cgroup_parent.map(cgroups::clones).transpose()?.unwrap_or_default();
    let groups = std::fs::read_to_string("/proc/self/cgroup").step("read of /proc/self/cgroup")?;
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
    let old = openat(CWD, "/", directory, Mode::empty()).step("open of the host's root")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).step("privacy of mounts")?;
    let strict = mount::NOSUID | mount::NODEV | mount::NOEXEC;
    let root = make_root(&cgroups)?;
    mount::attach(&root, &old).step("mount of the keeper's root")?;
    fchdir(&root).step("change into the keeper's root")?;
    match pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH).step("unmount of the host's root")?,
        // The root is an initramfs, which cannot be moved: it stays beneath, and its submounts go.
        Err(Errno::INVAL) => rustix::process::chroot(".").step("change of root")?,
        other => other.step("pivot_root of the keeper")?,
    }
    chdir("/").step("change to /")?;
    let make_proc = || mount::create("proc", &[], strict).step("proc for the keeper");
    let (own, proc) = (make_proc()?, make_proc()?);
    let parts = mount::clone_tree(&root, own_root::PARTS_PATH.trim_start_matches('/'), false)
        .step("clone of the shims' directories")?;
    mount::set(&parts, strict, false).step("attributes of the shims' directories")?;
    attach(&parts, own_root::PARTS_PATH)?;
    for Cgroups { name, mounted } in &cgroups {
        attach(mounted, &format!("{}/{name}", own_root::CGROUPS))?;
    }
    let present = |what: &str| {
        openat(&proc, "self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step(format!("open of {what}"))
    };
    let template = present("the template")?;
    unshare()?;
    set_the_stage(strict)?;
    let stage = present("the stage")?;
    nix::sched::setns(&template, nix::sched::CloneFlags::CLONE_NEWNS).step("return from the stage")?;
    unshare()?;
    attach(&own, own_root::PROC)?;
    let layers = mount::create("tmpfs", &[("mode", Some("0700")), ("size", Some("16m"))], strict)
        .step("tmpfs for the layers' mount points")?;
    attach(&layers, LAYERS)?;
    Ok(Spaces { template, stage, proc, groups })
}

/// Makes the directories for a container's mounts the root of the namespace that the process is in, and all that there is.
fn set_the_stage(attributes: u64) -> Result<(), KeeperError> {
    let directory = openat(CWD, own_root::STAGE, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step("open of the stubs' directories")?;
    let stage = mount::clone_tree(directory, "", false).step("clone of the stubs' directories")?;
    mount::set(&stage, attributes | mount::RDONLY, false).step("attributes of the stubs' root")?;
    attach(&stage, own_root::STUB_ROOT)?;
    fchdir(&stage).step("change into the stubs' root")?;
    pivot_root(".", ".").step("pivot_root of the stubs' root")?;
    unmount(".", UnmountFlags::DETACH).step("unmount of the shims' root")?;
    chdir("/").step("change to /")
}

/// The root of all shims, detached.
fn make_root(cgroups: &[Cgroups]) -> Result<OwnedFd, KeeperError> {
    // With devices, for the shims' null device: nobody else comes here.
    let attributes = mount::NOSUID | mount::NOEXEC;
    let root = mount::create("tmpfs", &[("mode", Some("0755")), ("size", Some("4m"))], attributes)
        .step("tmpfs for the shims' root")?;
    let make = |path: &str| {
        let path = path.trim_start_matches('/');
        mkdirat(&root, path, Mode::from_raw_mode(0o555)).step(format!("directory {path} for shims"))
    };
    for path in [LAYERS, own_root::PROC, own_root::POD, own_root::STUB_ROOT, own_root::PARTS_PATH, own_root::CGROUPS] {
        make(path)?;
    }
    for path in own_root::PARTS {
        make(&format!("{}/{path}", own_root::PARTS_PATH))?;
    }
    for number in 0..own_root::MOST_LAYERS {
        make(&format!("{}/{}/{number}", own_root::PARTS_PATH, own_root::LAYERS_PART))?;
    }
    for Cgroups { name, .. } in cgroups {
        make(&format!("{}/{name}", own_root::CGROUPS))?;
        make(&format!("{}/{name}", own_root::CGROUP_HOLDER))?;
        for controller in name.split(',').filter(|controller| controller != name) {
            let link = format!("{}/{controller}", own_root::CGROUP_HOLDER);
            symlinkat(name.as_str(), &root, link.trim_start_matches('/'))
                .step("link to a control group's directory")?;
        }
    }
    let null = own_root::NULL.trim_start_matches('/');
    mknodat(&root, null, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))
        .and_then(|()| chmodat(&root, null, Mode::from_raw_mode(0o666), AtFlags::empty()))
        .step("null device for shims")?;
    // The file system too: who may change mounts changes nothing in what the others have.
    mount::close(&root).step("read-only file system of the shims' root")?;
    mount::set(&root, mount::RDONLY, false).step("read-only root of the shims")?;
    Ok(root)
}

fn attach(mounted: &OwnedFd, path: &str) -> Result<(), KeeperError> {
    let target = openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH, Mode::empty())
        .step(format!("open of {path}"))?;
    mount::attach(mounted, &target).step(format!("mount of {path}"))
}

fn unshare() -> Result<(), KeeperError> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).step("private mount namespace")
}
