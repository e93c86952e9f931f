//! Ends.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use super::container::{Container, Launch, Process, Role};
use super::poller::Key;
use super::server::Shim;
use crate::contract::{Exit, SandboxEvent};
use crate::protocol::shim::Notice;
use crate::sys::clock;

/// Bytes read from one output before others have their turn.
const READ: usize = 32 << 10;
/// How long a dead container's other processes may take to be gone before its leaf is left for `destroy`.
const LEAF_DEADLINE: Duration = Duration::from_millis(50);

impl Shim {
    /// Collects every child that has ended.
    pub(super) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let found = self.processes.iter().find(|(_, process)| process.pid == pid).map(|(key, _)| *key);
            if let Some(key) = found {
                self.ended(key, status);
            } else {
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
                let _ = container.leaf.kill();
                self.drain(container);
                if let Err(error) = container.log.finish() {
                    eprintln!("log cannot be finished: {error}");
                }
                exit.oom_killed = container.leaf.oom_kills().unwrap_or(0) > 0;
                if let Err(error) = self.pod.remove_leaf(container.leaf.name(), LEAF_DEADLINE) {
                    eprintln!("control group of a dead container stays for now: {error}");
                }
                if running {
                    let (container, attempt) = (container.spec.name.clone(), container.spec.attempt);
                    self.record(SandboxEvent::Exited { container, attempt, exit });
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
        let stream = container.outputs[index].stream;
        match read_some(&container.outputs[index].fd) {
            Some(bytes) if !bytes.is_empty() => {
                if let Err(error) = container.log.write(stream, &bytes) {
                    eprintln!("log cannot be written: {error}");
                }
                let event = (!container.first_byte).then(|| SandboxEvent::FirstByte {
                    container: container.spec.name.clone(),
                    attempt: container.spec.attempt,
                    boottime_ns: clock::boottime_ns(),
                });
                container.first_byte = true;
                if let Some(event) = event {
                    self.record(event);
                }
            }
            Some(_) => {}
            None => {
                let output = container.outputs.remove(index);
                self.poller.remove(&output.fd);
                self.sources.remove(&key);
            }
        }
    }

    /// Everything that a dead container has left in its pipes.
    fn drain(&mut self, container: &mut Container) {
        for output in std::mem::take(&mut container.outputs) {
            while let Some(bytes) = read_some(&output.fd) {
                if bytes.is_empty() {
                    break;
                }
                if !container.first_byte {
                    container.first_byte = true;
                    self.record(SandboxEvent::FirstByte {
                        container: container.spec.name.clone(),
                        attempt: container.spec.attempt,
                        boottime_ns: clock::boottime_ns(),
                    });
                }
                if let Err(error) = container.log.write(output.stream, &bytes) {
                    eprintln!("log cannot be written: {error}");
                    break;
                }
            }
            self.poller.remove(&output.fd);
            self.sources.remove(&output.key);
        }
        container.stdin = None;
    }
}

/// Some bytes; none: nothing now; `None`: the end (a terminal says so by `EIO`).
fn read_some(fd: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(READ);
    match rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes)) {
        Ok(0) => None,
        Ok(_) => Some(bytes),
        Err(Errno::AGAIN | Errno::INTR) => Some(Vec::new()),
        Err(_) => None,
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
