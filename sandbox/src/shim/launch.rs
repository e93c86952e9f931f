//! Starting containers: what is asked is checked, a stub forked or the spare one ordered, its log made.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use super::attach::Stdin;
use super::container::{Container, Launch, Role, Waiter};
use super::log::rate::Rate;
use super::log::{Limits, LogWriter};
use super::plumbing::{Plumbing, plumb, report_channel};
use super::poller::Key;
use super::requests::{cgroup_refusal, described};
use super::server::Shim;
use super::shared_pids::{in_pid_namespace, open_pid_namespace};
use super::spare::{Spare, furnish};
use super::stub::report::{Proceed, Step};
use super::stub::{self, Order, Shared, devices, host_devices, identity, mounts};
use crate::cgroup::EVERY_DEVICE;
use crate::contract::{SandboxEvent, Started};
use crate::ids::Ids;
use crate::protocol::shim::{Reply, StartFds};
use crate::protocol::{Connection, Refusal};
use crate::seccomp;
use crate::spec::{ContainerSpec, Mount, Security, User};
use crate::sys::clone::fork_with;

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
            None if counts.assembled => {
                self.ahead = None;
                return Err(Refusal::NotFound { what: "the root that was made ahead".into() });
            }
            None => self.fork_stub(&order, all().step("copies of descriptors")?, namespace.as_ref())?,
        };
        let log = match self.let_proceed(&mut spare, &order.spec) {
            Ok(log) => log,
            Err(refusal) => {
                self.dismiss(spare);
                return Err(refusal);
            }
        };
        let Spare { child, lender, leaf, channel, .. } = spare;
        let ahead = self.ahead.take_if(|_| counts.assembled);
        let container = Container {
            spec: Rc::new(order.spec),
            leaf,
            lender,
            started: None,
            outputs: Vec::new(),
            stdin,
            log,
            rate,
            first_byte: false,
            attached: Vec::new(),
            paused: false,
            joiner: None,
            mounts: fds.into_iter().chain(ahead.into_iter().flatten()).collect(),
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
        let stub = || stub::launch(&shared, order, fds, (&leaf, &self.view), (&dev, &self.own_root.stage), theirs);
        let child = match namespace {
            None => fork_with(self.slot.container_spaces(), leaf.clone_into(), stub),
            Some(namespace) => in_pid_namespace(namespace, || fork_with(0, leaf.clone_into(), stub))?,
        }
        .step("fork of the container's first process")?;
        crate::sys::failpoint::failpoint!(StubForked);
        Ok(Spare {
            child,
            lender: None,
            leaf,
            channel: Connection::new(ours),
            away: None,
            ready: false,
            forwarded: false,
        })
    }

    pub(super) fn shared(&self, security: &Security) -> Shared<'_> {
        Shared {
            user: self.slot.user.as_ref(),
            ids: &self.slot.ids,
            filter: seccomp::program(&security.seccomp, &security.capabilities),
        }
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
    let root = match counts.assembled {
        true => counts.layers == 0 && counts.writable == 0,
        false => counts.layers > 0 && counts.writable <= 1,
    };
    let mounts: usize = spec.mounts.iter().map(Mount::parts).sum();
    if fds.len() != counts.total() || counts.mounts != mounts || !root {
        let message = "the descriptors that came along are not those of the specification".into();
        return Err(Refusal::Invalid { message });
    }
    Ok(())
}
