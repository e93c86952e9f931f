//! Ends.

use std::time::Duration;

use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use super::attach::init_of;
use super::container::{Container, Launch, Role};
use super::poller::Key;
use super::server::Shim;
use crate::contract::{Exit, SandboxEvent};
use crate::protocol::shim::Notice;
use crate::sys::clock;

/// How long a dead container's other processes may take to be gone before its leaf is left for `destroy`.
pub(super) const LEAF_DEADLINE: Duration = Duration::from_millis(50);

impl Shim {
    /// Collects every child that has ended.
    pub(super) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let found = self.processes.iter().find(|(_, process)| process.pid == pid).map(|(key, _)| *key);
            if let Some(key) = found {
                self.ended(key, status);
            } else if !self.spare_ended(pid) && !self.joiner_ended(pid) {
                self.pod_init_ended(pid);
                self.joiners.keep(pid, status);
            }
        }
    }

    pub(super) fn ended(&mut self, key: Key, status: WaitStatus) {
        // What the stub said last comes first.
        while !self.follow_report(key) {}
        // Nor is what has ended its own container refused where it was told to have run.
        if let Some(joiner) = init_of(&mut self.processes, key).and_then(|container| container.joiner) {
            self.hear_joiner(joiner);
        }
        if let Some(container) = init_of(&mut self.processes, key) {
            crate::sys::failpoint::failpoint!(EndSeen);
            let _ = container.leaf.kill();
            // Of one that was refused; on v2 it is in the leaf too.
            container.lender = None;
            self.drain(key);
            crate::sys::failpoint::failpoint!(LogDrained);
        }
        let Some(mut process) = self.processes.remove(&key) else { return };
        let running = matches!(process.launch, Launch::Running);
        let mut exit = exit_of(status);
        match &mut process.role {
            Role::Init(container) => {
                if let Some(joiner) = container.joiner {
                    self.lose_joiner(joiner);
                }
                let oom_kills = container.leaf.oom_kills().unwrap_or(0);
                exit.oom_killed = oom_kills > 0;
                self.note_oom_kills(container, oom_kills);
                if let Err(error) = self.pod.remove_leaf(container.leaf.name(), LEAF_DEADLINE) {
                    crate::sys::say::say!("control group of a dead container stays for now: {error}");
                }
                crate::sys::failpoint::failpoint!(ContainerLeafRemoved);
                if running {
                    let (container, attempt) = (container.spec.name.clone(), container.spec.attempt);
                    self.record(SandboxEvent::Exited { container, attempt, exit });
                    crate::sys::failpoint::failpoint!(ExitRecorded);
                }
            }
            Role::Exec { exec, client, spec, oom_kills } => {
                if running {
                    let now = || Some(self.running(&spec.container).ok()?.1.leaf.oom_kills().unwrap_or(0));
                    let counted = || oom_kills.at_end.or_else(now).unwrap_or(0);
                    exit.oom_killed = exit.signal == Some(libc::SIGKILL) && counted() > oom_kills.before;
                    let notice = Notice::ExecExited { exec: *exec, exit };
                    self.clients.notify(&self.poller, *client, &notice);
                }
            }
        }
        if let Launch::Refused(refusal) = process.launch {
            process.waiters.into_iter().for_each(|waiter| self.refuse(waiter, refusal.clone()));
        }
    }

    /// A container has ended: what its leaf counted is kept for its further processes, whose ends are told later.
    fn note_oom_kills(&mut self, ended: &Container, count: u64) {
        for process in self.processes.values_mut() {
            if let Role::Exec { spec, oom_kills, .. } = &mut process.role
                && spec.container == ended.spec.name
            {
                oom_kills.at_end.get_or_insert(count);
            }
        }
    }

    /// Without its first process a shared PID namespace is dead, and all containers with it.
    fn pod_init_ended(&mut self, pid: Pid) {
        if let Some(configured) = &mut self.configured
            && configured.pod_init.as_ref().is_some_and(|init| init.pid == pid)
        {
            crate::sys::say::say!("the pod's first process has ended");
        }
    }
}

fn exit_of(status: WaitStatus) -> Exit {
    let signal = status.terminating_signal();
    Exit {
        code: signal.map_or_else(|| status.exit_status().unwrap_or(255), |signal| 128 + signal),
        signal,
        oom_killed: false,
        boottime_ns: clock::boottime_ns(),
        wall_ns: clock::wall_ns(),
    }
}
