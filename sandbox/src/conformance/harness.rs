//! What a kind must offer to be tested, and what cases share.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use tokio::sync::mpsc::Receiver;

use super::Running;
use crate::contract::{Exit, SandboxError, SandboxEvent, Sandboxes};
use crate::shim::log::{LogReader, Stream};
use crate::spec::{ContainerSpec, LOG_BYTES_PER_SECOND, Namespaces, Resources, SandboxId, SandboxSpec};

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
    /// Write what is read from standard input to standard output; end with 0 at its end.
    Echo,
    /// Write the terminal's size to it (`ROWS COLUMNS`), and again for each line that is read; end with 0 at the end.
    TerminalSize,
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
    /// Kills the sandbox's shim; false when this kind has no such thing.
    fn lose(&self, id: &SandboxId) -> bool;
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
        log_bytes_per_second: LOG_BYTES_PER_SECOND,
        labels: BTreeMap::from([("pod.name".to_owned(), name.to_owned())]),
        namespaces: Namespaces::default(),
    }
}

/// A sandbox that is ready for containers.
pub async fn configured(harness: &dyn Harness, name: &str) -> Result<SandboxId, Failed> {
    configured_as(harness, &spec(harness, name)).await
}

/// A sandbox by this specification, named as its host.
pub(super) async fn configured_as(harness: &dyn Harness, spec: &SandboxSpec) -> Result<SandboxId, Failed> {
    let id = SandboxId(spec.hostname.clone());
    harness.sandboxes().prepare(&id).await?;
    harness.sandboxes().configure(&id, spec).await?;
    Ok(id)
}

/// What a container of the sandbox `name` wrote to standard output, by its log.
pub(super) fn logged(harness: &dyn Harness, name: &str, container: &str, attempt: u32) -> Result<Vec<u8>, Failed> {
    let directory = spec(harness, name).log_dir.join(container);
    let mut reader = LogReader::open(&directory, attempt).map_err(|error| Failed(error.to_string()))?;
    let mut logged = Vec::new();
    reader
        .read(&mut |entry| {
            if entry.stream == Stream::Stdout {
                logged.extend_from_slice(entry.content);
                logged.extend_from_slice(if entry.partial { b"" } else { b"\n" });
            }
            true
        })
        .map_err(|error| Failed(error.to_string()))?;
    Ok(logged)
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
