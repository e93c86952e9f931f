//! What each request does.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Signal, pidfd_send_signal};

use super::container::{Launch, Process, Role, Waiter};
use super::poller::Key;
use super::server::{Configured, Shim};
use super::stub::report::Step;
use crate::cgroup::CgroupError;
use crate::protocol::shim::{Notice, Reply, Request, Status};
use crate::protocol::{Call, Refusal, Unparsed, VERSIONS};
use crate::spec::{Namespaces, Resources, SandboxSpec};

/// `/proc/sys` directories that belong to the pod's own namespaces; everything else is the host's.
const OWN_SYSCTLS: [&str; 7] =
    ["net.", "kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.", "kernel.hostname", "kernel.domainname"];

impl Shim {
    pub(super) fn request(&mut self, client: Key, call: Call<Request>, fds: Vec<OwnedFd>) {
        let waiter = Waiter { client, call: call.id };
        let version = self.clients.map.get(&client).and_then(|client| client.version);
        match version {
            None if !matches!(call.body, Request::Hello { .. }) => {
                return self.refuse(waiter, Refusal::Invalid { message: "say hello first".into() });
            }
            // It agreed on a version that has no such thing.
            Some(version) if call.body.since() > version => {
                return self.refuse(waiter, Refusal::unknown_request(call.body.name(), version));
            }
            _ => {}
        }
        let result = match call.body {
            Request::Hello { versions } => self.hello(client, versions),
            Request::Status => return self.status(waiter),
            Request::Settle => self.settle(),
            Request::Assemble => self.assemble(fds),
            Request::Configure { spec } => self.configure(spec, fds),
            Request::Start { spec, fds: counts } => return self.start(waiter, spec, counts, fds),
            Request::Exec { spec, stdio } => return self.exec(waiter, spec, stdio, fds),
            Request::ExecSignal { exec, signal } => self.signal_exec(exec, signal),
            Request::Attach { container, streams } => return self.attach(waiter, &container, streams, fds),
            Request::Resize { container, columns, rows } => self.resize(&container, columns, rows),
            Request::Pause { container } => self.pause(&container),
            Request::Resume { container } => self.resume(&container),
            Request::Signal { container, signal, all } => self.signal(&container, signal, all),
            Request::Update { container, resources } => self.update(container.as_deref(), &resources),
            Request::Subscribe => return self.subscribe(waiter),
            Request::Shutdown => return self.shut_down(waiter),
        };
        self.clients.answer(&self.poller, waiter, result, vec![]);
    }

    pub(super) fn refuse(&mut self, waiter: Waiter, refusal: Refusal) {
        self.clients.answer(&self.poller, waiter, Err(refusal), vec![]);
    }

    /// Refuses, by name, what is no request of this version; false when it is not even one of a later version.
    pub(super) fn refuse_unparsed(&mut self, client: Key, body: &[u8], error: &serde_json::Error) -> bool {
        let version = self.clients.map.get(&client).and_then(|client| client.version).unwrap_or(VERSIONS.lowest);
        let refused = Unparsed::refuse(body, &Request::NAMES, version, error);
        if let Some((call, refusal)) = refused {
            self.refuse(Waiter { client, call }, refusal);
            return true;
        }
        false
    }

    fn hello(&mut self, client: Key, versions: crate::protocol::Versions) -> Result<Reply, Refusal> {
        let version = VERSIONS.negotiate(versions).ok_or_else(|| Refusal::Invalid {
            message: format!("this shim speaks versions {} to {}", VERSIONS.lowest, VERSIONS.highest),
        })?;
        if let Some(client) = self.clients.map.get_mut(&client) {
            client.version = Some(version);
        }
        Ok(Reply::Hello { version })
    }

    fn status(&mut self, waiter: Waiter) {
        let assembled = self.ahead.is_some();
        let mut status = Status { program: self.program.clone(), assembled, ..Status::default() };
        if let Some(configured) = &self.configured {
            status.configured = true;
            status.labels = configured.spec.labels.clone();
        }
        for process in self.processes.values() {
            if let (Role::Init(container), Launch::Running) = (&process.role, &process.launch) {
                status.running.insert(container.spec.name.clone(), container.leaf.name().to_owned());
                if container.paused {
                    status.paused.insert(container.spec.name.clone());
                }
            }
        }
        match self.slot.net.as_fd().try_clone_to_owned().step("copy of the network namespace") {
            Ok(net) => self.clients.answer(&self.poller, waiter, Ok(Reply::Status(status)), vec![net]),
            Err(refusal) => self.refuse(waiter, refusal),
        }
    }

