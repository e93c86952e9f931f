//! Further processes of a container.
//!
//! ```text
//!  usually                      a process beside the container has taken all steps before but the last: its children
//!                               borrow its memory, take up their streams or terminal, and execute
//!  where there can be none      a child of the shim takes all steps: control groups, namespaces, user, filter, execve
//! ```
//!
//! The process beside the container ([`Beside`]) is in the container's control groups, mount, cgroup and user namespaces,
//! as the container's user with its capabilities and its filter, but in the shim's PID namespace: nothing in the container
//! sees it, signals it or traces it. Its children begin inside, with no power that the container has not. The one exception
//! is a filter of the operator's own that forbids what is done here: the children have to install it, for which they need
//! CAP_SYS_ADMIN of the pod's user namespace where new privileges are not off.

use std::ffi::CStr;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::process::{DumpableBehavior, Pid, getppid};
use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use serde::{Deserialize, Serialize};

use super::program::{self, Program};
use super::report::Step;
use super::{Shared, begin, connect, fail, identity, leave_host, oom_score, owner_of, set_oom_score, terminal};
use crate::cgroup::Group;
use crate::protocol::{Connection, Refusal};
use crate::seccomp;
use crate::seccomp::judge::{self, Call};
use crate::spec::{ContainerSpec, Seccomp, Security, User};
use crate::sys::clone::{BESIDE, Child, Stack, vfork_beside};
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
        set_oom_score((CWD, "/proc/self/oom_score_adj"), oom_score(&spec.resources), report)?;
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
    ("capset", ANY), ("clone", [BESIDE, 0, 0, 0, 0, 0]), ("close", ANY),
    ("exit_group", ANY), ("getppid", ANY), ("fcntl", [3, libc::F_DUPFD_CLOEXEC as u64, 4, 0, 0, 0]), ("newfstatat", ANY), ("recvmsg", ANY),
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
    filter: Option<seccomp::Program>,
    /// The shim, where it can be named.
    parent: Option<Pid>,
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
        // Where lowering it is not allowed, the container's first process has said so.
        let _ = std::fs::write("/proc/self/oom_score_adj", oom_score(&spec.resources).to_string());
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
        Ok(Self { user: user.clone(), security: security.clone(), wanted, filter, parent: getppid() })
    }

    /// Has a child execute a program; the child leaves this process's memory when it has. `fds`: its streams, unless it gets a
    /// terminal.
    pub(crate) fn execute(&self, stack: &mut Stack, further: &Further, fds: &[OwnedFd]) -> Result<Executed, Failure> {
        let program = Program::new(&further.args, &further.env)?;
        let terminal = match further.terminal {
            // The program's user opens it: it is this process's own from the beginning.
            Some(size) => Some(terminal::open_own(&terminal::joined_pts()?, Some(size))?),
            None => None,
        };
        let streams = match (fds, &terminal) {
            (_, Some(terminal)) => [&terminal.slave; 3],
            ([stdin, stdout, stderr], None) => [stdin, stdout, stderr],
            _ => return Err(Refusal::Invalid { message: "a stream is missing".into() }.into()),
        };
        let cwd = program::terminated(&further.cwd)?;
        let mut refused = None;
        // Each is set before what may allocate: a child that is killed there leaves this memory unfit for use.
        let (mut reached, mut failed) = (false, false);
        let child = vfork_beside(stack, &mut || {
            refused = Some(match self.steps(&cwd, streams, terminal.is_some()) {
                Ok(()) => {
                    crate::sys::failpoint::failpoint!(StubExecuting);
                    reached = true;
                    program.execute(&mut failed)
                }
                Err(refusal) => refusal,
            });
        });
        let child = child.map_err(Failure::NoChild)?;
        let killed = || Refusal::Failed {
            operation: "start of the process".into(),
            message: "it was killed before its program ran".into(),
            errno: None,
        };
        match refused {
            None if reached && !failed => Ok(Executed { child, terminal: terminal.map(|terminal| terminal.master) }),
            None => Err(Failure::Killed { refusal: killed(), child }),
            Some(refusal) => Err(Failure::Refused { refusal, child: Some(child) }),
        }
    }

    /// Of the child. It drops all that it allocates, but what says why it failed.
    fn steps(&self, cwd: &CStr, streams: [&OwnedFd; 3], terminal: bool) -> Result<(), Refusal> {
        rustix::process::setsid().step("own session")?;
        if terminal {
            terminal::control(streams[0])?;
        }
        super::put_streams(streams)?;
        process::close_from(3).step("closing of descriptors")?;
        if self.filter.is_some() {
            identity::confine(&self.user, &self.security, self.wanted, self.filter.as_deref())?;
        }
        super::stand_at(cwd)?;
        // Of another PID namespace's processes none is named.
        match getppid() {
            None => Ok(()),
            parent if parent == self.parent => Ok(()),
            Some(_) => Err(Refusal::Invalid { message: "the shim has gone".into() }),
        }
    }
}

/// A further process of a container.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) child: Child,
    /// The master side of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Why there is none.
#[derive(Debug)]
pub(crate) enum Failure {
    /// None could be forked.
    NoChild(std::io::Error),
    /// Something else failed; the child, if there was one, has ended.
    Refused {
        /// Why.
        refusal: Refusal,
        /// To be collected.
        child: Option<Child>,
    },
    /// The child was killed while the memory was its: nobody knows in what state that is.
    Killed {
        /// In words.
        refusal: Refusal,
        /// To be collected.
        child: Child,
    },
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { refusal, child: None }
    }
}
