//! Starting further processes in containers that run.

use std::os::fd::OwnedFd;

use rustix::process::{Signal, WaitStatus, pidfd_send_signal};

use super::container::{Container, Launch, OomKills, Process, Role, Waiter};
use super::own_root;
use super::plumbing::report_channel;
use super::poller::Key;
use super::server::Shim;
use super::shared_pids::{in_pid_namespace, open_pid_namespace};
use super::stub::join::{Further, join};
use super::stub::report::Step;
use super::stub::{own_pipe, owner_of};
use crate::protocol::{Connection, Refusal};
use crate::spec::ExecSpec;
use crate::sys::clone::{Child, fork_with};

/// An exec that has no process yet.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) waiter: Waiter,
    pub(super) container: Key,
    spec: ExecSpec,
    /// What the container's leaf had counted before there was the process: it may be killed before it is known.
    oom_kills: u64,
}

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
        let oom_kills = container.leaf.oom_kills().unwrap_or(0);
        self.fork_beside(Wanted { waiter, container: joined, spec, oom_kills }, further, streams);
        Ok(())
    }

    /// Has a process join the container by itself.
    pub(super) fn fork_joining(&mut self, wanted: Wanted, further: &Further, streams: Vec<OwnedFd>) {
        let waiter = wanted.waiter;
        let enrolled = self.fork_joined(wanted.container, further, streams).and_then(|(child, report)| {
            crate::sys::failpoint::failpoint!(ExecForked);
            let role = self.new_exec(wanted);
            self.enrol(child, Connection::new(report), waiter, role)
        });
        if let Err(refusal) = enrolled {
            self.refuse(waiter, refusal);
        }
    }

    /// The child, and where it reports.
    fn fork_joined(
        &self,
        container: Key,
        further: &Further,
        streams: Vec<OwnedFd>,
    ) -> Result<(Child, OwnedFd), Refusal> {
        let (init, container) = self.joined(container)?;
        let shared = self.shared(&container.spec.security);
        let namespace = open_pid_namespace(init.pid)?;
        let leaf = &container.leaf;
        let (report, theirs) = report_channel()?;
        let fds = std::iter::once(theirs).chain(streams).collect();
        let stub = || join(&shared, &init.pidfd, &container.spec, further, fds, leaf);
        let forked = in_pid_namespace(&namespace, || fork_with(0, leaf.clone_into(), stub))?;
        Ok((forked.step("fork of the process")?, report))
    }

    /// Its program has been executed. `ended`: how it has ended, if it was collected before it was known.
    pub(super) fn executed(
        &mut self,
        wanted: Wanted,
        child: Child,
        terminal: Option<OwnedFd>,
        ended: Option<WaitStatus>,
    ) {
        crate::sys::failpoint::failpoint!(ExecForked);
        let waiter = wanted.waiter;
        let gone = self.joined(wanted.container).is_err();
        let mut role = self.new_exec(wanted);
        if gone {
            // It has run, and is told as what ended with its container.
            let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
            if let Role::Exec { oom_kills, .. } = &mut role {
                oom_kills.at_end = Some(oom_kills.before);
            }
        }
        let key = self.enrol_running(child, waiter, role, terminal);
        if let Some(status) = ended {
            self.ended(key, status);
        }
    }

    fn new_exec(&mut self, wanted: Wanted) -> Role {
        let oom_kills = OomKills { before: wanted.oom_kills, at_end: None };
        Role::Exec { exec: self.new_key(), spec: wanted.spec, client: wanted.waiter.client, oom_kills }
    }

    /// The container that is joined, if it still runs.
    fn joined(&self, key: Key) -> Result<(&Process, &Container), Refusal> {
        match self.processes.get(&key) {
            Some(process) => match (&process.role, &process.launch) {
                (Role::Init(container), Launch::Running) => Ok((process, container)),
                _ => Err(Refusal::NotFound { what: "the running container".into() }),
            },
            None => Err(Refusal::NotFound { what: "the running container".into() }),
        }
    }
}
