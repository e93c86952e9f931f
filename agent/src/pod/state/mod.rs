//! The pod's state machine: `(state, event) -> (state, effects)`, or a refusal that leaves the state as it was. No I/O, no clock.
//!
//! ```text
//!            Prepare                 SandboxReady
//!  New ────────────────> Preparing ───────────────> Up ── nothing left to run ──> Releasing ── Released ──> Released
//!   │                        │ SandboxFailed        │ Lost, and something is to run again     ^
//!   │                        v                      v                                          │
//!   │                     Recycling (old sandbox is being released) ── Released ──> Retrying ──┼──> Preparing, next incarnation
//!   └── denied, or deleted before anything was held ───────────────────────────────────────────┘
//! ```
//!
//! Containers have a life of their own within it ([`Run`]), and so have their images ([`Picture`]). After each event
//! [`PodState::step`] asks what can be done now (`advance.rs`), so that no event needs to know what follows from it.
//! An image may name a user of an id that the sandbox was made without: it is made anew if nothing has run in it yet.
//! What is in flight is part of the state: nothing is asked for twice. Terminal is terminal.

mod advance;
mod backoff;
mod step;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::backoff::Backoff;
use crate::clock::Now;

/// A pod's whole dynamic state; what the ledger keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// Where the pod as a whole is.
    pub stage: Stage,
    /// One for each slot of the plan, in its order.
    pub containers: Vec<ContainerState>,
    /// Which sandbox: 0 for the first, one more each time it had to be made anew.
    pub incarnation: u32,
    /// When the agent took the pod on.
    pub begun: Option<Now>,
    /// The pod's address, once it has one.
    pub ip: Option<IpAddr>,
    /// Deletion was asked for.
    pub deleting: bool,
    /// CLOCK_BOOTTIME at which what still runs is killed.
    pub stop_deadline: Option<u64>,
    /// The pod failed for a reason of its own (refused, deadline exceeded …).
    pub verdict: Option<Verdict>,
    /// Back-off of sandbox creation.
    pub sandbox_backoff: Backoff,
    /// Ids above 65535 of images' users that the present sandbox was made for.
    #[serde(default)]
    pub sandbox_ids: BTreeSet<u32>,
}

/// Where the pod as a whole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Accepted; nothing is held.
    New,
    /// A sandbox is being made.
    Preparing,
    /// Waiting until CLOCK_BOOTTIME `until` to make another sandbox; nothing is held.
    Retrying {
        /// When.
        until: u64,
    },
    /// The sandbox is there.
    Up,
    /// The old sandbox is being released; another follows, not before CLOCK_BOOTTIME `until`.
    Recycling {
        /// When.
        until: u64,
    },
    /// Everything has ended; resources are being released.
    Releasing,
    /// Nothing is held. The end.
    Released,
}

/// Why a pod failed as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// `UnsupportedPodField`, `OutOfcpu`, `DeadlineExceeded` …
    pub reason: String,
    /// For people.
    pub message: String,
    /// It had to make way, for the node's sake: told as a disruption.
    #[serde(default)]
    pub disrupted: bool,
}

/// A container's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Picture {
    /// Not asked for yet, or to be asked for again.
    Unasked,
    /// On its way.
    Pulling,
    /// Here.
    Ready(ImageFacts),
    /// Could not be had; tried again at CLOCK_BOOTTIME `until`.
    Failed {
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
        reason: String,
        /// The whole story.
        message: String,
        /// Since CLOCK_BOOTTIME.
        since: u64,
        /// Next try.
        until: u64,
        /// Shown as `ImagePullBackOff` by now.
        backing_off: bool,
        /// Which image, where it is not the container's own but a volume's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of_volume: Option<String>,
    },
}

/// What status says about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// The name in normal form.
    pub reference: String,
    /// `repository@sha256:…`.
    pub image_id: String,
    /// Layer ids, so that they can be held again after an agent restart.
    pub layers: Vec<String>,
    /// Ids above 65535 that its user has in this pod.
    #[serde(default)]
    pub high_ids: BTreeSet<u32>,
}

