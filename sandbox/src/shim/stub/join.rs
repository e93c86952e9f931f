//! Further processes of a container.
//!
//! ```text
//!  usually                      a process beside the container has taken all steps before but the last: its children
//!                               connect their streams, or open a terminal, and execute
//!  where there can be none      a child of the shim takes all steps: control groups, namespaces, user, filter, execve
//! ```
//!
//! The process beside the container ([`Beside`]) is in the container's control groups, mount, cgroup and user namespaces,
//! as the container's user with its capabilities and its filter, but in the shim's PID namespace: nothing in the container
//! sees it, signals it or traces it. Its children begin inside, with no power that the container has not. The one exception
//! is a filter of the operator's own that forbids what is done here: the children have to install it, for which they need
//! CAP_SYS_ADMIN of the pod's user namespace where new privileges are not off.

use std::convert::Infallible;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::DumpableBehavior;
use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use serde::{Deserialize, Serialize};

use super::report::Step;
use super::{Shared, begin, connect, execute, fail, identity, leave_host, owner_of, set_oom_score, terminal};
use crate::cgroup::Group;
use crate::protocol::{Connection, Refusal};
use crate::seccomp::Program;
use crate::seccomp::judge::{self, Call};
use crate::spec::{ContainerSpec, Seccomp, Security, User};
use crate::sys::process;

/// What is executed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Further {
    pub(crate) cwd: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// It gets a new terminal of this size (columns, rows).
    pub(crate) terminal: Option<(u16, u16)>,
}

/// Runs in the child: joins the container whose first process `init` is, and executes a further program. Descriptors: the
/// report channel, then standard input, output and error unless it gets a terminal. Does not return.
pub(crate) fn join(
    shared: &Shared<'_>,
    init: &OwnedFd,
    spec: &ContainerSpec,
    further: &Further,
    fds: Vec<OwnedFd>,
    leaf: &Group,
) -> ! {
    let Some((mut report, streams)) = split(fds) else { process::exit_now(1) };
    let steps = |report: &mut Connection| {
        begin(Some(leaf))?;
        set_oom_score(spec.resources.oom_score_adj, report)?;
        enter(init)?;
        let terminal = match further.terminal {
            None => None,
            Some((columns, rows)) => {
                let (pts, owner) = (terminal::joined_pts()?, owner_of(shared.ids, &spec.user)?);
                let terminal = ManuallyDrop::new(terminal::open(&pts, owner, shared.ids.base() + 5)?);
                terminal::resize(&terminal.master, columns, rows).step("size of a terminal")?;
                Some(terminal)
            }
        };
        connect(&streams, terminal.as_deref(), report)?;
        let Further { cwd, args, env, .. } = further;
        super::become_program(shared, &spec.user, &spec.security, cwd, args, env, report)
    };
    let Err(refusal) = steps(&mut report);
    fail(&mut report, refusal)
}

type Split = (ManuallyDrop<Connection>, ManuallyDrop<Vec<OwnedFd>>);

/// The report channel and the streams; nothing is dropped, for the numbers are closed or given to others before the end.
fn split(fds: Vec<OwnedFd>) -> Option<Split> {
    let mut fds = fds.into_iter();
    let report = fds.next()?;
    Some((ManuallyDrop::new(Connection::new(report)), ManuallyDrop::new(fds.collect())))
}

fn enter(init: &OwnedFd) -> Result<(), Refusal> {
    let spaces = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP;
    move_into_thread_name_spaces(init.as_fd(), spaces).step("joining the container's namespaces")
}

