//! What the fake remembers, and how it changes: no tasks, no waiting.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::AsFd;

use tokio::sync::mpsc;

use super::attach::Attacher;
use super::exec::Guest;
use super::{Behaviour, Moment};
use crate::contract::{Exit, SandboxError, SandboxEvent, SandboxStats, Started, Usage};
use crate::shim::log::{Buffers, Limits, LogWriter, Stream};
use crate::spec::{ContainerName, ContainerSpec, ExecSpec, Namespaces, Resources, SandboxId, SandboxSpec};

/// Events a subscriber may be behind; the fake's tests never come near.
const BACKLOG: usize = 4096;

/// A call of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the contract's own names
pub enum Operation {
    Prepare,
    Configure,
    Start,
    Exec,
    Attach,
    Pause,
    Resume,
    Signal,
    Update,
    Stats,
    Events,
    Destroy,
    List,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// How a call fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A step is refused, with this message; nothing happened.
    Refused(String),
    /// The sandbox could not be asked; nothing happened.
    LostBefore,
    /// The answer was lost; everything happened.
    LostAfter,
}

/// How a container ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Code(i32),
    Signal(i32),
    OutOfMemory,
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) spec: ContainerSpec,
    pub(super) behaviour: Behaviour,
    resources: Resources,
    pub(super) log: LogWriter,
    pub(super) buffers: Buffers,
    pub(super) attached: Vec<Attacher>,
    /// Its further processes.
    pub(super) guests: Vec<Guest>,
    pub(super) input_closed: bool,
    /// Its terminal's, in columns and rows.
    pub(super) size: (u16, u16),
    pub(super) paused: bool,
    /// What came while it was paused.
    pub(super) waiting_input: Vec<u8>,
    pub(super) waiting_end: Option<End>,
}

#[derive(Debug)]
pub(super) struct Sandbox {
    namespaces: Namespaces,
    pub(super) spec: Option<SandboxSpec>,
    pub(super) running: BTreeMap<ContainerName, Container>,
    pub(super) usage: BTreeMap<ContainerName, Usage>,
    pub(super) alive: bool,
    history: Vec<SandboxEvent>,
    subscribers: Vec<mpsc::Sender<SandboxEvent>>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) sandboxes: BTreeMap<SandboxId, Sandbox>,
    pub(super) behaviours: BTreeMap<String, Behaviour>,
    pub(super) calls: Vec<(Operation, SandboxId)>,
    pub(super) faults_by_number: BTreeMap<usize, Fault>,
    pub(super) faults_by_operation: Vec<(Operation, Fault)>,
    next_pid: u32,
    pub(super) next_attacher: u64,
}

pub(super) fn lost(operation: Operation) -> SandboxError {
    SandboxError::Unavailable { operation: operation.to_string(), source: io::ErrorKind::ConnectionReset.into() }
}

pub(super) fn not_found(what: impl fmt::Display) -> SandboxError {
    SandboxError::NotFound { what: what.to_string() }
}

pub(super) fn invalid(message: impl Into<String>) -> SandboxError {
    SandboxError::Invalid { message: message.into() }
}

impl Sandbox {
    fn tell(&mut self, event: SandboxEvent) {
        self.history.push(event.clone());
        self.subscribers.retain(|subscriber| subscriber.try_send(event.clone()).is_ok());
    }

    fn started(&self, name: &str, wanted: u32) -> Option<Started> {
        self.history.iter().find_map(|event| match event {
            SandboxEvent::Started { container, attempt, started } if container == name && *attempt == wanted => {
                Some(started.clone())
            }
            _ => None,
        })
    }
}

impl State {
    /// Counts a call; its fault, if it has one.
    pub(super) fn begin(&mut self, operation: Operation, id: &SandboxId) -> Option<Fault> {
        let number = self.calls.len();
        self.calls.push((operation, id.clone()));
        if let Some(fault) = self.faults_by_number.remove(&number) {
            return Some(fault);
        }
        let at = self.faults_by_operation.iter().position(|(of, _)| *of == operation)?;
        Some(self.faults_by_operation.remove(at).1)
    }

    fn sandbox(&mut self, id: &SandboxId) -> Result<&mut Sandbox, SandboxError> {
        self.sandboxes.get_mut(id).ok_or_else(|| not_found(format_args!("sandbox {id}")))
    }

    /// One whose shim answers.
    pub(super) fn alive(&mut self, id: &SandboxId, operation: Operation) -> Result<&mut Sandbox, SandboxError> {
        let sandbox = self.sandbox(id)?;
        if sandbox.alive { Ok(sandbox) } else { Err(lost(operation)) }
    }

