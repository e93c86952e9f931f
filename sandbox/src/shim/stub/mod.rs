//! The stub: the child that becomes a container's first process, or an exec'd one.
//!
//! ```text
//!  clone (new pid namespace, in its leaf of v2) ── joins its leaf of v1 ── own cgroup and mount namespaces ── default mounts
//!    ── root, and those moved into it ── volumes ── change of root          as the host's root, by descriptor only
//!    ── user namespace ── groups, ids, capabilities, filter ── chdir ── execve        as nobody on the host
//! ```
//!
//! A stub is forked for its container ([`launch`]), or has done the first line's work before and waits for an [`Order`]
//! ([`standing`]).
//!
//! Network, IPC and UTS namespaces it has from the shim, which lives in the sandbox's own. It is a fork of the shim, or has the
//! memory of one ([`crate::sys::lend`]): not dumpable, so nothing in the container's PID namespace can look into it before `execve`.

pub(crate) mod apparmor;
pub(crate) mod cgroups;
pub(crate) mod devices;
pub(crate) mod host_devices;
pub(crate) mod identity;
mod image_volume;
pub(crate) mod join;
pub(crate) mod masks;
pub(crate) mod mounts;
pub(crate) mod owners;
pub(crate) mod program;
pub(crate) mod report;
pub(crate) mod rootfs;
pub(crate) mod stage;
pub(crate) mod standing;
pub(crate) mod terminal;
pub(crate) mod volumes;

use std::convert::Infallible;
use std::ffi::CStr;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags, fchown, openat};
use rustix::process::{Gid, Uid};
use serde::{Deserialize, Serialize};

use self::cgroups::{CgroupView, Cgroups};
use self::program::Program;
use self::report::{Proceed, Report, Step};
use self::rootfs::Tree;
use self::stage::Stage;
use crate::cgroup::Group;
use crate::ids::Ids;
use crate::protocol::shim::StartFds;
use crate::protocol::{Connection, Refusal};
use crate::seccomp;
use crate::spec::{ContainerSpec, Resources, Seccomp, Security, User};
use crate::sys::{paths, process};

/// Things left out that are told: they wait in the channel until the stub's end.
const MOST_TOLD: usize = 64;

/// The sandbox's parts that every stub uses.
#[derive(Debug)]
pub(crate) struct Shared<'a> {
    /// The user namespace, if it has one of its own.
    pub(crate) user: Option<&'a OwnedFd>,
    /// Its ids, and what they are on the host.
    pub(crate) ids: &'a Ids,
    /// The seccomp filter, if any.
    pub(crate) filter: Option<seccomp::Program>,
}

/// Which container to become. Descriptors: those of its `Start`, then standard input, output and error unless it gets a
/// terminal.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) spec: ContainerSpec,
    pub(crate) counts: StartFds,
}

/// A container's root, volumes and streams.
#[derive(Debug)]
struct Parts {
    layers: Vec<OwnedFd>,
    writable: Option<OwnedFd>,
    volumes: Vec<OwnedFd>,
    /// None when it gets a terminal.
    streams: Vec<OwnedFd>,
}

impl Parts {
    fn of(order: &Order, fds: Vec<OwnedFd>) -> Self {
        let mut fds = fds.into_iter();
        let layers = fds.by_ref().take(order.counts.layers).collect();
        let writable = if order.counts.writable == 1 { fds.next() } else { None };
        let volumes = fds.by_ref().take(order.counts.mounts).collect();
        Self { layers, writable, volumes, streams: fds.collect() }
    }
}

/// Runs in the child: makes the container and executes its program. Does not return.
pub(crate) fn launch(
    shared: &Shared<'_>,
    order: &Order,
    fds: Vec<OwnedFd>,
    (leaf, view): (&Group, &CgroupView),
    (dev, space): (&OwnedFd, &OwnedFd),
    report: OwnedFd,
) -> ! {
    let mut report = ManuallyDrop::new(Connection::new(report));
    let steps = |report: &mut Connection| {
        begin_container(leaf)?;
        let stage = Stage::make(shared.ids.base(), (dev, space), Cgroups { view, leaf: leaf.name() }, || Ok(()))?;
        make_container(shared, order, fds, dev, (&mut ManuallyDrop::new(stage), None), report)
    };
    let Err(refusal) = steps(&mut report);
    fail(&mut report, refusal)
}

