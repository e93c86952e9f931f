//! Sandboxes in memory: the same contract, no kernel.
//!
//! It keeps state as the real kinds do (the conformance suite runs on it too), writes real log files, and does what a test
//! tells it: [`FakeSandboxes::exit`], [`FakeSandboxes::lose`] and [`FakeSandboxes::behave`] script the containers,
//! [`FakeSandboxes::fail_nth`] and [`FakeSandboxes::fail_next`] make calls fail, with and without their effect.
//!
//! What programs do, by `args[0]`: what [`FakeSandboxes::behave`] said of it; else `/fake/exit CODE`, `/fake/print TEXT`,
//! `/fake/echo` (input to output), `/fake/size` (its terminal's, at each input), `/fake/stubborn` (dies of SIGKILL only) and
//! `/fake/missing` (cannot be executed) as they say; anything else runs until it is signalled.

mod attach;
mod behaviour;
mod exec;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;

pub use behaviour::{Behaviour, Input};
pub use state::{Fault, Operation};

use crate::contract::{
    Attachment, ExecProcess, Listed, Prepared, SandboxError, SandboxEvent, SandboxStats, Sandboxes, Started, Stdio,
    Usage,
};
use crate::spec::{ContainerSpec, ExecSpec, Namespaces, Resources, SandboxId, SandboxSpec};
use crate::sys::clock;
use state::State;

/// A moment: CLOCK_BOOTTIME and CLOCK_REALTIME in nanoseconds.
pub type Moment = (u64, u64);

/// Sandboxes in memory. Clones share their state.
#[derive(Clone)]
pub struct FakeSandboxes {
    state: Arc<Mutex<State>>,
    clock: Arc<dyn Fn() -> Moment + Send + Sync>,
}

impl std::fmt::Debug for FakeSandboxes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeSandboxes").field("state", &*self.lock()).finish_non_exhaustive()
    }
}

impl Default for FakeSandboxes {
    fn default() -> Self {
        Self::with_clock(|| (clock::boottime_ns(), clock::wall_ns()))
    }
}

impl FakeSandboxes {
    /// None yet; time as the kernel tells it.
    pub fn new() -> Self {
        Self::default()
    }

