//! Starting containers: fork a stub, follow its report until its program has taken over.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::attach::Stdin;
use super::container::{Container, Launch, Output, Process, Role, Waiter};
use super::log::rate::Rate;
use super::log::{Limits, LogWriter, Stream};
use super::own_root;
use super::poller::Key;
use super::requests::{cgroup_refusal, described};
use super::server::{PodInit, Shim, Source};
use super::spare::{Spare, furnish};
use super::stub::report::{Proceed, Report, Step};
use super::stub::{self, Order, Shared, devices, host_devices, identity, mounts};
use crate::cgroup::EVERY_DEVICE;
use crate::contract::{SandboxEvent, Started};
use crate::ids::Ids;
use crate::protocol::shim::{Reply, StartFds};
use crate::protocol::{Connection, Fill, Refusal};
use crate::seccomp;
use crate::spec::{ContainerSpec, Security, User};
use crate::sys::clone::{self, Child, fork_with};
use crate::sys::{clock, process};

impl Shim {
    pub(super) fn start(&mut self, waiter: Waiter, spec: ContainerSpec, counts: StartFds, fds: Vec<OwnedFd>) {
        match self.start_repeated(&spec) {
            Some(Repeated::Started(started)) => {
                return self.clients.answer(&self.poller, waiter, Ok(Reply::Started(started)), vec![]);
            }
            Some(Repeated::Starting(key)) => {
                if let Some(process) = self.processes.get_mut(&key) {
                    process.waiters.push(waiter);
                }
                return;
            }
            Some(Repeated::Other) => {
                let message = format!("container {} runs another attempt", spec.name);
                return self.refuse(waiter, Refusal::Invalid { message });
            }
            None => {}
        }
        let leaf = Container::leaf_name(&spec);
        if let Err(refusal) = self.start_new(waiter, spec, counts, fds) {
            // Nothing runs in it yet.
            let _ = self.pod.remove_leaf(&leaf, std::time::Duration::ZERO);
            self.refuse(waiter, refusal);
        }
    }

    /// Whether this start was asked before.
    fn start_repeated(&self, spec: &ContainerSpec) -> Option<Repeated> {
        for (key, process) in &self.processes {
            let Role::Init(container) = &process.role else { continue };
            if container.spec.name != spec.name {
                continue;
            }
            return Some(match (&process.launch, container.spec.attempt == spec.attempt) {
                (Launch::Stub { .. } | Launch::Refused(_), true) => Repeated::Starting(*key),
                (Launch::Running, true) => Repeated::Started(container.started.clone()?),
                _ => Repeated::Other,
            });
        }
        self.history.events().iter().find_map(|event| match event {
            SandboxEvent::Started { container, attempt, started }
                if *container == spec.name && *attempt == spec.attempt =>
            {
                Some(Repeated::Started(started.clone()))
            }
            _ => None,
        })
    }

    fn start_new(
        &mut self,
        waiter: Waiter,
        spec: ContainerSpec,
        counts: StartFds,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        check_ids(&spec.user, &self.slot.ids)?;
        identity::capability_set(&spec.security.capabilities)?;
        check_descriptors(&spec, counts, &fds)?;
        let Some(configured) = &self.configured else {
            return Err(Refusal::Invalid { message: "the sandbox is not configured".into() });
        };
        if self.leaving.is_some() {
            return Err(Refusal::Invalid { message: "the sandbox is being destroyed".into() });
        }
        let namespace = self.shared_namespace(&spec)?;
        let rate = Rate::new(configured.spec.log_bytes_per_second);
        let Plumbing { streams, stdin, outputs } = plumb(spec.tty, spec.stdin)?;
        let stdin = stdin.map(Stdin::new).transpose()?;
        let order = Order { counts, spec };
        let all = || fds.iter().chain(&streams).map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>();
        let ordered = match namespace {
            None => self.order(&order.spec.resources, &order, all().step("copies of descriptors")?),
            // The spare has a namespace of its own.
            Some(_) => None,
        };
        let mut spare = match ordered {
            Some(spare) => spare,
            None => self.fork_stub(&order, all().step("copies of descriptors")?, namespace.as_ref())?,
        };
        let log = self.let_proceed(&mut spare, &order.spec).inspect_err(|_| self.dismiss(&spare))?;
        let Spare { child, leaf, channel, .. } = spare;
        let container = Container {
            spec: Rc::new(order.spec),
            leaf,
            started: None,
            outputs: Vec::new(),
            stdin,
            log,
            rate,
            first_byte: false,
            attached: Vec::new(),
            paused: false,
            joiner: None,
            mounts: fds,
        };
        let key = self.enrol(child, channel, waiter, Role::Init(Box::new(container)))?;
        for (fd, stream) in outputs {
            self.watch_output(key, fd, stream)?;
        }
        Ok(())
    }