fn make_container(
    shared: &Shared<'_>,
    order: &Order,
    fds: Vec<OwnedFd>,
    dev: &OwnedFd,
    // Neither is dropped by a failing step: their numbers are closed, or given to others, before the last ones.
    (stage, ahead): (&mut ManuallyDrop<Stage<'_>>, Option<ManuallyDrop<Tree>>),
    report: &mut Connection,
) -> Result<Infallible, Refusal> {
    let spec = &order.spec;
    let parts = ManuallyDrop::new(Parts::of(order, fds));
    crate::sys::failpoint::failpoint!(StubCommanded);
    // Its /proc is in the own root, or in one that was made ahead.
    set_oom_score((stage.proc.as_fd(), "self/oom_score_adj"), oom_score(&spec.resources), report)?;
    let assembled = match ahead {
        Some(tree) if order.counts.assembled => tree,
        other => {
            if let Some(tree) = other {
                stage.take_back(shared.ids.base(), dev)?;
                rootfs::leave(&tree)?;
            }
            let (own, writable) = (&stage.root, parts.writable.as_ref());
            ManuallyDrop::new(rootfs::assemble(own, &parts.layers, writable, shared.user, spec.attempt)?)
        }
    };
    let tree = &assembled.root;
    crate::sys::failpoint::failpoint!(RootAssembled);
    let mask = stage.place(tree, shared.ids.base(), dev, &spec.security)?;
    let left_out = volumes::mount_all(&assembled, shared.ids, shared.user, &stage.proc, &spec.mounts, &parts.volumes)?;
    for what in left_out.into_iter().take(MOST_TOLD) {
        tell(report, &Report::Degraded { what }, vec![])?;
    }
    crate::sys::failpoint::failpoint!(MountsMade);
    make_working_directory(tree, &spec.cwd, shared.ids.base())?;
    if spec.readonly_rootfs {
        crate::sys::mount::set(tree, crate::sys::mount::RDONLY, false).step("read-only root")?;
    }
    let owner = owner_of(shared.ids, &spec.user)?;
    let terminal = if spec.tty {
        let terminal = ManuallyDrop::new(terminal::open(&stage.pts, owner, shared.ids.base() + 5)?);
        terminal::bind_console(dev, &terminal.slave)?;
        Some(terminal)
    } else {
        None
    };
    if mask {
        masks::protect(tree, &spec.security.readonly_paths)?;
        masks::hide(tree, dev, &spec.security.masked_paths, stage::EMPTY)?;
    }
    crate::sys::failpoint::failpoint!(PathsMasked);
    if assembled.covers {
        stage.cover(tree)?
    } else {
        rootfs::pivot(tree)?
    }
    crate::sys::failpoint::failpoint!(RootEntered);
    // Without the shim there is nobody for whom to run.
    let Ok((Proceed, _)) = report.receive() else { process::exit_now(0) };
    for stream in &parts.streams {
        own_pipe(stream, owner)?;
    }
    connect(&parts.streams, terminal.as_deref(), report)?;
    let entered;
    let shared = if spec.security.writable_kernel && shared.user.is_some() {
        // A mount namespace of the container's own user namespace, in which its root may mount; what is mounted so far is
        // locked in it.
        identity::enter_user_namespace(shared.user)?;
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).step("mount namespace of the user namespace")?;
        entered = Shared { user: None, ids: shared.ids, filter: shared.filter.clone() };
        &entered
    } else {
        shared
    };
    become_program(shared, &spec.user, &spec.security, &spec.cwd, &spec.args, &spec.env, report)
}

/// First steps of every stub, while the host's paths to /proc and the control groups are still there.
/// Joins the control groups of `leaf`, into which the process was cloned, as far as it is not in them by that.
pub(crate) fn begin(leaf: Option<&Group>) -> Result<(), Refusal> {
    process::restore_signals().step("reset of signals")?;
    rustix::process::setsid().step("own session")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Some(leaf) = leaf {
        leaf.complete().map_err(|error| Refusal::Failed {
            operation: "joining the container's control group".into(),
            message: error.to_string(),
            errno: None,
        })?;
    }
    Ok(())
}

fn begin_container(leaf: &Group) -> Result<(), Refusal> {
    // In a pod that is full, the kernel ends this process rather than a container that runs.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    begin(Some(leaf))?;
    crate::sys::failpoint::failpoint!(StubGrouped);
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).step("cgroup namespace")
}

/// `oom_score_adj` of a container that names none: as usual, whatever the shim has. Set like any other: whoever may not go
/// below the shim's could otherwise still go down to it.
fn oom_score(resources: &Resources) -> i32 {
    resources.oom_score_adj.unwrap_or(0)
}