/// What a process beside a container asks of the kernel, and its children until they execute.
#[rustfmt::skip]
const NEEDED: &[Call] = &[
    ("capset", ANY), ("clone", [libc::CLONE_PARENT as u64 | libc::CLONE_PIDFD as u64, 0, 0, 0, 0, 0]), ("close", ANY),
    ("exit_group", ANY), ("fcntl", [3, libc::F_DUPFD_CLOEXEC as u64, 4, 0, 0, 0]), ("newfstatat", ANY), ("recvmsg", ANY),
    ("sendmsg", ANY),
    // Memory.
    ("brk", ANY), ("madvise", ANY), ("mmap", ANY), ("mremap", ANY), ("munmap", ANY),
    // Streams and terminals.
    ("close_range", ANY), ("dup2", ANY), ("dup3", [4, 3, libc::O_CLOEXEC as u64, 0, 0, 0]), ("setsid", ANY),
    ("fstatfs", ANY), ("openat", ANY), ("openat2", ANY), ("ioctl", [3, libc::TIOCSPTLCK, 0, 0, 0, 0]),
    ("ioctl", [3, libc::TIOCGPTPEER, 0, 0, 0, 0]), ("ioctl", [3, libc::TIOCSWINSZ, 0, 0, 0, 0]),
    ("ioctl", [3, libc::TIOCSCTTY, 0, 0, 0, 0]),
    // The program.
    ("chdir", ANY), ("execve", ANY), ("getcwd", ANY), ("prctl", [libc::PR_SET_PDEATHSIG as u64, 9, 0, 0, 0, 0]),
];
/// Arguments that no filter looks at.
const ANY: [u64; 6] = [0; 6];

/// A process beside a container, as far as its children have it from it.
#[derive(Debug)]
pub(crate) struct Beside {
    user: User,
    security: Security,
    wanted: CapabilitySet,
    /// A filter of the operator's own that forbids what this process does: its children install it.
    filter: Option<Program>,
}

impl Beside {
    /// Takes all steps that do not depend on what will be executed. `channel` is the only descriptor that stays open, with
    /// the number 3. `namespace`: the container's PID namespace, for the children.
    pub(crate) fn settle(
        shared: &Shared<'_>,
        init: &OwnedFd,
        namespace: &OwnedFd,
        spec: &ContainerSpec,
        leaf: &Group,
        channel: &mut Connection,
    ) -> Result<Self, Refusal> {
        begin(Some(leaf))?;
        if let Some(score) = spec.resources.oom_score_adj {
            // Where lowering it is not allowed, the container's first process has said so.
            let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
        }
        let children = Some(LinkNameSpaceType::ProcessID);
        move_into_link_name_space(namespace.as_fd(), children).step("joining the container's PID namespace")?;
        enter(init)?;
        let (user, security) = (&spec.user, &spec.security);
        leave_host(shared, security)?;
        super::keep_only(channel)?;
        let wanted = identity::assume(user, security)?;
        // It has the shim's memory. A change of ids sets this anew, by a setting of the host's.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("dumpable")?;
        let filter = match (&security.seccomp, &shared.filter) {
            (Seccomp::Custom(_), Some(program)) if !judge::lets_through(program, NEEDED) => {
                identity::reduce(security, wanted)?;
                shared.filter.clone()
            }
            (_, filter) => {
                identity::confine(user, security, wanted, filter.as_deref())?;
                None
            }
        };
        Ok(Self { user: user.clone(), security: security.clone(), wanted, filter })
    }

    /// Runs in a child: executes a program. Descriptors as of [`join`]. Does not return.
    pub(crate) fn execute(&self, further: &Further, fds: Vec<OwnedFd>) -> ! {
        let Some((mut report, streams)) = split(fds) else { process::exit_now(1) };
        let Err(refusal) = self.steps(further, &streams, &mut report);
        fail(&mut report, refusal)
    }

    fn steps(&self, further: &Further, streams: &[OwnedFd], report: &mut Connection) -> Result<Infallible, Refusal> {
        rustix::process::setsid().step("own session")?;
        let terminal = match further.terminal {
            // The program's user opens it: it is this process's own from the beginning.
            Some(size) => Some(ManuallyDrop::new(terminal::open_own(&terminal::joined_pts()?, Some(size))?)),
            None => None,
        };
        connect(streams, terminal.as_deref(), report)?;
        super::keep_only(report)?;
        if self.filter.is_some() {
            identity::confine(&self.user, &self.security, self.wanted, self.filter.as_deref())?;
        }
        execute(&further.cwd, &further.args, &further.env, report)
    }
}
