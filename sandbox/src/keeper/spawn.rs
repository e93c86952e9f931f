//! From a request to a shim: a fork of the keeper that becomes one.

use std::os::fd::{AsFd, OwnedFd};

use super::maker::Makers;
use super::namespace::Spaces;
use crate::ids::Ids;
use crate::protocol::Refusal;
use crate::protocol::keeper::{FdRole, Spawn};
use crate::shim::{self, Arguments, Begun, Given};
use crate::sys::clone::{self, Child};
use crate::sys::place::Processors;
use crate::sys::process;
use crate::sys::title::Title;

/// Exit status of a child that could not become a shim.
const NO_SHIM: i32 = 71;

/// Starts shims.
#[derive(Debug)]
pub(super) struct Spawner {
    spaces: Spaces,
    null: OwnedFd,
    title: Title,
    processors: Option<Processors>,
}

/// A request's descriptors by what they are for.
#[derive(Debug, Default)]
struct Roles {
    supplies: Option<OwnedFd>,
    directory: Option<OwnedFd>,
}

impl Spawner {
    /// `null`: the null device. `title`: the keeper's own.
    pub(super) fn new(spaces: Spaces, null: OwnedFd, title: Title) -> Self {
        Self { spaces, null, title, processors: Processors::chosen() }
    }

    /// Clones a child that becomes a shim, and before that one who makes its namespaces. The child's end is told by
    /// SIGCHLD, whether or not it got that far.
    pub(super) fn spawn(&self, request: &Spawn, fds: Vec<OwnedFd>, makers: &mut Makers) -> Result<Child, Refusal> {
        // Whoever waits for the shim may have moved this process to where it is.
        self.take_processors();
        let Roles { supplies: Some(supplies), directory } = assign(&request.fds, fds)? else {
            return Err(Refusal::Invalid { message: "nothing to supply a shim by".to_owned() });
        };
        let text = argument(&request.arguments)?;
        // Here, where the reader's code is at hand: a fork has to get everything anew that it comes by.
        let arguments: Arguments = serde_json::from_str(text)
            .map_err(|error| Refusal::Invalid { message: format!("the argument of a shim: {error}") })?;
        let Arguments { namespaces, uid_base, .. } = &arguments;
        let ids = namespaces.check().and_then(|()| Ids::of(*uid_base, namespaces));
        let ids = ids.map_err(|message| Refusal::Invalid { message })?;
        let begun = namespaces.user.then(|| makers.begin(&self.spaces.proc, &ids)).transpose()?;
        let cgroup = directory.as_ref().map(AsFd::as_fd);
        let spaces = if request.host_pid { 0 } else { clone::NEWPID };
        clone::fork_with(spaces, cgroup, || match self.hand_over(&supplies, begun.as_ref()) {
            Ok(given) => shim::main(arguments, text, given),
            Err(error) => {
                crate::sys::say::say!("nodeless-shim: hand-over of descriptors failed: {error}");
                NO_SHIM
            }
        })
        .map_err(|error| Refusal::failed("clone of a shim", &error))
    }

    fn take_processors(&self) {
        if let Some(processors) = &self.processors {
            processors.take();
        }
    }

    /// In the child: what a shim needs of the keeper's is its own afterwards, and nothing else of it is open.
    fn hand_over(&self, supplies: &OwnedFd, begun: Option<&Begun>) -> std::io::Result<Given<'_>> {
        let Spaces { template, stage, proc, groups } = &self.spaces;
        // Once more, for a word that came while it was forked.
        self.take_processors();
        let mut fds = [supplies, template, stage, proc, &self.null].map(AsFd::as_fd).to_vec();
        fds.extend(begun.iter().flat_map(|begun| begun.fds()));
        let lost = || std::io::Error::other("not as many came as went");
        let mut kept = process::keep_only(&fds)?.into_iter();
        let [supplies, template, stage, proc, null] = take(&mut kept).ok_or_else(lost)?;
        let begun = begun.map(|_| take(&mut kept).map(Begun::adopt).ok_or_else(lost)).transpose()?;
        Ok(Given { supplies, begun, template, stage, proc, null, groups, title: self.title })
    }
}

/// The next ones.
fn take<const N: usize>(fds: &mut impl Iterator<Item = OwnedFd>) -> Option<[OwnedFd; N]> {
    fds.take(N).collect::<Vec<_>>().try_into().ok()
}

fn assign(roles: &[FdRole], fds: Vec<OwnedFd>) -> Result<Roles, Refusal> {
    if roles.len() != fds.len() {
        let message = format!("{} descriptors are described and {} came", roles.len(), fds.len());
        return Err(Refusal::Invalid { message });
    }
    let mut assigned = Roles::default();
    for (role, fd) in roles.iter().zip(fds) {
        match role {
            FdRole::Supplies if assigned.supplies.is_none() => assigned.supplies = Some(fd),
            FdRole::CgroupDirectory if assigned.directory.is_none() => assigned.directory = Some(fd),
            FdRole::Keep | FdRole::CgroupProcs => {
                return Err(Refusal::Invalid { message: "the agent is older than its keeper".to_owned() });
            }
            twice => return Err(Refusal::Invalid { message: format!("more than one descriptor is {twice:?}") }),
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
    fn descriptors_are_counted_and_each_is_something_else() {
        let roles = [FdRole::Supplies, FdRole::CgroupDirectory];
        let assigned = assign(&roles, fds(2)).unwrap();
        assert!(assigned.supplies.is_some() && assigned.directory.is_some());
        assert!(matches!(assign(&roles, fds(3)), Err(Refusal::Invalid { .. })));
        assert!(matches!(assign(&[FdRole::Keep], fds(1)), Err(Refusal::Invalid { .. })));
        for twice in [[FdRole::CgroupDirectory; 2], [FdRole::Supplies; 2]] {
            assert!(matches!(assign(&twice, fds(2)), Err(Refusal::Invalid { .. })));
        }
        assert!(matches!(argument(&[]), Err(Refusal::Invalid { .. })));
    }
}