/// A container's processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Run {
    /// Its turn has not come, or it is to be started at the next chance.
    Idle,
    /// Cannot be created as specified; tried again at CLOCK_BOOTTIME `until`.
    Blocked {
        /// `CreateContainerConfigError` or `CreateContainerError`.
        reason: String,
        /// The whole story.
        message: String,
        /// Next try.
        until: u64,
    },
    /// Asked to start.
    Starting,
    /// Its program runs.
    Running {
        /// Since CLOCK_REALTIME nanoseconds.
        started_wall_ns: u64,
    },
    /// Ended; started again at CLOCK_BOOTTIME `until`.
    BackOff {
        /// Next start.
        until: u64,
        /// It was worth a message (the first restart is immediate and silent).
        told: bool,
    },
    /// Does not run, and will not again.
    Done,
}

/// How far stopping has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopping {
    /// Not asked.
    #[default]
    No,
    /// Asked by its stop signal.
    Asked,
    /// Killed.
    Killed,
}

/// One container's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Its image.
    pub image: Picture,
    /// Its processes.
    pub run: Run,
    /// Number of the present (or last) attempt; also the restart count.
    pub attempt: u32,
    /// The attempt of that number has been asked for.
    pub created: bool,
    /// It has run at least once in this sandbox (an init container that has begun; a sidecar that is up).
    pub begun: bool,
    /// How the last attempt ended.
    pub latest: Option<Ended>,
    /// How the one before it ended.
    pub before: Option<Ended>,
    /// Restart back-off.
    pub backoff: Backoff,
    /// Pull back-off.
    pub image_backoff: Backoff,
    /// How far stopping has come.
    pub stopping: Stopping,
    /// It was asked to end in order to be started again, whatever its restart policy.
    #[serde(default)]
    pub renewing: bool,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which attempt.
    pub attempt: u32,
    /// In which sandbox.
    pub incarnation: u32,
    /// Exit code.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// Termination message.
    pub message: String,
    /// Start, CLOCK_REALTIME nanoseconds; 0 when it never started.
    pub started_wall_ns: u64,
    /// End, CLOCK_REALTIME nanoseconds.
    pub finished_wall_ns: u64,
    /// End, CLOCK_BOOTTIME nanoseconds.
    pub finished_boottime_ns: u64,
}

/// An exit as the sandbox tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitFacts {
    /// Exit code.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The OOM killer was here.
    pub oom_killed: bool,
    /// When.
    pub at: Now,
    /// The termination message.
    pub message: String,
}

/// Why a container was not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFailure {
    /// It cannot be made as specified now (a missing key, a missing user); nothing was created.
    Config {
        /// `CreateContainerConfigError` or `CreateContainerError`.
        reason: String,
        /// The whole story.
        message: String,
    },
    /// Its program could not be executed.
    Run {
        /// 128, as containerd has it.
        code: i32,
        /// The whole story.
        message: String,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The pod is taken on.
    Begin,
    /// The pod cannot be taken on, ever.
    Deny(Verdict),
    /// The sandbox is there and has an address.
    SandboxReady {
        /// The pod's address.
        ip: Option<IpAddr>,
    },
    /// The sandbox could not be made.
    SandboxFailed {
        /// Why.
        message: String,
    },
    /// The sandbox died, and its containers with it.
    Lost,
    /// An image is here.
    ImageReady {
        /// For which slot.
        slot: usize,
        /// What it is.
        facts: ImageFacts,
    },
    /// An image could not be had.
    ImageFailed {
        /// For which slot.
        slot: usize,
        /// The container's own image, or that of a volume which it mounts.
        reference: String,
        /// As a kubelet shows it.
        reason: String,
        /// The whole story.
        message: String,
        /// How long its registry asked us to stay away.
        retry_after: Option<Duration>,
    },
    /// A container that was never made is to have another image.
    ImageChanged {
        /// Which slot.
        slot: usize,
    },
    /// A container's program runs.
    Started {
        /// Which slot.
        slot: usize,
        /// Which attempt.
        attempt: u32,
        /// Since CLOCK_REALTIME nanoseconds.
        wall_ns: u64,
    },
    /// A container was not started.
    StartFailed {
        /// Which slot.
        slot: usize,
        /// Which attempt.
        attempt: u32,
        /// Why.
        failure: StartFailure,
    },
    /// A container ended.
    Exited {
        /// Which slot.
        slot: usize,
        /// Which attempt.
        attempt: u32,
        /// How.
        exit: ExitFacts,
    },
    /// Deletion was asked for.
    Delete {
        /// Seconds from SIGTERM to SIGKILL.
        grace_seconds: u64,
    },
    /// It keeps more than it may, or the node is short of what it keeps.
    Evict {
        /// In the kubelet's words.
        message: String,
        /// For the node's sake, not for a limit of its own.
        disrupted: bool,
    },
    /// What a release was asked for is released.
    Released,
    /// The agent came back: go on from what was written down.
    Recovered {
        /// The sandbox still lives.
        alive: bool,
        /// The host was restarted: old boot times mean nothing.
        rebooted: bool,
    },
    /// A running container can take new resources only by being started again.
    Renew {
        /// Which slot.
        slot: usize,
    },
    /// The intent's values changed: what was blocked may work now.
    Refreshed,
    /// Time has passed.
    Tick,
}

