//! A slot: what does not depend on the container. And its life after that.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, readlinkat_raw, unlinkat};
use rustix::process::{Signal, pidfd_send_signal};
use sandbox::sys::clone;
use sandbox::sys::hold::hold;

use super::ground::{Ground, open};
use super::raw::{self, Child, Stack};
use super::stub::{Beside, Stub, memory};
use crate::bench::host::PATIENCE;
use crate::bench::oci::{self, UID_BASE};

/// The container's group in the pod's.
const LEAF: &str = "main";

/// See the module.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    ground: &'a Ground,
    name: String,
    /// The pod's group in each hierarchy.
    groups: Vec<OwnedFd>,
    child: Option<Child>,
    order: Option<File>,
    out: File,
    stub: Box<Stub<'a>>,
    /// What the child runs on.
    _stack: Stack,
}

impl<'a> Slot<'a> {
    /// Makes it; its stub stands by.
    pub(super) fn make(ground: &'a Ground, name: &str) -> Result<Self> {
        let spaces = clone::NEWUSER | clone::NEWNET | clone::NEWIPC | clone::NEWUTS;
        let holder = hold(spaces).context("namespaces of the sandbox")?;
        let process = holder.child.pid.as_raw_nonzero();
        for map in ["uid_map", "gid_map"] {
            write(&ground.proc, &format!("{process}/{map}"), &format!("0 {UID_BASE} 65536"))?;
        }
        let user = openat(&ground.proc, format!("{process}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .context("open of the user namespace")?;
        let mut groups = Vec::with_capacity(ground.hierarchies.len());
        for hierarchy in &ground.hierarchies {
            mkdirat(&hierarchy.parent, name, Mode::from_raw_mode(0o755)).context("the pod's control group")?;
            let group = open(&hierarchy.parent, Path::new(name))?;
            mkdirat(&group, LEAF, Mode::from_raw_mode(0o755)).context("the container's control group")?;
            if let Some(program) = ground.devices.as_ref().filter(|_| hierarchy.name.is_empty()) {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let leaf = openat(&group, LEAF, flags, Mode::empty()).context("open of a control group")?;
                sandbox::sys::device_filter::attach(leaf.as_fd(), program).context("device rules")?;
            }
            groups.push(group);
        }
        let ((order_in, order), (out, out_in)) = (std::io::pipe()?, std::io::pipe()?);
        let (ready, ready_in) = std::io::pipe()?;
        let mut stub = Box::new(Stub {
            ground,
            pod: name.to_owned(),
            leaves: groups.iter().map(|group| open(group, Path::new(LEAF))).collect::<Result<_>>()?,
            spaces: holder.child.pidfd.as_fd().try_clone_to_owned()?,
            user,
            memory: memory()?,
            order: order_in.into(),
            out: out_in.into(),
            ready: ready_in.into(),
            args: Vec::new(),
        });
        let mut stack = Stack::new();
        let child = raw::share(i32::try_from(clone::NEWPID | clone::NEWNS)?, &mut stack, &mut *stub)?;
        ensure!(heard(&ready, &child)?, "the stub has ended early");
        drop(holder);
        Ok(Self {
            ground,
            name: name.to_owned(),
            groups,
            child: Some(child),
            order: Some(File::from(OwnedFd::from(order))),
            out: File::from(OwnedFd::from(out)),
            stub,
            _stack: stack,
        })
    }

    /// Executes the program.
    pub(super) fn start(&mut self, args: &[&str]) -> Result<()> {
        self.stub.args = args.iter().map(|&arg| CString::new(arg)).collect::<Result<_, _>>()?;
        let pods = &self.ground.pods;
        mkdirat(pods, &self.name, Mode::from_raw_mode(0o711)).context("the pod's directory")?;
        for below in ["upper", "work"] {
            let path = format!("{}/{below}", self.name);
            mkdirat(pods, &path, Mode::from_raw_mode(0o755)).context("a directory of the root's")?;
        }
        self.limit()?;
        // The child has these numbers of its own.
        let order = self.order.take().context("a slot is started once")?;
        rustix::io::write(&order, b"o").context("the order")?;
        Ok(())
    }

    /// Waits until the program has taken over. Allocates nothing, as the child may.
    pub(super) fn executed(&self) -> Result<()> {
        let child = self.child.as_ref().context("it runs")?;
        // A number has ten digits at most.
        let mut path = [0; 16];
        write!(&mut path[..], "{}/exe\0", child.pid.as_raw_nonzero()).context("a child's program")?;
        let path = CStr::from_bytes_until_nul(&path)?;
        let deadline = Instant::now() + PATIENCE;
        let (mut own, mut its) = ([MaybeUninit::uninit(); 1024], [MaybeUninit::uninit(); 1024]);
        let (own, _) = readlinkat_raw(&self.ground.proc, c"self/exe", &mut own)?;
        while *readlinkat_raw(&self.ground.proc, path, &mut its)?.0 == *own {
            ensure!(Instant::now() < deadline, "a program was not executed within {PATIENCE:?}");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Waits for the first byte of its standard output.
    pub(super) fn first_byte(&self) -> Result<()> {
        let child = self.child.as_ref().context("it runs")?;
        ensure!(heard(&self.out, child)?, "the container has ended without a byte");
        Ok(())
    }

    fn limit(&self) -> Result<()> {
        let limits = oci::resources();
        for (hierarchy, group) in self.ground.hierarchies.iter().zip(&self.groups) {
            let settings: Vec<(&str, Option<String>)> = match hierarchy.name {
                "memory" => vec![("memory.limit_in_bytes", limits.memory_limit.map(|value| value.to_string()))],
                "pids" => vec![("pids.max", limits.pids_limit.map(|value| value.to_string()))],
                "cpu" => vec![
                    ("cpu.shares", limits.cpu_shares.map(|value| value.to_string())),
                    ("cpu.cfs_period_us", limits.cpu_period_us.map(|value| value.to_string())),
                    ("cpu.cfs_quota_us", limits.cpu_quota_us.map(|value| value.to_string())),
                ],
                _ => vec![],
            };
            for (file, value) in settings {
                if let Some(value) = value {
                    write(group, file, &value)?;
                }
            }
        }
        Ok(())
    }

    /// A program in the running container, by a child of a process that is in it: the time to its end.
    pub(super) fn exec(&self, args: &[&str]) -> Result<Duration> {
        let init = self.child.as_ref().context("it runs")?;
        let args = args.iter().map(|&arg| CString::new(arg)).collect::<Result<_, _>>()?;
        let (reader, writer) = std::io::pipe()?;
        let child = raw::fork(|| {
            let taken = Beside { stub: &self.stub, args }.exec(&init.pidfd)?;
            rustix::io::write(&writer, &taken.as_nanos().to_le_bytes()).context("tell the time")?;
            Ok(())
        })?;
        raw::reap(child)?;
        let mut nanos = [0; 16];
        let told = rustix::io::read(&reader, &mut nanos[..]).context("hear the time")?;
        ensure!(told == nanos.len(), "the exec has told no time");
        Ok(Duration::from_nanos(u64::try_from(u128::from_le_bytes(nanos))?))
    }

    /// Waits for its container's end (which `kill` brings about) and removes all that it has.
    pub(super) fn release(mut self, kill: bool) -> Result<()> {
        let child = self.child.take().context("a slot has a child")?;
        if kill {
            pidfd_send_signal(&child.pidfd, Signal::KILL).context("kill")?;
            rustix::process::waitpid(Some(child.pid), rustix::process::WaitOptions::empty())?;
        } else {
            raw::reap(child)?;
        }
        for (hierarchy, group) in self.ground.hierarchies.iter().zip(&self.groups) {
            remove_group(group, LEAF)?;
            remove_group(&hierarchy.parent, &self.name)?;
        }
        remove(self.ground.pods.as_fd(), &self.name)
    }
}

/// A group can be removed a moment after its last process's end was told.
fn remove_group(parent: &OwnedFd, name: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => std::thread::yield_now(),
            other => return other.with_context(|| format!("removal of the control group {name}")),
        }
    }
}

/// A directory with all that is in it.
fn remove(parent: std::os::fd::BorrowedFd<'_>, name: &str) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty()).context("open of a pod's directory")?;
    let names: Vec<_> = Dir::read_from(&directory)?
        .filter(|entry| !entry.as_ref().is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b"..")))
        .map(|entry| entry.map(|entry| (entry.file_name().to_owned(), entry.file_type())))
        .collect::<Result<_, _>>()?;
    for (below, kind) in names {
        match kind {
            FileType::Directory => remove(directory.as_fd(), below.to_str()?)?,
            _ => unlinkat(&directory, &below, AtFlags::empty())?,
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).context("removal of a pod's directory")
}

/// Makes a file.
pub(super) fn create(directory: &OwnedFd, name: &str, text: &str) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::from_raw_mode(0o600)).with_context(|| format!("file {name}"))?;
    rustix::io::write(&file, text.as_bytes()).with_context(|| format!("write of {name}"))?;
    Ok(())
}

pub(super) fn write(directory: &OwnedFd, file: &str, value: &str) -> Result<()> {
    let opened = openat(directory, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let opened = opened.with_context(|| format!("open of {file}"))?;
    rustix::io::write(&opened, value.as_bytes()).with_context(|| format!("{value} to {file}"))?;
    Ok(())
}

/// Waits for a byte of the child's; false when the child has ended without one.
fn heard(file: impl AsFd, child: &Child) -> Result<bool> {
    let mut ends = [PollFd::new(&file, PollFlags::IN), PollFd::new(&child.pidfd, PollFlags::IN)];
    poll(&mut ends, None).context("wait for a child")?;
    if ends[0].revents().contains(PollFlags::IN) { read_byte(&file) } else { Ok(false) }
}

/// False at the end.
pub(super) fn read_byte(file: impl AsFd) -> Result<bool> {
    Ok(rustix::io::read(file, &mut [0][..]).context("read of a byte")? == 1)
}