    fn configure(&mut self, spec: SandboxSpec, mut fds: Vec<OwnedFd>) -> Result<Reply, Refusal> {
        if let Some(configured) = &self.configured {
            // Asked again, after an agent's crash: the same answer; for another pod: never.
            return if configured.spec == spec {
                Ok(Reply::Done)
            } else {
                Err(Refusal::Invalid { message: "the sandbox is another pod's already".into() })
            };
        }
        if spec.namespaces != self.slot.namespaces {
            return Err(Refusal::Invalid { message: "the sandbox has other namespaces".into() });
        }
        if spec.share_process_namespace && spec.namespaces.host_pid {
            return Err(Refusal::Invalid { message: "the host's PID namespace cannot be the pod's own too".into() });
        }
        let logs = fds.pop().ok_or_else(|| Refusal::Invalid { message: "no log directory came along".into() })?;
        crate::sys::failpoint::failpoint!(ConfigureBegun);
        rustix::system::sethostname(spec.hostname.as_bytes()).step(format!("host name {:?}", spec.hostname))?;
        for (name, value) in &spec.sysctls {
            set_sysctl(&spec.namespaces, name, value)?;
        }
        self.pod.apply(&spec.resources).map_err(|error| cgroup_refusal("limits of the pod", &error))?;
        if spec.share_process_namespace {
            self.dismiss_spare();
        }
        let pod_init = if spec.share_process_namespace { Some(self.make_pod_init()?) } else { None };
        self.configured = Some(Configured { spec, logs, pod_init });
        crate::sys::failpoint::failpoint!(Configured);
        Ok(Reply::Done)
    }

    fn signal(&mut self, name: &str, signal: i32, all: bool) -> Result<Reply, Refusal> {
        let number = signal_number(signal)?;
        let (process, container) = self.running(name)?;
        // Where only the old freezer is, one process alone would not die as long as it is frozen.
        if (all || container.paused) && number == Signal::KILL {
            container.leaf.kill().map_err(|error| cgroup_refusal("kill of the container", &error))?;
            return Ok(Reply::Done);
        }
        if all {
            let members = container.leaf.processes();
            for pid in members.map_err(|error| cgroup_refusal("processes of the container", &error))? {
                // One that has ended meanwhile needs no signal.
                let _ = rustix::process::kill_process(pid, number);
            }
            return Ok(Reply::Done);
        }
        send(process, number)?;
        Ok(Reply::Done)
    }

    fn signal_exec(&mut self, wanted: u64, signal: i32) -> Result<Reply, Refusal> {
        let number = signal_number(signal)?;
        let found = self.processes.values().find(|p| matches!(p.role, Role::Exec { exec, .. } if exec == wanted));
        let process = found.ok_or_else(|| Refusal::NotFound { what: format!("exec {wanted}") })?;
        send(process, number)?;
        Ok(Reply::Done)
    }

    fn update(&mut self, container: Option<&str>, resources: &Resources) -> Result<Reply, Refusal> {
        match container {
            None => self.pod.update(resources),
            Some(name) => self.running(name)?.1.leaf.update(resources),
        }
        .map_err(|error| cgroup_refusal("change of limits", &error))?;
        Ok(Reply::Done)
    }

    fn subscribe(&mut self, waiter: Waiter) {
        self.clients.answer(&self.poller, waiter, Ok(Reply::Done), vec![]);
        for event in self.history.events() {
            self.clients.notify(&self.poller, waiter.client, &Notice::Event(event.clone()));
        }
        if let Some(client) = self.clients.map.get_mut(&waiter.client) {
            client.subscribed = true;
        }
    }

