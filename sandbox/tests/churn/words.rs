//! What the churn tests ask of the program that they kill, one JSON object a line.
#![allow(dead_code, unreachable_pub, reason = "each side uses its half")]

use std::path::PathBuf;

use sandbox::contract::{Listed, SandboxEvent, Started};
use sandbox::spec::{ContainerSpec, SandboxId, SandboxSpec};
use serde::{Deserialize, Serialize};

/// How the program's backend is set up; its only argument after `agent`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SetUp {
    pub run_dir: PathBuf,
    pub program: PathBuf,
    pub cgroup_parent: String,
    pub layer_dirs: Vec<PathBuf>,
    pub pool_size: usize,
    pub ahead_dir: Option<PathBuf>,
}

/// A question with its number.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    pub call: u64,
    pub question: Question,
}

#[allow(clippy::large_enum_variant, reason = "one at a time")]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Question {
    Prepare(SandboxId),
    Configure(SandboxId, SandboxSpec),
    Start(SandboxId, ContainerSpec),
    /// Runs a program in a container and waits for it.
    Exec(SandboxId, String, Vec<String>),
    Destroy(SandboxId),
    List,
    /// Everything up to the end of this attempt of this container, or to the stream's end.
    Events(SandboxId, String, u32),
    Release(Vec<String>),
    /// Everything, the keeper too.
    Reset,
}

/// An answer; number 0 says that the backend is open.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    pub call: u64,
    pub answer: Result<Answer, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Done,
    Started(Started),
    Code(i32),
    Listed(Vec<Listed>),
    Events(Vec<SandboxEvent>),
}
