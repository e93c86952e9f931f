//! The child that becomes the container's program.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, chownat, makedev, mkdirat, mknodat, openat, symlinkat};
use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space,
    move_into_thread_name_spaces, remove_capability_from_bounding_set, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use sandbox::sys::filter::install;
use sandbox::sys::mount;

use super::ground::{EMPTY, Ground, STAGE, open};
use super::raw::{self, Run, Stack};
use super::slot::read_byte;
use crate::bench::oci::UID_BASE;

const STRICT: u64 = mount::NOSUID | mount::NODEV | mount::NOEXEC;

const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// What it is given.
#[derive(Debug)]
pub(super) struct Stub<'a> {
    pub(super) ground: &'a Ground,
    /// Its directory's name.
    pub(super) pod: String,
    /// The container's group in each hierarchy.
    pub(super) leaves: Vec<OwnedFd>,
    /// A process in the sandbox's network, IPC and UTS namespaces.
    pub(super) spaces: OwnedFd,
    pub(super) user: OwnedFd,
    /// See [`memory`].
    pub(super) memory: OwnedFd,
    pub(super) order: OwnedFd,
    pub(super) out: OwnedFd,
    pub(super) ready: OwnedFd,
    /// Given with the order.
    pub(super) args: Vec<CString>,
}

impl Run for Stub<'_> {
    fn run(&mut self) -> Result<()> {
        self.join()?;
        unshare(CloneFlags::CLONE_NEWCGROUP).context("own view of control groups")?;
        let spaces = ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
        move_into_thread_name_spaces(self.spaces.as_fd(), spaces).context("the sandbox's namespaces")?;
        rustix::system::sethostname(self.pod.as_bytes()).context("host name")?;
        let mounts = self.stage()?;
        rustix::io::write(&self.ready, b"r").context("say that it stands by")?;
        ensure!(read_byte(&self.order)?, "there is no order");
        self.place(mounts)?;
        rustix::stdio::dup2_stdout(&self.out).context("standard output")?;
        self.confine(&self.user)?;
        execute(&self.args)?;
        Ok(())
    }
}

impl Stub<'_> {
    /// Joins the container's control groups: as a thread of v1's, which takes no lock of the whole host; the unified hierarchy takes
    /// processes only (a clone into it would do without, and has no wrapper for a child that shares memory).
    fn join(&self) -> Result<()> {
        let own = |name: &str| if name.is_empty() { "cgroup.procs" } else { "tasks" };
        let mut groups = self.ground.hierarchies.iter().zip(&self.leaves);
        groups.try_for_each(|(hierarchy, leaf)| super::slot::write(leaf, own(hierarchy.name), "0"))
    }

    /// /proc, /dev and /sys, masked and protected.
    fn stage(&self) -> Result<[OwnedFd; 3]> {
        let stage = open(CWD, Path::new(STAGE))?;
        let proc = mount::create("proc", &[], STRICT).context("mount of /proc")?;
        attach(&proc, &stage, "proc")?;
        let dev = self.dev(&stage)?;
        let sys = mount::create("sysfs", &[], STRICT | mount::RDONLY).context("mount of /sys")?;
        attach(&sys, &stage, "sys")?;
        self.groups(&sys)?;
        for path in &self.security().readonly_paths {
            let Ok(target) = openat(&stage, &path[1..], OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
                continue;
            };
            let copy = mount::clone_tree(&target, "", true).context("copy of a path")?;
            mount::set(&copy, mount::RDONLY, true).context("read-only copy of a path")?;
            mount::attach(&copy, &target).context("mount of a read-only path")?;
        }
        let (empty, null) =
            (open(CWD, Path::new(EMPTY))?, openat(&dev, "null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
        for (path, directory) in &self.ground.masked {
            let target =
                openat(&stage, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("open of a masked path")?;
            let cover =
                mount::clone_tree(if *directory { &empty } else { &null }, "", false).context("cover of a path")?;
            mount::attach(&cover, &target).context("masking of a path")?;
        }
        Ok([proc, dev, sys])
    }

    /// /dev, and what is mounted in it.
    fn dev(&self, stage: &OwnedFd) -> Result<OwnedFd> {
        let memory = &self.memory;
        let dev = mount::clone_tree(memory, "dev", false).context("bind of /dev")?;
        attach(&dev, stage, "dev")?;
        let group = (UID_BASE + 5).to_string();
        let options =
            [("newinstance", None), ("ptmxmode", Some("0666")), ("mode", Some("0620")), ("gid", Some(group.as_str()))];
        let pts = mount::create("devpts", &options, mount::NOSUID | mount::NOEXEC).context("mount of /dev/pts")?;
        attach(&pts, &dev, "pts")?;
        let shm = mount::clone_tree(memory, "shm", false).context("bind of /dev/shm")?;
        mount::set(&shm, STRICT, false).context("attributes of /dev/shm")?;
        attach(&shm, &dev, "shm")?;
        attach(&mount::create("mqueue", &[], STRICT).context("mount of /dev/mqueue")?, &dev, "mqueue")?;
        Ok(dev)
    }

    /// The container's own groups below /sys.
    fn groups(&self, sys: &OwnedFd) -> Result<()> {
        let legacy: Vec<_> = self.ground.hierarchies.iter().filter(|hierarchy| !hierarchy.name.is_empty()).collect();
        if legacy.is_empty() {
            let unified = mount::create("cgroup2", &[], STRICT | mount::RDONLY).context("mount of /sys/fs/cgroup")?;
            return attach(&unified, sys, "fs/cgroup");
        }
        let holder = mount::clone_tree(CWD, "/groups", false).context("clone of the groups' directory")?;
        attach(&holder, sys, "fs/cgroup")?;
        for hierarchy in legacy {
            let own = format!("/groups/{}/{}/main", hierarchy.name, self.pod);
            let own = mount::clone_tree(CWD, &own, false).context("bind of a control group")?;
            attach(&own, &holder, hierarchy.name)?;
        }
        Ok(())
    }

    /// The root, with those moved into it.
    fn place(&self, [proc, dev, sys]: [OwnedFd; 3]) -> Result<()> {
        let layer = mount::clone_tree(&self.ground.layer, "", false).context("clone of the layer")?;
        mount::idmap(&layer, &self.user, mount::RDONLY | mount::NODEV).context("id mapping of the layer")?;
        let overlay = mount::Overlay::open().context("context of the overlay")?;
        ensure!(overlay.lower(&layer).context("layer of the overlay")?, "this kernel takes no layers by descriptor");
        let pod = open(&self.ground.pods, Path::new(&self.pod))?;
        own(&pod, "upper")?;
        let root = overlay.mount(open(&pod, Path::new("upper"))?, open(&pod, Path::new("work"))?);
        let root = root.context("mount of the overlay")?;
        mount::attach(&root, open(CWD, Path::new("/"))?).context("mount on /")?;
        for (mounted, name) in [(proc, "proc"), (dev, "dev"), (sys, "sys")] {
            attach(&mounted, &root, name)?;
        }
        rustix::process::fchdir(&root).context("change into the root")?;
        rustix::process::chroot(".").context("change of root")
    }

    /// To the container's user.
    fn confine(&self, user: &OwnedFd) -> Result<()> {
        rustix::process::setsid().context("own session")?;
        setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: Some(1024) })
            .context("limit of open files")?;
        setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) }).context("limit of core files")?;
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User)).context("the user namespace")?;
        set_thread_groups(&[]).context("groups")?;
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).context("group")?;
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).context("user")?;
        let names = self.security().capabilities.iter();
        let kept =
            names.filter_map(|name| CapabilitySet::from_name(name.strip_prefix("CAP_")?)).collect::<CapabilitySet>();
        for capability in CapabilitySet::all().difference(kept).iter() {
            // Those that the kernel does not know.
            let _ = remove_capability_from_bounding_set(capability);
        }
        install(&self.ground.filter).context("filter")?;
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).context("capabilities")
    }

    fn security(&self) -> &sandbox::spec::Security {
        &self.ground.security
    }
}

