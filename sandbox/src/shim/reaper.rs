//! Ends.

use std::time::Duration;

use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use super::container::{Container, Launch, Process, Role};
use super::log::{Buffers, LogError, Pumped};
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
            } else if !self.spare_ended(pid) {
                self.pod_init_ended(pid);
            }
        }
    }

    fn ended(&mut self, key: Key, status: WaitStatus) {
        // What the stub said last comes first.
        while !self.follow_report(key) {}
        let Some(mut process) = self.processes.remove(&key) else { return };
        let running = matches!(process.launch, Launch::Running);
        let mut exit = exit_of(status);
        match &mut process.role {
            Role::Init(container) => {
                crate::sys::failpoint::failpoint!(EndSeen);
                let _ = container.leaf.kill();
                self.drain(container);
                crate::sys::failpoint::failpoint!(LogDrained);
                exit.oom_killed = container.leaf.oom_kills().unwrap_or(0) > 0;
                if let Err(error) = self.pod.remove_leaf(container.leaf.name(), LEAF_DEADLINE) {
                    eprintln!("control group of a dead container stays for now: {error}");
                }
                crate::sys::failpoint::failpoint!(ContainerLeafRemoved);
                if running {
                    let (container, attempt) = (container.spec.name.clone(), container.spec.attempt);
                    self.record(SandboxEvent::Exited { container, attempt, exit });
                    crate::sys::failpoint::failpoint!(ExitRecorded);
                }
            }
            Role::Exec { exec, client, spec } => {
                if running {
                    exit.oom_killed = exit.signal == Some(libc::SIGKILL)
                        && self.running(&spec.container).is_ok_and(|(_, c)| c.leaf.oom_kills().unwrap_or(0) > 0);
                    let notice = Notice::ExecExited { exec: *exec, exit };
                    self.clients.notify(&self.poller, *client, &notice);
                }
            }
        }
        if let Launch::Refused(refusal) = process.launch {
            process.waiters.into_iter().for_each(|waiter| self.refuse(waiter, refusal.clone()));
        }
    }

    /// Without its first process a shared PID namespace is dead, and all containers with it.
    fn pod_init_ended(&mut self, pid: Pid) {
        if let Some(configured) = &mut self.configured
            && configured.pod_init.as_ref().is_some_and(|init| init.pid == pid)
        {
            eprintln!("the pod's first process has ended");
        }
    }

    /// One turn of an output.
    pub(super) fn read_output(&mut self, process: Key, key: Key) {
        let Some(Process { role: Role::Init(container), .. }) = self.processes.get_mut(&process) else { return };
        let Some(index) = container.outputs.iter().position(|output| output.key == key) else { return };
        let (pumped, first) = pump(&mut self.buffers, container, index);
        if pumped == Pumped::Ended {
            let output = container.outputs.remove(index);
            self.poller.remove(&output.fd);
            self.sources.remove(&key);
        }
        if let Some(event) = first {
            self.record(event);
        }
    }

    /// Everything that a dead container has left in its pipes.
    fn drain(&mut self, container: &mut Container) {
        for index in 0..container.outputs.len() {
            loop {
                let (pumped, first) = pump(&mut self.buffers, container, index);
                if let Some(event) = first {
                    self.record(event);
                }
                if !matches!(pumped, Pumped::Bytes(_)) {
                    break;
                }
            }
        }
        for output in std::mem::take(&mut container.outputs) {
            self.poller.remove(&output.fd);
            self.sources.remove(&output.key);
            if let Err(error) = container.log.finish(&mut self.buffers, output.stream, clock::wall_ns()) {
                eprintln!("log cannot be finished: {error}");
            }
        }
        container.stdin = None;
    }
}

/// Moves some output to the log; with the event of the first byte, if it was that.
fn pump(buffers: &mut Buffers, container: &mut Container, index: usize) -> (Pumped, Option<SandboxEvent>) {
    let output = &container.outputs[index];
    let pumped = match container.log.pump(buffers, output.stream, &output.fd, clock::wall_ns()) {
        Ok(pumped) => pumped,
        Err(LogError::Output { source }) => {
            eprintln!("output cannot be read: {source}");
            Pumped::Ended
        }
        // Output was read and is lost; the log counts it and says so when it can.
        Err(_) => Pumped::Bytes(0),
    };
    let first = matches!(pumped, Pumped::Bytes(_)) && !container.first_byte;
    container.first_byte |= first;
    let event = first.then(|| SandboxEvent::FirstByte {
        container: container.spec.name.clone(),
        attempt: container.spec.attempt,
        boottime_ns: clock::boottime_ns(),
    });
    (pumped, event)
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
