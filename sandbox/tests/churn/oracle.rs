//! What was promised, and whether what is told afterwards keeps it.

use std::collections::BTreeSet;

use sandbox::contract::{SandboxEvent, Started};
use sandbox::spec::{ContainerSpec, SandboxId, SandboxSpec};

/// How far a wish got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It was not asked.
    Never,
    /// Asked; nobody knows whether it was done.
    Perhaps,
    /// Acknowledged.
    Surely,
}

/// A container that was asked for.
#[derive(Debug, Clone)]
pub struct Container {
    pub spec: ContainerSpec,
    /// The code with which it ends by itself; none: it runs until it is killed.
    pub ends: Option<i32>,
    pub started: Option<Started>,
    /// Killed in the middle; that was told.
    pub killed: bool,
}

/// A sandbox that was asked for.
#[derive(Debug, Clone)]
pub struct Pod {
    pub id: SandboxId,
    pub spec: SandboxSpec,
    pub prepared: Known,
    pub destroyed: Known,
    pub containers: Vec<Container>,
    /// Its shim was killed.
    pub lost: bool,
    /// A stub of it was killed, so that one container may have ended by SIGKILL.
    pub stub_killed: bool,
    /// What was told of it at the last look.
    pub told: Vec<SandboxEvent>,
}

impl Pod {
    pub fn new(id: SandboxId, spec: SandboxSpec) -> Self {
        Self {
            id,
            spec,
            prepared: Known::Never,
            destroyed: Known::Never,
            containers: Vec::new(),
            lost: false,
            stub_killed: false,
            told: Vec::new(),
        }
    }

    /// Whether this is a possible past of the sandbox: it goes on from what was told before, nothing is told twice, every
    /// acknowledged start is in it, every end is the right one and none is missing of those in `ended`.
    pub fn judge(&mut self, events: &[SandboxEvent], ended: &[&str]) -> Result<(), String> {
        if !events.starts_with(&self.told) {
            return Err(format!("the past has changed: it was {:?} and is {events:?}", self.told));
        }
        let (mut starts, mut ends) = (BTreeSet::new(), BTreeSet::new());
        for (index, event) in events.iter().enumerate() {
            match event {
                SandboxEvent::Started { container, attempt, started } => {
                    let known = self.containers.iter_mut().find(|known| known.is(container, *attempt));
                    let known = known.ok_or(format!("{container} was never asked for"))?;
                    if known.started.get_or_insert_with(|| started.clone()) != started {
                        return Err(format!("{container}: {started:?} was told as {:?}", known.started));
                    }
                    if !starts.insert((container, attempt)) {
                        return Err(format!("{container} is told as started twice"));
                    }
                }
                SandboxEvent::Exited { container, attempt, exit } => {
                    if !starts.contains(&(container, attempt)) || !ends.insert((container, attempt)) {
                        return Err(format!("{container} is told as ended twice, or never began: {events:?}"));
                    }
                    let known = self.containers.iter_mut().find(|known| known.is(container, *attempt));
                    let known = known.ok_or(format!("{container} was never asked for"))?;
                    let by_itself = exit.signal.is_none() && known.ends == Some(exit.code);
                    // A first process of a PID namespace cannot send itself SIGKILL, but can end with its code.
                    if !by_itself && !(exit.code == 137 && (self.stub_killed || known.killed)) {
                        return Err(format!("{container} ended as {exit:?}, not as {:?}", known.ends));
                    }
                    known.killed = !by_itself;
                }
                SandboxEvent::Lost { .. } if self.lost && index + 1 == events.len() => {}
                SandboxEvent::Lost { .. } => return Err(format!("told as lost, and it is not: {events:?}")),
                SandboxEvent::FirstByte { .. } => {}
            }
        }
        for known in &self.containers {
            let key = (&known.spec.name, &known.spec.attempt);
            if known.started.is_some() && !starts.contains(&key) {
                return Err(format!("the start of {} is not told: {events:?}", known.spec.name));
            }
            if ended.contains(&known.spec.name.as_str()) && !ends.contains(&key) {
                return Err(format!("the end of {} is not told: {events:?}", known.spec.name));
            }
        }
        if self.lost != matches!(events.last(), Some(SandboxEvent::Lost { .. })) {
            return Err(format!("its shim is dead, and that is not told: {events:?}"));
        }
        self.told = events.iter().filter(|event| !matches!(event, SandboxEvent::Lost { .. })).cloned().collect();
        Ok(())
    }
}

impl Container {
    pub fn new(spec: ContainerSpec, ends: Option<i32>) -> Self {
        Self { spec, ends, started: None, killed: false }
    }

    fn is(&self, name: &str, attempt: u32) -> bool {
        self.spec.name == name && self.spec.attempt == attempt
    }
}