    fn shut_down(&mut self, waiter: Waiter) {
        for process in self.processes.values() {
            match &process.role {
                Role::Init(container) => drop(container.leaf.kill()),
                Role::Exec { .. } => drop(pidfd_send_signal(&process.pidfd, Signal::KILL)),
            }
        }
        self.leaving.get_or_insert_default().push(waiter);
        crate::sys::failpoint::failpoint!(ShutdownBegun);
    }

    pub(super) fn farewell(&mut self) {
        for waiter in self.leaving.take().unwrap_or_default() {
            self.clients.answer(&self.poller, waiter, Ok(Reply::Done), vec![]);
        }
    }

    /// A container whose program runs.
    pub(super) fn running(&self, name: &str) -> Result<(&Process, &super::container::Container), Refusal> {
        self.processes
            .values()
            .find_map(|process| match (&process.role, &process.launch) {
                (Role::Init(container), Launch::Running) if container.spec.name == name => {
                    Some((process, &**container))
                }
                _ => None,
            })
            .ok_or_else(|| Refusal::NotFound { what: format!("running container {name}") })
    }
}

fn send(process: &Process, signal: Signal) -> Result<(), Refusal> {
    match pidfd_send_signal(&process.pidfd, signal) {
        // Ended already: what it was told no longer matters.
        Err(rustix::io::Errno::SRCH) => Ok(()),
        other => other.step("signal"),
    }
}

fn signal_number(signal: i32) -> Result<Signal, Refusal> {
    let real_time = (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal);
    let found = if real_time { crate::sys::process::real_time_signal(signal) } else { Signal::from_named_raw(signal) };
    found.ok_or_else(|| Refusal::Invalid { message: format!("there is no signal {signal}") })
}

pub(super) fn cgroup_refusal(operation: &str, error: &CgroupError) -> Refusal {
    described(operation, error)
}

/// An error with its cause as a refusal.
pub(super) fn described(operation: &str, error: &dyn std::error::Error) -> Refusal {
    let source = error.source();
    let message = source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    Refusal::Failed { operation: operation.into(), message, errno: None }
}

/// Writes a sysctl of the pod's namespaces; the shim lives in them. A `+` or a path separator in a name is no name
/// (CVE-2022-0811).
fn set_sysctl(namespaces: &Namespaces, name: &str, value: &str) -> Result<(), Refusal> {
    let refused = |why: &str| Refusal::Invalid { message: format!("sysctl {name:?} {why}") };
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if !plain || name.contains("..") || value.contains(['\n', '\0']) {
        return Err(refused("is not one"));
    }
    let hosts = name.starts_with("net.") && namespaces.host_network
        || (name.starts_with("kernel.s") || name.starts_with("kernel.msg") || name.starts_with("fs.mqueue."))
            && namespaces.host_ipc;
    if hosts || !OWN_SYSCTLS.iter().any(|own| name.starts_with(own)) {
        return Err(refused("belongs to the host, not to the pod"));
    }
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::write(path, value).step(format!("sysctl {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_the_host_or_with_tricks_are_refused() {
        for name in [
            "kernel.core_pattern",
            "net.ipv4.x+kernel.core_pattern=1",
            "net/../kernel/core_pattern",
            "vm.swappiness",
            "net..x",
        ] {
            assert!(matches!(set_sysctl(&Namespaces::default(), name, "1"), Err(Refusal::Invalid { .. })), "{name}");
        }
        let (own, port_range) = (Namespaces::default(), "net.ipv4.ip_local_port_range");
        assert!(matches!(set_sysctl(&own, port_range, "1\n2"), Err(Refusal::Invalid { .. })));
        let hosts = Namespaces { user: false, host_network: true, host_ipc: true, ..own };
        for name in [port_range, "kernel.shmmax", "kernel.sem", "kernel.msgmax", "fs.mqueue.msg_max"] {
            assert!(matches!(set_sysctl(&hosts, name, "1"), Err(Refusal::Invalid { .. })), "{name}");
        }
    }

    #[test]
    fn signals_outside_the_kernels_range_are_refused() {
        assert!(signal_number(15).is_ok());
        assert!(signal_number(libc::SIGRTMIN()).is_ok());
        assert!(signal_number(0).is_err());
        assert!(signal_number(65).is_err());
        assert!(signal_number(-9).is_err());
    }
}
