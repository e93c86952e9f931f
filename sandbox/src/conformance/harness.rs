//! What a kind must offer to be tested, and what cases share.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use tokio::sync::mpsc::Receiver;

use super::Running;
use crate::contract::{Exit, SandboxError, SandboxEvent, Sandboxes};
use crate::spec::{ContainerSpec, Namespaces, Resources, SandboxId, SandboxSpec};

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// The rule that it checks.
    pub name: &'static str,
    /// Checks it.
    pub run: for<'a> fn(&'a dyn Harness) -> Running<'a>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What a container is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Run until it is signalled.
    Sleep,
    /// Run until it is killed; SIGTERM is ignored.
    Stubborn,
    /// End with this code.
    Exit(i32),
    /// Write this to standard output, end with 0.
    Print(String),
    /// There is no such program.
    Missing,
    /// Use up memory without end.
    Eat,
}

/// A kind under test.
pub trait Harness: Send + Sync {
    /// The kind.
    fn sandboxes(&self) -> &dyn Sandboxes;
    /// A directory for log directories.
    fn log_root(&self) -> PathBuf;
    /// A container that does something, with a root of its own for each name and attempt.
    fn container(&self, name: &str, attempt: u32, program: &Program) -> ContainerSpec;
    /// Arguments of a process that does something in such a container.
    fn arguments(&self, program: &Program) -> Vec<String>;
    /// Memory limits are enforced.
    fn enforces_limits(&self) -> bool {
        true
    }
}

/// Why a case failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed(pub String);

impl From<SandboxError> for Failed {
    fn from(error: SandboxError) -> Self {
        let mut text = format!("unexpected error: {error}");
        let mut next = std::error::Error::source(&error);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        Self(text)
    }
}

/// Fails unless it holds.
pub(super) fn check(holds: bool, what: impl fmt::Display) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed(what.to_string())) }
}

/// The specification that [`configured`] uses.
pub(super) fn spec(harness: &dyn Harness, name: &str) -> SandboxSpec {
    SandboxSpec {
        hostname: name.to_owned(),
        sysctls: BTreeMap::new(),
        share_process_namespace: false,
        resources: Resources::default(),
        log_dir: harness.log_root().join(name),
        labels: BTreeMap::from([("pod.name".to_owned(), name.to_owned())]),
        namespaces: Namespaces::default(),
    }
}

/// A sandbox that is ready for containers.
pub async fn configured(harness: &dyn Harness, name: &str) -> Result<SandboxId, Failed> {
    let id = SandboxId(name.to_owned());
    harness.sandboxes().prepare(&id).await?;
    harness.sandboxes().configure(&id, &spec(harness, name)).await?;
    Ok(id)
}

/// Waits for the end of an attempt, among events from the beginning.
pub async fn exit_of(events: &mut Receiver<SandboxEvent>, name: &str, wanted: u32) -> Result<Exit, Failed> {
    while let Some(event) = events.recv().await {
        match event {
            SandboxEvent::Exited { container, attempt, exit } if container == name && attempt == wanted => {
                return Ok(exit);
            }
            SandboxEvent::Lost { .. } => return Err(Failed("the sandbox was lost".to_owned())),
            _ => {}
        }
    }
    Err(Failed(format!("the events ended before the end of {name} attempt {wanted} was told")))
}