/// `file`: the process's own, below a directory.
fn set_oom_score(file: (BorrowedFd<'_>, &str), score: i32, report: &mut Connection) -> Result<(), Refusal> {
    let set = || {
        let file = openat(file.0, file.1, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, score.to_string().as_bytes())
    };
    if let Err(error) = set() {
        // Lowering it needs CAP_SYS_RESOURCE, which some hosts' root lacks.
        tell(report, &Report::Degraded { what: format!("oom_score_adj {score} is not set: {error}") }, vec![])?;
    }
    Ok(())
}

fn make_working_directory(tree: &OwnedFd, cwd: &str, base: u32) -> Result<(), Refusal> {
    let message = |reason: &str| format!("chdir to cwd ({cwd:?}) set in config.json failed: {reason}");
    if !cwd.starts_with('/') {
        return Err(Refusal::Exec { message: message("not an absolute path"), code: 128 });
    }
    match paths::target_in(tree, std::path::Path::new(cwd), paths::Kind::Directory, base) {
        Ok(_) => Ok(()),
        Err(errno) => {
            let error = std::io::Error::from(errno);
            Err(Refusal::Exec { message: message(&error.to_string().to_lowercase()), code: 128 })
        }
    }
}

/// The program's user as the host knows it.
pub(crate) fn owner_of(ids: &Ids, user: &User) -> Result<u32, Refusal> {
    let unknown = || Refusal::Invalid { message: format!("user id {} is not one of the sandbox's", user.uid) };
    ids.on_host(user.uid).ok_or_else(unknown)
}

/// Puts the standard streams in place, which belong to the program's user already; the terminal's master goes to the shim.
fn connect(plain: &[OwnedFd], terminal: Option<&terminal::Terminal>, report: &mut Connection) -> Result<(), Refusal> {
    let fds: [&OwnedFd; 3] = match (plain, terminal) {
        (_, Some(terminal)) => {
            terminal::control(&terminal.slave)?;
            let master = rustix::io::fcntl_dupfd_cloexec(&terminal.master, 3).step("copy of a terminal")?;
            tell(report, &Report::Terminal, vec![master])?;
            [&terminal.slave; 3]
        }
        ([stdin, stdout, stderr], None) => [stdin, stdout, stderr],
        _ => return Err(Refusal::Invalid { message: "a stream is missing".into() }),
    };
    put_streams(fds)
}

fn put_streams(fds: [&OwnedFd; 3]) -> Result<(), Refusal> {
    rustix::stdio::dup2_stdin(fds[0]).step("standard input")?;
    rustix::stdio::dup2_stdout(fds[1]).step("standard output")?;
    rustix::stdio::dup2_stderr(fds[2]).step("standard error")
}

/// A pipe belongs to the program's user, so that it can open /dev/stdout again.
pub(crate) fn own_pipe(fd: &OwnedFd, owner: u32) -> Result<(), Refusal> {
    let mode = rustix::fs::fstat(fd).step("kind of a standard stream")?.st_mode;
    if rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Fifo {
        fchown(fd, Some(Uid::from_raw(owner)), None::<Gid>).step("owner of a standard stream")?;
    }
    Ok(())
}

/// The last steps: from the host's root, inside the container's mounts, to its program.
fn become_program(
    shared: &Shared<'_>,
    user: &User,
    security: &Security,
    cwd: &str,
    args: &[String],
    env: &[(String, String)],
    report: &mut Connection,
) -> Result<Infallible, Refusal> {
    leave_host(shared, security)?;
    // Nothing that was open before may be reached through /proc/self/fd from here on; the report moves to number 3.
    keep_only(report)?;
    let wanted = identity::assume(user, security)?;
    // A change of ids sets this anew, by a setting of the host's, for whoever lends it memory too.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).step("dumpable")?;
    identity::confine(user, security, wanted, shared.filter.as_deref())?;
    execute(cwd, args, env, report)
}

/// From the host's root to root of the sandbox.
fn leave_host(shared: &Shared<'_>, security: &Security) -> Result<(), Refusal> {
    identity::limit_resources()?;
    if let Some(profile) = &security.apparmor {
        apparmor::begin_in(profile)?;
    }
    if shared.filter.is_none() || matches!(security.seccomp, Seccomp::Custom(_)) {
        // Its filter may allow what reads keys: those of the shim's session are not its.
        crate::sys::keyring::leave_session().step("session keyring")?;
    }
    identity::enter_user_namespace(shared.user)?;
    crate::sys::failpoint::failpoint!(UserEntered);
    Ok(())
}

/// Replaces the process, which has become the container's, by its program.
fn execute(
    cwd: &str,
    args: &[String],
    env: &[(String, String)],
    report: &mut Connection,
) -> Result<Infallible, Refusal> {
    let (program, cwd) = (Program::new(args, env)?, program::terminated(cwd)?);
    stand_at(&cwd)?;
    tell(report, &Report::Executing, vec![])?;
    crate::sys::failpoint::failpoint!(StubExecuting);
    Err(program.execute(&mut false))
}

/// Where and whose the program begins.
fn stand_at(cwd: &CStr) -> Result<(), Refusal> {
    // Where the shim is not PID 1 the kernel would not end it with the shim. A change of ids takes this away, so it comes here.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).step("end with the shim")?;
    program::change_directory(cwd)
}

fn keep_only(report: &mut Connection) -> Result<(), Refusal> {
    let high = rustix::io::fcntl_dupfd_cloexec(report.socket(), 4).step("copy of the report channel")?;
    // Number 3, whoever owned it: the stub drops nothing any more.
    let mut third = ManuallyDrop::new(process::adopt(3));
    rustix::io::dup3(&high, &mut third, rustix::io::DupFlags::CLOEXEC).step("move of the report channel")?;
    let old = std::mem::replace(report, Connection::new(ManuallyDrop::into_inner(third)));
    std::mem::forget((old, high));
    process::close_from(4).step("closing of descriptors")
}

fn tell(report: &mut Connection, message: &Report, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
    report.send(message, fds).map_err(|error| Refusal::Failed {
        operation: "telling the shim".into(),
        message: error.to_string(),
        errno: None,
    })
}

fn fail(report: &mut Connection, refusal: Refusal) -> ! {
    // Without the shim nobody is left to tell.
    let _ = report.send(&Report::Failed { refusal }, vec![]);
    process::exit_now(1)
}