    /// None yet; time as `clock` tells it.
    pub fn with_clock(clock: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        Self { state: Arc::default(), clock: Arc::new(clock) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a program does from now on, by `args[0]`.
    pub fn behave(&self, program: &str, behaviour: Behaviour) {
        self.lock().behaviours.insert(program.to_owned(), behaviour);
    }

    /// The `n`th call from now on (the next one is the first) fails.
    pub fn fail_nth(&self, n: usize, fault: Fault) {
        let mut state = self.lock();
        let at = state.calls.len() + n.max(1) - 1;
        state.faults_by_number.insert(at, fault);
    }

    /// The next call of one operation fails.
    pub fn fail_next(&self, operation: Operation, fault: Fault) {
        self.lock().faults_by_operation.push((operation, fault));
    }

    /// Every call so far, failed ones too.
    pub fn calls(&self) -> Vec<(Operation, SandboxId)> {
        self.lock().calls.clone()
    }

    /// A running container ends by itself. False when it does not run.
    pub fn exit(&self, id: &SandboxId, container: &str, code: i32) -> bool {
        self.lock().end(id, container, state::End::Code(code), (self.clock)())
    }

    /// A running container is ended by the kernel's OOM killer. False when it does not run.
    pub fn oom_kill(&self, id: &SandboxId, container: &str) -> bool {
        self.lock().end(id, container, state::End::OutOfMemory, (self.clock)())
    }

    /// The sandbox's shim dies with everything in it.
    pub fn lose(&self, id: &SandboxId) {
        self.lock().lose(id, (self.clock)());
    }

    /// Names of the containers that run.
    pub fn running(&self, id: &SandboxId) -> Vec<String> {
        self.lock().sandboxes.get(id).map(|sandbox| sandbox.running.keys().cloned().collect()).unwrap_or_default()
    }

    /// The specification a container runs by.
    pub fn container(&self, id: &SandboxId, container: &str) -> Option<ContainerSpec> {
        Some(self.lock().sandboxes.get(id)?.running.get(container)?.spec.clone())
    }

    /// What `stats` says of a container from now on.
    pub fn set_usage(&self, id: &SandboxId, container: &str, usage: Usage) {
        if let Some(sandbox) = self.lock().sandboxes.get_mut(id) {
            sandbox.usage.insert(container.to_owned(), usage);
        }
    }

    /// Counts the call, applies its fault, and does it.
    fn call<T>(
        &self,
        operation: Operation,
        id: &SandboxId,
        act: impl FnOnce(&mut State, Moment) -> Result<T, SandboxError>,
    ) -> Result<T, SandboxError> {
        let now = (self.clock)();
        let mut state = self.lock();
        let fault = state.begin(operation, id);
        match fault {
            None => act(&mut state, now),
            Some(Fault::LostAfter) => act(&mut state, now).and_then(|_| Err(state::lost(operation))),
            Some(Fault::LostBefore) => Err(state::lost(operation)),
            Some(Fault::Refused(message)) => Err(SandboxError::Failed { operation: operation.to_string(), message }),
        }
    }
}

#[async_trait]
impl Sandboxes for FakeSandboxes {
    async fn prepare_as(&self, id: &SandboxId, namespaces: &Namespaces) -> Result<Prepared, SandboxError> {
        self.call(Operation::Prepare, id, |state, _| state.prepare(id, namespaces))?;
        // Any descriptor will do: whoever would configure it has a fake of its own.
        let netns: OwnedFd = std::fs::File::open("/proc/self/ns/net")
            .or_else(|_| std::fs::File::open("/dev/null"))
            .map_err(|source| SandboxError::Unavailable { operation: "open of a network namespace".into(), source })?
            .into();
        Ok(Prepared { id: id.clone(), netns })
    }

    async fn configure(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<(), SandboxError> {
        self.call(Operation::Configure, id, |state, _| state.configure(id, spec))
    }

    async fn start(&self, id: &SandboxId, container: &ContainerSpec) -> Result<Started, SandboxError> {
        self.call(Operation::Start, id, |state, now| state.start(id, container, now))
    }

    async fn exec(&self, id: &SandboxId, exec: &ExecSpec, stdio: Stdio) -> Result<Box<dyn ExecProcess>, SandboxError> {
        let clock = Arc::clone(&self.clock);
        let behaviour = self.call(Operation::Exec, id, |state, _| state.exec(id, exec))?;
        let process = exec::FakeExec::start(behaviour, exec.tty, stdio, clock)?;
        // It ends with the container at the latest.
        match self.lock().container(id, &exec.container) {
            Ok(container) => container.guests.push(process.guest()),
            Err(_) => process.guest().end(),
        }
        Ok(Box::new(process))
    }

    async fn attach(&self, id: &SandboxId, container: &str, stdio: Stdio) -> Result<Box<dyn Attachment>, SandboxError> {
        let attached = self.call(Operation::Attach, id, |state, _| state.attach(id, container, stdio))?;
        Ok(Box::new(attach::FakeAttachment::start(self.clone(), id.clone(), container.to_owned(), attached)))
    }

    async fn pause(&self, id: &SandboxId, container: &str) -> Result<(), SandboxError> {
        self.call(Operation::Pause, id, |state, _| state.pause(id, container))
    }

    async fn resume(&self, id: &SandboxId, container: &str) -> Result<(), SandboxError> {
        self.call(Operation::Resume, id, |state, now| state.resume(id, container, now))
    }

    async fn signal(&self, id: &SandboxId, container: &str, signal: i32, _all: bool) -> Result<(), SandboxError> {
        self.call(Operation::Signal, id, |state, now| state.signal(id, container, signal, now))
    }

    async fn update(&self, id: &SandboxId, container: Option<&str>, resources: &Resources) -> Result<(), SandboxError> {
        self.call(Operation::Update, id, |state, _| state.update(id, container, resources))
    }

    async fn stats(&self, id: &SandboxId) -> Result<SandboxStats, SandboxError> {
        self.call(Operation::Stats, id, |state, _| state.stats(id))
    }

    async fn events(&self, id: &SandboxId) -> Result<mpsc::Receiver<SandboxEvent>, SandboxError> {
        self.call(Operation::Events, id, |state, _| state.subscribe(id))
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.call(Operation::Destroy, id, |state, _| {
            // Its subscribers' streams end with it.
            state.sandboxes.remove(id);
            Ok(())
        })
    }

    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        self.call(Operation::List, &SandboxId(String::new()), |state, _| {
            let labels = |spec: &Option<SandboxSpec>| spec.as_ref().map(|s| s.labels.clone()).unwrap_or_default();
            let listed: BTreeMap<_, _> = state.sandboxes.iter().collect();
            Ok(listed
                .into_iter()
                .map(|(id, sandbox)| Listed { id: id.clone(), labels: labels(&sandbox.spec), alive: sandbox.alive })
                .collect())
        })
    }
}