    /// Makes the container's log, while the stub makes its root, and only then lets it execute its program.
    fn let_proceed(&self, spare: &mut Spare, spec: &ContainerSpec) -> Result<LogWriter, Refusal> {
        let Some(configured) = &self.configured else {
            return Err(Refusal::Invalid { message: "the sandbox is not configured".into() });
        };
        let log = LogWriter::create(configured.logs.as_fd(), &spec.name, spec.attempt, Limits::default())
            .map_err(|error| described("log of the container", &error))?;
        crate::sys::failpoint::failpoint!(LogMade);
        // A stub that has ended meanwhile has said why, or is told of by its end.
        let _ = spare.channel.send(&Proceed, vec![]);
        Ok(log)
    }

    /// The PID namespace that a container joins: its target's, or the one that all share.
    fn shared_namespace(&self, spec: &ContainerSpec) -> Result<Option<OwnedFd>, Refusal> {
        let target = spec.target.as_ref().map(|name| self.running(name)).transpose()?;
        let init = self.configured.as_ref().and_then(|configured| configured.pod_init.as_ref());
        match (init, target) {
            (Some(init), _) => Ok(Some(init.namespace.try_clone().step("copy of the shared PID namespace")?)),
            (None, Some((process, _))) => open_pid_namespace(process.pid).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// A stub for this order alone, in a leaf of its own.
    fn fork_stub(&self, order: &Order, fds: Vec<OwnedFd>, namespace: Option<&OwnedFd>) -> Result<Spare, Refusal> {
        let spec = &order.spec;
        let dev = mounts::make_dev(self.slot.ids.base())?;
        let every_device = spec.security.host_devices && self.slot.user.is_none();
        if every_device {
            host_devices::populate(&dev)?;
        }
        let own = &spec.security.devices;
        devices::add(&dev, own, &spec.user, &self.slot.ids)?;
        let leaf = self
            .pod
            .create_leaf(&Container::leaf_name(spec))
            .map_err(|error| cgroup_refusal("control group of the container", &error))?;
        crate::sys::failpoint::failpoint!(ContainerLeafMade);
        leaf.apply(&spec.resources).map_err(|error| cgroup_refusal("limits of the container", &error))?;
        let rules = if every_device { EVERY_DEVICE.to_vec() } else { devices::rules(own) };
        furnish(&leaf, &rules, self.usual_devices.as_ref())?;
        crate::sys::failpoint::failpoint!(LimitsApplied);
        let (ours, theirs) = report_channel()?;
        let shared = self.shared(&spec.security);
        let stub = || stub::launch(&shared, order, fds, (&leaf, &self.view), &dev, theirs);
        let child = match namespace {
            None => fork_with(self.slot.container_spaces(), leaf.clone_into(), stub),
            Some(namespace) => in_pid_namespace(namespace, || fork_with(clone::NEWNS, leaf.clone_into(), stub))?,
        }
        .step("fork of the container's first process")?;
        crate::sys::failpoint::failpoint!(StubForked);
        Ok(Spare { child, leaf, channel: Connection::new(ours), ready: false })
    }

    pub(super) fn shared(&self, security: &Security) -> Shared<'_> {
        Shared {
            user: self.slot.user.as_ref(),
            ids: &self.slot.ids,
            filter: seccomp::program(&security.seccomp, &security.capabilities),
        }
    }

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
                    Report::Ready => {}
                    Report::Degraded { what } => crate::sys::say::say!("{what}"),
                    Report::Executing => *executing = true,
                    Report::Failed { refusal: why } => *refusal = Some(why),
                }
            }
            match report.fill() {
                Ok(Fill::Data) => {}
                Ok(Fill::WouldBlock) => return false,
                Ok(Fill::Closed) | Err(_) => break,
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

    /// The first process of a PID namespace that all of the pod's containers share.
    pub(super) fn make_pod_init(&mut self) -> Result<PodInit, Refusal> {
        let user = self.slot.user.as_ref();
        let child = fork_with(clone::NEWPID, None, || pod_init(user)).step("fork of the pod's first process")?;
        Ok(PodInit { pid: child.pid, namespace: open_pid_namespace(child.pid)? })
    }
}

