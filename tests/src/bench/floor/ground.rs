//! What is made once: a mount namespace with next to nothing in it, the parents of control groups, a filter.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat, unlinkat};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use sandbox::cgroup::DeviceProgram;
use sandbox::seccomp::{self, Program};
use sandbox::spec::Security;
use sandbox::sys::mount;

/// The v1 controllers that our hybrid sandboxes have groups in; a v2 host has the unified mount alone.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The group of all of the floor's.
const PARENT: &str = "nodeless-bench-floor";

/// In the new root: mount points, and the directory that stands for masked ones.
pub(super) const STAGE: &str = "/stage";
pub(super) const EMPTY: &str = "/empty";
const DIRECTORIES: [&str; 6] = [STAGE, EMPTY, "/stage/proc", "/stage/dev", "/stage/sys", "/groups"];

/// See the module.
#[derive(Debug)]
pub(super) struct Ground {
    /// Mounted and attached nowhere.
    pub(super) layer: OwnedFd,
    /// The directory for pods' directories, as a mount that is attached nowhere.
    pub(super) pods: OwnedFd,
    pub(super) hierarchies: Vec<Hierarchy>,
    /// The host's /proc.
    pub(super) proc: OwnedFd,
    pub(super) filter: Program,
    pub(super) security: Security,
    /// Paths that are hidden, without the leading slash, and whether each is a directory.
    pub(super) masked: Vec<(String, bool)>,
    pub(super) devices: Option<OwnedFd>,
    /// The mount namespaces of the host and of the floor.
    home: OwnedFd,
    own: OwnedFd,
}

/// Where control groups are made.
#[derive(Debug)]
pub(super) struct Hierarchy {
    pub(super) name: &'static str,
    /// [`PARENT`]'s directory.
    pub(super) parent: OwnedFd,
    above: OwnedFd,
}

impl Ground {
    /// Moves the process to it.
    pub(super) fn make(layer: &Path, dir: &Path) -> Result<Self> {
        let home = namespace()?;
        unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("private mounts")?;
        let source = layer.to_str().context("a layer's path is text")?;
        let layer = mount::create("erofs", &[("source", Some(source))], mount::RDONLY).context("mount of the layer")?;
        let directory = open(CWD, dir)?;
        let pods = mount::clone_tree(directory, "", false).context("clone of the pods' directory")?;
        let own = namespace()?;
        let hierarchies = hierarchies()?;
        let proc = open(CWD, Path::new("/proc"))?;
        let security = Security::default();
        let filter = seccomp::program(&security.seccomp, &security.capabilities).context("the profile has a filter")?;
        let masked = masked(&security);
        let devices = DeviceProgram::usual().context("the device program")?;
        let devices = devices.map(|program| program.as_fd().try_clone_to_owned()).transpose()?;

        let root = mount::create("tmpfs", &[("mode", Some("0755"))], 0).context("mount of the root")?;
        for directory in DIRECTORIES {
            mkdirat(&root, &directory[1..], Mode::from_raw_mode(0o755)).context("a directory of the root")?;
        }
        mknodat(&root, "null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))
            .context("a null device")?;
        mount::attach(&root, open(CWD, Path::new("/"))?).context("mount on /")?;
        for hierarchy in hierarchies.iter().filter(|hierarchy| !hierarchy.name.is_empty()) {
            let name = format!("groups/{}", hierarchy.name);
            mkdirat(&root, &name, Mode::from_raw_mode(0o755)).context("a directory of control groups")?;
            let groups = mount::clone_tree(&hierarchy.parent, "", false).context("clone of control groups")?;
            mount::set(&groups, mount::RDONLY, false).context("read-only control groups")?;
            mount::attach(&groups, open(&root, Path::new(&name))?).context("mount of control groups")?;
        }
        rustix::process::fchdir(&root).context("change into the root")?;
        rustix::process::pivot_root(".", ".").context("pivot_root")?;
        unmount(".", UnmountFlags::DETACH).context("unmount of the old root")?;
        rustix::process::chdir("/").context("change to /")?;
        Ok(Self { layer, pods, hierarchies, proc, filter, security, masked, devices, home, own })
    }

    /// Where the host's programs are.
    pub(super) fn at_home<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let enter = |space: &OwnedFd| setns(space, CloneFlags::CLONE_NEWNS).context("enter a mount namespace");
        enter(&self.home)?;
        let result = body();
        enter(&self.own)?;
        result
    }

    /// Removes what it has on the host.
    pub(super) fn remove(self) -> Result<()> {
        for hierarchy in self.hierarchies {
            unlinkat(&hierarchy.above, PARENT, AtFlags::REMOVEDIR).context("removal of a control group")?;
        }
        Ok(())
    }
}

/// This process's mount namespace.
fn namespace() -> Result<OwnedFd> {
    openat(CWD, "/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("open of a mount namespace")
}

fn hierarchies() -> Result<Vec<Hierarchy>> {
    let root = Path::new("/sys/fs/cgroup");
    let unified = if root.join("cgroup.procs").exists() { root.to_owned() } else { root.join("unified") };
    let legacy = CONTROLLERS.into_iter().map(|name| (name, root.join(name)));
    let present = legacy.filter(|(_, path)| path.is_dir()).chain([("", unified)]);
    present
        .map(|(name, path)| {
            let above = open(CWD, &path)?;
            match mkdirat(&above, PARENT, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                other => other.with_context(|| format!("a control group in {}", path.display()))?,
            }
            Ok(Hierarchy { name, parent: open(&above, Path::new(PARENT))?, above })
        })
        .collect()
}

/// What there is of the masked paths. Looked for here once, not in each sandbox.
fn masked(security: &Security) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for path in &security.masked_paths {
        let Some((before, after)) = path.split_once('*') else {
            found.push(path.clone());
            continue;
        };
        let (directory, start) = before.rsplit_once('/').unwrap_or(("", before));
        let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names =
            names.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(start));
        found.extend(names.map(|name| format!("{directory}/{name}{after}")));
    }
    let known = |path: String| std::fs::metadata(&path).ok().map(|stat| (path[1..].to_owned(), stat.is_dir()));
    found.into_iter().filter_map(known).collect()
}

/// A directory, by its path only.
pub(super) fn open(directory: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(directory, path, flags, Mode::empty()).with_context(|| format!("open of {}", path.display()))
}
