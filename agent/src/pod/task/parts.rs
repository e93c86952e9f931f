//! What a pod task is given, asked and named.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use sandbox::contract::Sandboxes;
use sandbox::spec::SandboxId;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::board::Board;
use crate::events::Journal;
use crate::host::thresholds::Thresholds;
use crate::intent::Intent;
use crate::ledger::Ledger;
use crate::observe::Metrics;
use crate::pod::spec::HostFacts;
use crate::pod::state::Verdict;
use crate::pod::status::SandboxName;
use crate::pod::storage::usage::Usage;
use crate::pod::volumes::dns::Resolver;
use crate::ports::{ImageSource, Metering, PodNetwork};

/// What every pod task shares.
pub struct World {
    /// Sandboxes.
    pub sandboxes: Arc<dyn Sandboxes>,
    /// Images.
    pub images: Arc<dyn ImageSource>,
    /// Addresses.
    pub network: Arc<dyn PodNetwork>,
    /// The meter.
    pub meter: Arc<dyn Metering>,
    /// The ledger.
    pub ledger: Ledger,
    /// Events.
    pub journal: Journal,
    /// Statuses.
    pub board: Board,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What pods may learn of the host.
    pub host: HostFacts,
    /// The host's resolver.
    pub resolver: Resolver,
    /// `STATE`.
    pub state_dir: PathBuf,
    /// What must stay free of the host.
    pub thresholds: Thresholds,
    /// `RUN`.
    pub run_dir: PathBuf,
    /// The running boot.
    pub boot_id: String,
    /// One pod's disk is looked at at a time.
    pub measuring: Arc<Semaphore>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("state_dir", &self.state_dir).finish_non_exhaustive()
    }
}

/// Asked of a pod task.
#[derive(Debug)]
pub enum Request {
    /// A newer intent; answered when it is durable.
    Intent(Box<Intent>, oneshot::Sender<Result<(), String>>),
    /// It has to make way: the node is short of something.
    Evict {
        /// In the kubelet's words.
        message: String,
    },
    /// What it keeps on disk, and what for; nothing is answered by a pod that is ending or cannot be measured.
    Standing(oneshot::Sender<Standing>),
    /// No longer wanted, and nobody marked it for deletion: ended with its own grace period.
    Remove,
    /// The API object is gone; answered when the pod is forgotten, or refused while something is held.
    Forget(oneshot::Sender<bool>),
}

/// How a pod stands among those that may have to make way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its priority.
    pub priority: i32,
    /// What it keeps on disk.
    pub usage: Usage,
    /// What it requests of that, in bytes.
    pub request: u64,
    /// The same by container, as written.
    pub container_requests: BTreeMap<String, String>,
}

/// How others reach a pod task.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Requests.
    pub requests: mpsc::Sender<Request>,
    /// Generation of the newest intent that was taken in.
    pub generation: watch::Receiver<u64>,
}

/// How a pod task begins.
#[derive(Debug)]
pub enum Beginning {
    /// A new intent; answered when it is durable.
    New {
        /// Refused at admission.
        verdict: Option<Verdict>,
        /// Events to tell first: `(reason, message)`, all warnings.
        notes: Vec<(&'static str, String)>,
        /// Told when the intent is durable.
        accepted: oneshot::Sender<Result<(), String>>,
    },
    /// From the ledger, after an agent restart.
    Recovered {
        /// Its sandbox lives.
        alive: bool,
        /// In another boot.
        rebooted: bool,
        /// Its secret material is at hand, or it needs none.
        material: bool,
    },
}

/// Names of a pod's sandboxes: 1 to 63 characters of `[a-z0-9-]`.
#[derive(Debug, Clone)]
pub struct Names(String);

impl Names {
    /// For a pod.
    pub fn new(uid: &str) -> Self {
        let plain = uid.len() <= 50 && uid.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if plain && !uid.is_empty() {
            return Self(uid.to_owned());
        }
        use sha2::Digest as _;
        Self(hex::encode(&sha2::Sha256::digest(uid)[..16]))
    }

    /// The sandbox of an incarnation.
    pub fn id(&self, incarnation: u32) -> SandboxId {
        SandboxId(format!("{}-{incarnation}", self.0))
    }
}

impl SandboxName for Names {
    fn of(&self, incarnation: u32) -> String {
        self.id(incarnation).0
    }
}