enum Repeated {
    Started(Started),
    Starting(Key),
    Other,
}

fn check_ids(user: &User, ids: &Ids) -> Result<(), Refusal> {
    let own = [("user", user.uid), ("group", user.gid)].into_iter();
    let groups = user.additional_gids.iter().map(|gid| ("group", *gid));
    match own.chain(groups).find(|(_, id)| ids.on_host(*id).is_none()) {
        None => Ok(()),
        Some((kind, id)) => Err(Refusal::Invalid {
            message: format!("{kind} id {id} is outside the sandbox's user namespace ({})", ids.described()),
        }),
    }
}

fn check_descriptors(spec: &ContainerSpec, counts: StartFds, fds: &[OwnedFd]) -> Result<(), Refusal> {
    if fds.len() != counts.total() || counts.writable > 1 || counts.mounts != spec.mounts.len() || counts.layers == 0 {
        let message = "the descriptors that came along are not those of the specification".into();
        return Err(Refusal::Invalid { message });
    }
    Ok(())
}

struct Plumbing {
    /// What the program gets, unless it gets a terminal.
    streams: Vec<OwnedFd>,
    stdin: Option<OwnedFd>,
    outputs: Vec<(OwnedFd, Stream)>,
}

fn plumb(tty: bool, open_stdin: bool) -> Result<Plumbing, Refusal> {
    if tty {
        return Ok(Plumbing { streams: Vec::new(), stdin: None, outputs: Vec::new() });
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).step("pipe");
    let (stdin_read, stdin) = if open_stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (own_root::null()?, None)
    };
    let (out_read, out) = pipe()?;
    let (err_read, err) = pipe()?;
    let outputs = vec![(out_read, Stream::Stdout), (err_read, Stream::Stderr)];
    Ok(Plumbing { streams: vec![stdin_read, out, err], stdin, outputs })
}

pub(super) fn report_channel() -> Result<(OwnedFd, OwnedFd), Refusal> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).step("report channel")?;
    Ok((ours, theirs))
}

pub(super) fn open_pid_namespace(pid: rustix::process::Pid) -> Result<OwnedFd, Refusal> {
    let file = std::fs::File::open(format!("/proc/{}/ns/pid", pid.as_raw_nonzero())).step("open of a PID namespace")?;
    Ok(file.into())
}

/// Runs `fork` so that its child is in `namespace`.
pub(super) fn in_pid_namespace<T>(namespace: &OwnedFd, fork: impl FnOnce() -> T) -> Result<T, Refusal> {
    let own = std::fs::File::open("/proc/self/ns/pid").step("open of the own PID namespace")?;
    let kind = Some(LinkNameSpaceType::ProcessID);
    move_into_link_name_space(namespace.as_fd(), kind).step("entering a PID namespace")?;
    let result = fork();
    move_into_link_name_space(own.as_fd(), kind).step("leaving a PID namespace")?;
    Ok(result)
}

/// PID 1 of a shared PID namespace: powerless, in an empty root, reaps orphans for ever. Without a user namespace a container
/// with CAP_SYS_PTRACE may look into it; the shim's root is then not to be seen by way of it.
fn pod_init(user: Option<&OwnedFd>) -> i32 {
    let root = User::default();
    let nothing = Security { capabilities: vec![], no_new_privileges: true, ..Default::default() };
    let give_up = || {
        let wanted = identity::assume(&root, &nothing)?;
        identity::confine(&root, &nothing, wanted, None)
    };
    let powerless = process::restore_signals().is_ok()
        && rustix::process::chroot(own_root::EMPTY).is_ok()
        && rustix::process::chdir("/").is_ok()
        && identity::enter_user_namespace(user).is_ok()
        && give_up().is_ok()
        // It has the shim's memory and root. A change of ids sets this anew, by a setting of the host's.
        && rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).is_ok()
        && process::close_from(0).is_ok();
    if !powerless {
        process::exit_now(1);
    }
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(_) => {}
            // No child now; one may come to it later. A stop is what any signal-less wait is.
            Err(_) => process::wait_for_child(),
        }
    }
}
