//! From a request to a shim: a fork of the keeper that becomes one.

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags, openat};

use super::namespace::Spaces;
use crate::protocol::Refusal;
use crate::protocol::keeper::{FdRole, Spawn};
use crate::shim::{self, Inherited};
use crate::sys::clone::{self, Child};
use crate::sys::process;
use crate::sys::title::Title;

/// The first number that a kept descriptor gets.
const FIRST_KEPT: i32 = 3;
/// Of the process that opens it.
const FDINFO: &str = "self/fdinfo";
/// Exit status of a child that could not become a shim.
const NO_SHIM: i32 = 71;

/// Starts shims.
#[derive(Debug)]
pub(super) struct Spawner {
    spaces: Spaces,
    null: OwnedFd,
    title: Title,
}

/// A request's descriptors by what they are for.
#[derive(Debug, Default)]
struct Roles {
    keep: Vec<OwnedFd>,
    directory: Option<OwnedFd>,
    procs: Vec<OwnedFd>,
}

impl Spawner {
    /// `null`: the null device. `title`: the keeper's own.
    pub(super) fn new(spaces: Spaces, null: OwnedFd, title: Title) -> Self {
        Self { spaces, null, title }
    }

    /// Clones a child that becomes a shim. The child's end is told by SIGCHLD, whether or not it got that far.
    pub(super) fn spawn(&self, request: &Spawn, fds: Vec<OwnedFd>) -> Result<Child, Refusal> {
        let roles = assign(&request.fds, fds)?;
        let argument = argument(&request.arguments)?;
        let cgroup = roles.directory.as_ref().map(AsFd::as_fd);
        let spaces = if request.host_pid { 0 } else { clone::NEWPID };
        clone::fork_with(spaces, cgroup, || match self.become_shim(&roles, argument) {
            Ok((stage, host_fdinfo)) => {
                shim::main(argument, Inherited { stage, host_fdinfo, groups: &self.spaces.groups })
            }
            Err((step, error)) => {
                crate::sys::say::say!("nodeless-shim: {step} failed: {error}");
                NO_SHIM
            }
        })
        .map_err(|error| Refusal::failed("clone of a shim", &error))
    }

    /// In the child: nothing of the keeper's is open afterwards but what this gives: the stage, and the child's `fdinfo` in a /proc of
    /// the keeper's PID namespace, where it has one. Their numbers are the next after the kept ones.
    fn become_shim(
        &self,
        roles: &Roles,
        argument: &str,
    ) -> Result<(OwnedFd, Option<OwnedFd>), (&'static str, std::io::Error)> {
        let io = |step: &'static str| move |errno: rustix::io::Errno| (step, std::io::Error::from(errno));
        let nix = |step: &'static str| move |errno: nix::errno::Errno| (step, std::io::Error::from(errno));
        for procs in &roles.procs {
            rustix::io::write(procs, b"0").map_err(io("move into a cgroup"))?;
        }
        let _ = rustix::process::setsid();
        crate::sys::failpoint::failpoint!(ChildGrouped);
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let host_fdinfo = openat(&self.spaces.proc, FDINFO, flags, Mode::empty()).ok();
        setns(&self.spaces.template, CloneFlags::CLONE_NEWNS).map_err(nix("entry into the template namespace"))?;
        unshare(CloneFlags::CLONE_NEWNS).map_err(nix("private mount namespace"))?;
        crate::sys::failpoint::failpoint!(ChildIsolated);
        rustix::stdio::dup2_stdin(&self.null).map_err(io("standard input"))?;
        rustix::stdio::dup2_stdout(&self.null).map_err(io("standard output"))?;

        // First above everything that will be in use, so that no target number is another's source.
        let count = roles.keep.len() + 1 + usize::from(host_fdinfo.is_some());
        let last = FIRST_KEPT + i32::try_from(count).unwrap_or(i32::MAX - FIRST_KEPT - 1);
        let raised = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, last + 1).map_err(io("move of descriptors"));
        let own = std::iter::once(&self.spaces.stage).chain(&host_fdinfo);
        let sources = roles.keep.iter().chain(own).map(raised).collect::<Result<Vec<_>, _>>()?;
        for (number, source) in (FIRST_KEPT..).zip(&sources) {
            let mut target = process::adopt(number);
            rustix::io::dup2(source, &mut target).map_err(io("move of descriptors"))?;
            std::mem::forget(target);
        }
        process::close_from(last.unsigned_abs()).map_err(|error| ("closing of descriptors", error))?;
        // Their numbers are closed: nothing may drop them.
        std::mem::forget(sources);
        let mut numbers = last - i32::try_from(count - roles.keep.len()).unwrap_or_default()..;
        let mut next = || process::adopt(numbers.next().unwrap_or_default());
        let stage = next();
        let host_fdinfo = host_fdinfo.map(|fd| {
            std::mem::forget(fd);
            next()
        });
        process::restore_signals().map_err(|error| ("reset of signals", error))?;
        process::ignore_broken_pipes();
        self.title.show(&["nodeless-shim", "shim", argument]);
        crate::sys::failpoint::failpoint!(ChildExecuting);
        Ok((stage, host_fdinfo))
    }
}

fn assign(roles: &[FdRole], fds: Vec<OwnedFd>) -> Result<Roles, Refusal> {
    if roles.len() != fds.len() {
        let message = format!("{} descriptors are described and {} came", roles.len(), fds.len());
        return Err(Refusal::Invalid { message });
    }
    let mut assigned = Roles::default();
    for (role, fd) in roles.iter().zip(fds) {
        match role {
            FdRole::Keep => assigned.keep.push(fd),
            FdRole::CgroupProcs => assigned.procs.push(fd),
            FdRole::CgroupDirectory if assigned.directory.is_none() => assigned.directory = Some(fd),
            FdRole::CgroupDirectory => {
                return Err(Refusal::Invalid { message: "more than one cgroup to be cloned into".to_owned() });
            }
        }
    }
    Ok(assigned)
}

/// A shim has one.
fn argument(given: &[String]) -> Result<&str, Refusal> {
    match given {
        [argument] => Ok(argument),
        other => Err(Refusal::Invalid { message: format!("a shim takes one argument, not {}", other.len()) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fds(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
    }

    #[test]
    fn descriptors_are_counted_and_only_one_cgroup_is_cloned_into() {
        let roles = [FdRole::Keep, FdRole::CgroupProcs, FdRole::CgroupDirectory, FdRole::Keep];
        let assigned = assign(&roles, fds(4)).unwrap();
        assert_eq!((assigned.keep.len(), assigned.procs.len(), assigned.directory.is_some()), (2, 1, true));
        assert!(matches!(assign(&roles, fds(3)), Err(Refusal::Invalid { .. })));
        assert!(matches!(assign(&[FdRole::CgroupDirectory; 2], fds(2)), Err(Refusal::Invalid { .. })));
        assert!(matches!(argument(&[]), Err(Refusal::Invalid { .. })));
    }
}