/// What is to be done. Effects of one step may be carried out side by side unless they concern the same container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Hold resources, make the sandbox, give it an address. Answer: `SandboxReady`, `SandboxFailed`.
    Prepare,
    /// Make an image available. Answer: `ImageReady`, `ImageFailed`.
    Pull {
        /// For which slot.
        slot: usize,
    },
    /// Start a container. Answer: `Started`, `StartFailed`.
    Start {
        /// Which slot.
        slot: usize,
        /// As which attempt.
        attempt: u32,
    },
    /// Send its stop signal.
    Stop {
        /// Which slot.
        slot: usize,
    },
    /// Kill all of its processes.
    Kill {
        /// Which slot.
        slot: usize,
    },
    /// Destroy the sandbox and let everything go. Answer: `Released`.
    Release,
    /// Tell people.
    Tell {
        /// About which container.
        slot: Option<usize>,
        /// Warning, or Normal.
        warning: bool,
        /// The Event's reason.
        reason: &'static str,
        /// The Event's message.
        message: String,
    },
}

/// Why an event changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It happened before: repeated, or replayed after a restart.
    #[error("the event is known or overtaken")]
    Stale,
    /// It cannot happen in this stage.
    #[error("the event does not fit the pod's stage")]
    WrongStage,
    /// The pod is terminal.
    #[error("the pod has ended")]
    Terminal,
    /// There is no such container.
    #[error("the pod has no such container")]
    NoSuchContainer,
}

impl ContainerState {
    fn new() -> Self {
        Self {
            image: Picture::Unasked,
            run: Run::Idle,
            attempt: 0,
            created: false,
            begun: false,
            latest: None,
            before: None,
            backoff: Backoff::default(),
            image_backoff: Backoff::default(),
            stopping: Stopping::No,
            renewing: false,
        }
    }

    /// Processes exist, or may exist in a moment.
    pub fn is_alive(&self) -> bool {
        matches!(self.run, Run::Starting | Run::Running { .. })
    }

    /// Ended for good, with success.
    pub fn has_succeeded(&self) -> bool {
        self.run == Run::Done && self.latest.as_ref().is_some_and(|e| e.code == 0)
    }
}

impl PodState {
    /// A pod with this many containers, about to be taken on.
    pub fn new(containers: usize) -> Self {
        Self {
            stage: Stage::New,
            containers: vec![ContainerState::new(); containers],
            incarnation: 0,
            begun: None,
            ip: None,
            deleting: false,
            stop_deadline: None,
            verdict: None,
            sandbox_backoff: Backoff::default(),
            sandbox_ids: BTreeSet::new(),
        }
    }

    /// Takes in containers that were added to the pod since.
    pub fn grow(&mut self, containers: usize) {
        let known = self.containers.len().max(containers);
        self.containers.resize(known, ContainerState::new());
    }

    /// The end has been reached.
    pub fn is_terminal(&self) -> bool {
        self.stage == Stage::Released
    }

    /// Ids above 65535 that the images at hand want their sandbox to have.
    pub fn image_ids(&self) -> BTreeSet<u32> {
        let of = |container: &ContainerState| match &container.image {
            Picture::Ready(facts) => facts.high_ids.clone(),
            _ => BTreeSet::new(),
        };
        self.containers.iter().flat_map(of).collect()
    }

    /// Layers that containers of this pod use.
    pub fn layers(&self) -> Vec<String> {
        let mut layers: Vec<String> = self
            .containers
            .iter()
            .filter_map(|c| match &c.image {
                Picture::Ready(facts) => Some(facts.layers.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        layers.sort();
        layers.dedup();
        layers
    }
}