/// The pod's file system in memory, with its /dev and its shared memory, attached nowhere. In the container's group no device may be
/// made.
pub(super) fn memory() -> Result<OwnedFd> {
    let id = UID_BASE.to_string();
    let options =
        [("uid", Some(id.as_str())), ("gid", Some(id.as_str())), ("mode", Some("0755")), ("size", Some("64m"))];
    let memory = mount::create("tmpfs", &options, mount::NOSUID).context("mount of the pod's memory")?;
    for (name, mode) in [("dev", 0o755), ("shm", 0o1777), ("dev/pts", 0o755), ("dev/shm", 0o755), ("dev/mqueue", 0o755)]
    {
        mkdirat(&memory, name, Mode::from_raw_mode(mode)).context("a directory in memory")?;
        own(&memory, name)?;
    }
    let dev = open(&memory, Path::new("dev"))?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(&dev, name, FileType::CharacterDevice, mode, makedev(major, minor)).context("a device")?;
        own(&dev, name)?;
    }
    for (to, name) in LINKS {
        symlinkat(to, &dev, name).context("a link of /dev")?;
        own(&dev, name)?;
    }
    Ok(memory)
}

/// A process beside a running container, and what its child executes.
#[derive(Debug)]
pub(super) struct Beside<'a> {
    pub(super) stub: &'a Stub<'a>,
    pub(super) args: Vec<CString>,
}

impl Beside<'_> {
    /// Goes there, and executes once: the time to the program's end.
    pub(super) fn exec(mut self, init: &OwnedFd) -> Result<Duration> {
        self.stub.join()?;
        move_into_link_name_space(init.as_fd(), Some(LinkNameSpaceType::ProcessID)).context("PID namespace")?;
        let spaces = ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP
            | ThreadNameSpaceType::MOUNT;
        move_into_thread_name_spaces(init.as_fd(), spaces).context("the container's namespaces")?;
        self.stub.confine(&self.stub.user)?;
        let mut stack = Stack::new();
        let begin = Instant::now();
        let child = raw::share(libc::CLONE_VFORK, &mut stack, &mut self)?;
        raw::reap(child)?;
        Ok(begin.elapsed())
    }
}

impl Run for Beside<'_> {
    fn run(&mut self) -> Result<()> {
        execute(&self.args)?;
        Ok(())
    }
}

fn execute(args: &[CString]) -> Result<Infallible> {
    let program: &CStr = args.first().context("a program")?;
    let none: [&CStr; 0] = [];
    match nix::unistd::execve(program, args, &none) {
        Ok(never) => match never {},
        Err(error) => bail!("execve of {program:?}: {error}"),
    }
}

fn attach(mounted: &OwnedFd, directory: &OwnedFd, name: &str) -> Result<()> {
    mount::attach(mounted, open(directory, Path::new(name))?).with_context(|| format!("mount on {name}"))
}

fn own(directory: &OwnedFd, name: &str) -> Result<()> {
    let id = (Some(Uid::from_raw(UID_BASE)), Some(Gid::from_raw(UID_BASE)));
    chownat(directory, name, id.0, id.1, AtFlags::SYMLINK_NOFOLLOW).with_context(|| format!("owner of {name}"))
}
