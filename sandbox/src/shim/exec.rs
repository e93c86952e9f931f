//! Starting further processes in containers that run.

use std::os::fd::OwnedFd;

use super::container::{OomKills, Role, Waiter};
use super::launch::{in_pid_namespace, open_pid_namespace, report_channel};
use super::own_root;
use super::server::Shim;
use super::stub::join::{Further, join};
use super::stub::report::Step;
use super::stub::{own_pipe, owner_of};
use crate::protocol::{Connection, Refusal};
use crate::spec::ExecSpec;
use crate::sys::clone::{Child, fork_with};

impl Shim {
    pub(super) fn exec(&mut self, waiter: Waiter, spec: ExecSpec, stdio: [bool; 3], fds: Vec<OwnedFd>) {
        if let Err(refusal) = self.exec_new(waiter, spec, stdio, fds) {
            self.refuse(waiter, refusal);
        }
    }

    fn exec_new(&mut self, waiter: Waiter, spec: ExecSpec, stdio: [bool; 3], fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let (joined, _) = self.running_key(&spec.container)?;
        self.not_paused(joined)?;
        let (_, container) = self.running(&spec.container)?;
        let owner = owner_of(&self.slot.ids, &container.spec.user)?;
        let mut fds = fds.into_iter();
        let mut next = |present: bool| match present {
            true => {
                let stream = fds.next().ok_or_else(|| Refusal::Invalid { message: "a stream is missing".into() })?;
                own_pipe(&stream, owner)?;
                Ok(stream)
            }
            false => own_root::null(),
        };
        let streams = match spec.tty {
            Some(_) => Vec::new(),
            None => stdio.into_iter().map(&mut next).collect::<Result<Vec<_>, _>>()?,
        };
        let mut env = container.spec.env.clone();
        for (name, value) in &spec.env {
            env.retain(|(existing, _)| existing != name);
            env.push((name.clone(), value.clone()));
        }
        let further = Further {
            cwd: spec.cwd.clone().unwrap_or_else(|| container.spec.cwd.clone()),
            args: spec.args.clone(),
            env,
            terminal: spec.tty,
        };
        let (ours, theirs) = report_channel()?;
        let fds: Vec<OwnedFd> = std::iter::once(theirs).chain(streams).collect();
        let forked = match spec.tty {
            None => {
                let copies = || fds.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>();
                self.fork_by_joiner(joined, &further, || copies().step("copies of descriptors"))
            }
            Some(_) => None,
        };
        let child = match forked {
            Some(forked) => forked?,
            None => self.fork_joining(&spec.container, &further, fds)?,
        };
        crate::sys::failpoint::failpoint!(ExecForked);
        let (_, container) = self.running(&spec.container)?;
        let oom_kills = OomKills { before: container.leaf.oom_kills().unwrap_or(0), at_end: None };
        let exec = self.new_key();
        let role = Role::Exec { exec, spec, client: waiter.client, oom_kills };
        self.enrol(child, Connection::new(ours), waiter, role)?;
        Ok(())
    }

    /// A process that joins a container by itself.
    fn fork_joining(&self, container: &str, further: &Further, fds: Vec<OwnedFd>) -> Result<Child, Refusal> {
        let (init, container) = self.running(container)?;
        let shared = self.shared(&container.spec.security);
        let namespace = open_pid_namespace(init.pid)?;
        let leaf = &container.leaf;
        let stub = || join(&shared, &init.pidfd, &container.spec, further, fds, leaf);
        in_pid_namespace(&namespace, || fork_with(0, leaf.clone_into(), stub))?.step("fork of the process")
    }
}