    pub(super) fn prepare(&mut self, id: &SandboxId, namespaces: &Namespaces) -> Result<(), SandboxError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=63).contains(&id.0.len()) || !id.0.bytes().all(allowed) {
            return Err(invalid(format!("{:?} cannot name a sandbox", id.0)));
        }
        namespaces.check().map_err(invalid)?;
        let sandbox = self.sandboxes.entry(id.clone()).or_insert_with(|| Sandbox {
            namespaces: namespaces.clone(),
            spec: None,
            running: BTreeMap::new(),
            usage: BTreeMap::new(),
            alive: true,
            history: Vec::new(),
            subscribers: Vec::new(),
        });
        if sandbox.namespaces != *namespaces {
            return Err(invalid("the sandbox has other namespaces"));
        }
        self.alive(id, Operation::Prepare).map(drop)
    }

    pub(super) fn configure(&mut self, id: &SandboxId, spec: &SandboxSpec) -> Result<(), SandboxError> {
        let sandbox = self.alive(id, Operation::Configure)?;
        if sandbox.namespaces != spec.namespaces {
            return Err(invalid("the sandbox has other namespaces"));
        }
        match &sandbox.spec {
            Some(existing) if existing != spec => Err(invalid("the sandbox is another pod's already")),
            _ => {
                std::fs::create_dir_all(&spec.log_dir).map_err(|source| SandboxError::Unavailable {
                    operation: "creation of the log directory".into(),
                    source,
                })?;
                sandbox.spec = Some(spec.clone());
                Ok(())
            }
        }
    }

    pub(super) fn start(
        &mut self,
        id: &SandboxId,
        spec: &ContainerSpec,
        (boottime_ns, wall_ns): Moment,
    ) -> Result<Started, SandboxError> {
        let behaviour = self.behaviour(&spec.args);
        let pid = 1_000_000 + self.next_pid;
        let sandbox = self.alive(id, Operation::Start)?;
        if let Some(running) = sandbox.running.get(&spec.name)
            && running.spec.attempt != spec.attempt
        {
            return Err(invalid(format!("container {} runs another attempt", spec.name)));
        }
        if let Some(started) = sandbox.started(&spec.name, spec.attempt) {
            return Ok(started);
        }
        let Some(configured) = &sandbox.spec else { return Err(invalid("the sandbox is not configured")) };
        if spec.args.is_empty() || spec.rootfs.layers.is_empty() {
            return Err(invalid("a container needs a program and a root"));
        }
        if let Some(target) = spec.target.as_ref().filter(|target| !sandbox.running.contains_key(*target)) {
            return Err(not_found(format_args!("running container {target}")));
        }
        if let Some((message, code)) = behaviour.refused {
            return Err(SandboxError::Exec { message, code });
        }
        let mut buffers = Buffers::default();
        let log = begin_log(configured, spec, &mut buffers, &behaviour.output, wall_ns)?;
        let started = Started { pid, boottime_ns, wall_ns };
        let (container, attempt) = (spec.name.clone(), spec.attempt);
        sandbox.tell(SandboxEvent::Started { container: container.clone(), attempt, started: started.clone() });
        if !behaviour.output.is_empty() {
            sandbox.tell(SandboxEvent::FirstByte { container, attempt, boottime_ns });
        }
        let exit = behaviour.exit;
        let running = Container {
            spec: spec.clone(),
            behaviour,
            resources: spec.resources.clone(),
            log,
            buffers,
            attached: Vec::new(),
            guests: Vec::new(),
            input_closed: false,
            size: (0, 0),
            paused: false,
            waiting_input: Vec::new(),
            waiting_end: None,
        };
        sandbox.running.insert(spec.name.clone(), running);
        self.next_pid += 1;
        if let Some(code) = exit {
            self.end(id, &spec.name, End::Code(code), (boottime_ns, wall_ns));
        }
        Ok(started)
    }

    fn behaviour(&self, args: &[String]) -> Behaviour {
        let told = args.first().and_then(|program| self.behaviours.get(program));
        told.cloned().unwrap_or_else(|| Behaviour::of(args))
    }

    pub(super) fn exec(&mut self, id: &SandboxId, exec: &ExecSpec) -> Result<Behaviour, SandboxError> {
        let behaviour = self.behaviour(&exec.args);
        let sandbox = self.alive(id, Operation::Exec)?;
        match sandbox.running.get(&exec.container) {
            None => return Err(not_found(format_args!("running container {}", exec.container))),
            Some(container) if container.paused => {
                return Err(invalid(format!("container {} is paused", exec.container)));
            }
            Some(_) => {}
        }
        match behaviour.refused {
            Some((message, code)) => Err(SandboxError::Exec { message, code }),
            None => Ok(behaviour),
        }
    }

    pub(super) fn signal(
        &mut self,
        id: &SandboxId,
        container: &str,
        signal: i32,
        now: Moment,
    ) -> Result<(), SandboxError> {
        if !(0..=64).contains(&signal) {
            return Err(invalid(format!("there is no signal {signal}")));
        }
        let sandbox = self.alive(id, Operation::Signal)?;
        let running = sandbox
            .running
            .get_mut(container)
            .ok_or_else(|| not_found(format_args!("running container {container}")))?;
        let ends = signal != 0 && (!running.behaviour.stubborn || signal == libc::SIGKILL);
        if ends && running.paused && signal != libc::SIGKILL {
            running.waiting_end = Some(End::Signal(signal));
        } else if ends {
            self.end(id, container, End::Signal(signal), now);
        }
        Ok(())
    }

    pub(super) fn update(
        &mut self,
        id: &SandboxId,
        container: Option<&str>,
        resources: &Resources,
    ) -> Result<(), SandboxError> {
        let sandbox = self.alive(id, Operation::Update)?;
        match container {
            None => {
                if let Some(spec) = &mut sandbox.spec {
                    spec.resources = resources.clone();
                }
            }
            Some(name) => {
                let running =
                    sandbox.running.get_mut(name).ok_or_else(|| not_found(format_args!("running container {name}")))?;
                running.resources = resources.clone();
            }
        }
        Ok(())
    }

    pub(super) fn stats(&mut self, id: &SandboxId) -> Result<SandboxStats, SandboxError> {
        let sandbox = self.sandbox(id)?;
        let mut stats = SandboxStats::default();
        for name in sandbox.running.keys() {
            let one = Usage { pids: 1, ..Usage::default() };
            let usage = sandbox.usage.get(name).cloned().unwrap_or(one);
            stats.pod.cpu_ns += usage.cpu_ns;
            stats.pod.memory_bytes += usage.memory_bytes;
            stats.pod.memory_working_set_bytes += usage.memory_working_set_bytes;
            stats.pod.pids += usage.pids;
            stats.containers.insert(name.clone(), usage);
        }
        Ok(stats)
    }

    pub(super) fn subscribe(&mut self, id: &SandboxId) -> Result<mpsc::Receiver<SandboxEvent>, SandboxError> {
        let sandbox = self.sandbox(id)?;
        let (sender, receiver) = mpsc::channel(BACKLOG + sandbox.history.len());
        for event in &sandbox.history {
            // There is room for all of them.
            let _ = sender.try_send(event.clone());
        }
        sandbox.subscribers.push(sender);
        Ok(receiver)
    }

    pub(super) fn end(&mut self, id: &SandboxId, name: &str, end: End, (boottime_ns, wall_ns): Moment) -> bool {
        let Some(sandbox) = self.sandboxes.get_mut(id) else { return false };
        let Some(mut ended) = sandbox.running.remove(name) else { return false };
        let _ = ended.log.finish(&mut ended.buffers, Stream::Stdout, wall_ns);
        ended.detach_all();
        ended.guests.iter().for_each(Guest::end);
        let (code, signal) = match end {
            End::Code(code) => (code, None),
            End::Signal(signal) => (128 + signal, Some(signal)),
            End::OutOfMemory => (128 + libc::SIGKILL, Some(libc::SIGKILL)),
        };
        let oom_killed = matches!(end, End::OutOfMemory);
        sandbox.tell(SandboxEvent::Exited {
            container: name.to_owned(),
            attempt: ended.spec.attempt,
            exit: Exit { code, signal, oom_killed, boottime_ns, wall_ns },
        });
        // Those that live in its PID namespace go with it.
        let joined = sandbox.running.values().filter(|other| other.spec.target.as_deref() == Some(name));
        let joined: Vec<String> = joined.map(|other| other.spec.name.clone()).collect();
        let alone = !sandbox.spec.as_ref().is_some_and(|spec| spec.share_process_namespace);
        for other in joined.iter().filter(|_| alone) {
            self.end(id, other, End::Signal(libc::SIGKILL), (boottime_ns, wall_ns));
        }
        true
    }

    pub(super) fn lose(&mut self, id: &SandboxId, (boottime_ns, _): Moment) {
        if let Some(sandbox) = self.sandboxes.get_mut(id) {
            sandbox.alive = false;
            sandbox.running.clear();
            sandbox.tell(SandboxEvent::Lost { boottime_ns });
        }
    }
}

fn begin_log(
    pod: &SandboxSpec,
    spec: &ContainerSpec,
    buffers: &mut Buffers,
    output: &[u8],
    wall_ns: u64,
) -> Result<LogWriter, SandboxError> {
    let failed = |message: String| SandboxError::Failed { operation: "log of the container".into(), message };
    let directory = std::fs::File::open(&pod.log_dir).map_err(|error| failed(error.to_string()))?;
    let log = LogWriter::create(directory.as_fd(), &spec.name, spec.attempt, Limits::default());
    let mut log = log.map_err(|error| failed(error.to_string()))?;
    log.write(buffers, Stream::Stdout, output, wall_ns).map_err(|error| failed(error.to_string()))?;
    Ok(log)
}
