//! From a forked stub to a running program: its report is followed until the program has taken over, then all who wait
//! are told.

use std::os::fd::OwnedFd;

use super::attach::{Stdin, init_of};
use super::container::{Launch, Output, Process, Role, Waiter};
use super::log::Stream;
use super::poller::Key;
use super::server::{Shim, Source};
use super::stub::report::{Report, Step};
use crate::contract::{SandboxEvent, Started};
use crate::protocol::shim::Reply;
use crate::protocol::{Connection, Fill, Refusal};
use crate::sys::clock;
use crate::sys::clone::Child;

impl Shim {
    /// From here on the child is known, whatever else fails.
    pub(super) fn enrol(
        &mut self,
        child: Child,
        report: Connection,
        waiter: Waiter,
        role: Role,
    ) -> Result<Key, Refusal> {
        let (process, key) = (self.new_key(), self.new_key());
        let watched =
            rustix::io::ioctl_fionbio(report.socket(), true).and_then(|()| self.poller.add_end(report.socket(), key));
        let watched = watched.step("epoll of a report");
        let launch = Launch::Stub { report, key, executing: false, master: None, refusal: None };
        self.processes
            .insert(process, Process { pid: child.pid, pidfd: child.pidfd, launch, waiters: vec![waiter], role });
        watched?;
        self.sources.insert(key, Source::Report { process });
        Ok(process)
    }

    /// The same for one whose program runs already.
    pub(super) fn enrol_running(&mut self, child: Child, waiter: Waiter, role: Role, terminal: Option<OwnedFd>) -> Key {
        let key = self.new_key();
        let process =
            Process { pid: child.pid, pidfd: child.pidfd, launch: Launch::Running, waiters: vec![waiter], role };
        self.processes.insert(key, process);
        self.began(key, terminal);
        key
    }

    pub(super) fn watch_output(&mut self, process: Key, fd: OwnedFd, stream: Stream) -> Result<(), Refusal> {
        rustix::io::ioctl_fionbio(&fd, true).step("non-blocking output")?;
        let key = self.new_key();
        self.poller.add(&fd, key).step("epoll of an output")?;
        self.sources.insert(key, Source::Output { process });
        if let Some(Process { role: Role::Init(container), .. }) = self.processes.get_mut(&process) {
            container.outputs.push(Output { key, fd, stream });
        }
        Ok(())
    }

    /// Reads what a stub has to say; true when it has said all.
    pub(super) fn follow_report(&mut self, key: Key) -> bool {
        loop {
            let Some(Process { launch: Launch::Stub { report, executing, master, refusal, .. }, .. }) =
                self.processes.get_mut(&key)
            else {
                return true;
            };
            while let Ok(Some((message, mut fds))) = report.next_message::<Report>() {
                match message {
                    Report::Terminal => *master = fds.pop(),
                    Report::Ready | Report::Assembled => {}
                    Report::Degraded { what } => crate::sys::say::say!("{what}"),
                    Report::Executing => *executing = true,
                    Report::Failed { refusal: why } => *refusal = Some(why),
                }
            }
            match report.fill() {
                Ok(Fill::Data) => {}
                Ok(Fill::WouldBlock) => return false,
                Ok(Fill::Closed | Fill::Unread) | Err(_) => break,
            }
        }
        self.conclude_launch(key);
        true
    }

    /// The report has ended: the program runs, or never will.
    fn conclude_launch(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let launch = std::mem::replace(&mut process.launch, Launch::Running);
        let Launch::Stub { report, key: report_key, executing, master, refusal } = launch else {
            process.launch = launch;
            return;
        };
        self.poller.remove(report.socket());
        self.sources.remove(&report_key);
        let refusal = match refusal {
            Some(refusal) => Some(refusal),
            None if !executing => Some(Refusal::Failed {
                operation: "start of the process".into(),
                message: "it was killed before its program ran".into(),
                errno: None,
            }),
            None => None,
        };
        if let Some(refusal) = refusal {
            process.launch = Launch::Refused(refusal);
            return;
        }
        crate::sys::failpoint::failpoint!(ReportRead);
        self.began(key, master);
    }

    /// Tells that a program runs, and when it began: by the time that this was seen.
    fn began(&mut self, key: Key, master: Option<OwnedFd>) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let waiters = std::mem::take(&mut process.waiters);
        let started = Started {
            pid: self.own_root.host_pid(&process.pidfd).unwrap_or(process.pid.as_raw_nonzero().get() as u32),
            boottime_ns: self.woken_ns,
            wall_ns: clock::wall_ns().saturating_sub(clock::boottime_ns().saturating_sub(self.woken_ns)),
        };
        self.announce(key, started, master, waiters);
    }

    fn announce(&mut self, key: Key, started: Started, master: Option<OwnedFd>, waiters: Vec<Waiter>) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        match &mut process.role {
            Role::Init(container) => {
                container.started = Some(started.clone());
                let event = SandboxEvent::Started {
                    container: container.spec.name.clone(),
                    attempt: container.spec.attempt,
                    started: started.clone(),
                };
                if let Some(master) = master {
                    if container.spec.stdin {
                        container.stdin = master.try_clone().ok().and_then(|master| Stdin::new(master).ok());
                    }
                    if let Err(refusal) = self.watch_output(key, master, Stream::Stdout) {
                        crate::sys::say::say!("the terminal's output is lost: {refusal:?}");
                    }
                }
                self.record(event);
                crate::sys::failpoint::failpoint!(StartRecorded);
                for waiter in waiters {
                    self.clients.answer(&self.poller, waiter, Ok(Reply::Started(started.clone())), vec![]);
                }
                // If it was made for another image nobody will ask for it any more.
                self.ahead = None;
                if let Some(container) = init_of(&mut self.processes, key) {
                    container.lender = None;
                }
                crate::sys::failpoint::failpoint!(StartTold);
            }
            Role::Exec { exec, .. } => {
                let reply = Reply::ExecStarted { exec: *exec, pid: started.pid };
                let mut master: Vec<OwnedFd> = master.into_iter().collect();
                for waiter in waiters {
                    self.clients.answer(&self.poller, waiter, Ok(reply.clone()), std::mem::take(&mut master));
                }
            }
        }
    }
}
