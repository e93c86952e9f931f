//! What a pod task needs of the world. Each trait has its real implementation in another module or crate and a fake in `testing`.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sandbox::spec::{Layer, SandboxId};
use serde::{Deserialize, Serialize};

/// When to ask an image's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Each time.
    Always,
    /// When it is not here.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// One wish for an image.
#[derive(Debug, Clone)]
pub struct ImageWish {
    /// The name as the pod writes it.
    pub reference: String,
    /// When to ask the source.
    pub policy: PullPolicy,
    /// Credentials of the pod's pull secrets.
    pub credentials: Vec<crate::resolved::RegistryCredential>,
    /// The intent comes from the host's own operator, who may name host paths.
    pub trusted: bool,
    /// Whose copies of layers serve, where domains have copies of their own: the pod's namespace; empty: the host's.
    pub domain: String,
}

/// Reads files of an image's root as a process inside would see them, without mounting it. Blocking.
pub trait RootFiles: Send + Sync {
    /// `None`: there is no such file.
    fn read_file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, String>;
}

/// The part of an image's configuration that decides anything. The image author's word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, `NAME=value`.
    pub env: Vec<String>,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `User`.
    pub user: String,
    /// `StopSignal`, a name or number.
    pub stop_signal: Option<String>,
}

/// An image that is on this host and stays there while this value lives.
#[derive(Clone)]
pub struct ReadyImage {
    /// The name in normal form.
    pub reference: String,
    /// What a kubelet reports as `imageID`.
    pub image_id: String,
    /// The manifest's digest.
    pub digest: String,
    /// What the image says about running it.
    pub config: ImageConfig,
    /// Layers, the lowest first.
    pub layers: Vec<Layer>,
    /// Bytes on disk.
    pub size: u64,
    /// Reads `etc/passwd` and the like; also holds the lease.
    pub files: Arc<dyn RootFiles>,
}

impl std::fmt::Debug for ReadyImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadyImage")
            .field("reference", &self.reference)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// Why an image could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImageFailure {
    /// As a kubelet shows it: `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`.
    pub reason: &'static str,
    /// The whole story.
    pub message: String,
    /// How long its registry asked us to stay away, if it did.
    pub retry_after: Option<Duration>,
}

/// Told of bytes: those that have come, and those in all.
pub type Told = Box<dyn Fn(u64, u64) + Send + Sync>;

/// Where images come from.
#[async_trait]
pub trait ImageSource: Send + Sync {
    /// Is what was wished for here, under this name, for these pods? Asks nobody else and checks nobody's rights.
    async fn is_present(&self, wish: &ImageWish) -> bool;
    /// Makes it available. `told` how far that is, when something has to come.
    async fn ensure(&self, wish: &ImageWish, told: Told) -> Result<ReadyImage, ImageFailure>;
    /// Holds layers that pods from before an agent restart still use; they are never let go while the value lives.
    fn adopt(&self, layers: &[String]) -> Result<Box<dyn Send + Sync>, ImageFailure>;
    /// Every pod from before the restart has been adopted: what nobody uses may be collected.
    fn allow_collection(&self);
}

/// A pod's place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The pod's address.
    pub ip: IpAddr,
    /// The address of the bridge.
    pub gateway: IpAddr,
    /// Length of the subnet's prefix.
    pub prefix: u8,
}

/// A step towards the world failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} failed: {message}")]
pub struct PortError {
    /// What was tried.
    pub operation: &'static str,
    /// The whole story.
    pub message: String,
}

impl PortError {
    /// From any error, with its causes.
    pub fn new(operation: &'static str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { operation, message: crate::errors::chain(error) }
    }
}

/// Gives pods addresses.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Idempotent; durable before the kernel is touched.
    async fn attach(&self, sandbox: &SandboxId, netns: BorrowedFd<'_>) -> Result<Address, PortError>;
    /// Idempotent; detaching what is not attached succeeds.
    async fn detach(&self, sandbox: &SandboxId) -> Result<(), PortError>;
    /// Frees what none of these holds.
    async fn reconcile(&self, live: &[SandboxId]) -> Result<(), PortError>;
}

/// What is metered: one sandbox's interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Pod UID.
    pub pod_uid: String,
    /// Pod namespace.
    pub pod_namespace: String,
    /// Pod name.
    pub pod_name: String,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// CPU in thousandths of a core.
    pub milli_cpu: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Ephemeral storage in bytes.
    pub ephemeral_bytes: u64,
    /// Image references of its containers.
    pub images: Vec<String>,
}

/// One instant, written down durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metered {
    /// CLOCK_BOOTTIME in nanoseconds.
    pub boottime_ns: u64,
    /// CLOCK_REALTIME in nanoseconds since 1970.
    pub wall_ns: u64,
}

/// The meter: between `start` and `stop` a pod is billed.
#[async_trait]
pub trait Metering: Send + Sync {
    /// Durable before it returns. Starting what runs changes nothing and returns its start.
    async fn start(&self, interval: &Interval) -> Result<Metered, PortError>;
    /// What is held is another amount from now on; durable before it returns. What is held already changes nothing.
    async fn resize(&self, interval: &Interval) -> Result<(), PortError>;
    /// A last look at what the sandbox has used, while it can still be seen. Best effort, and never for long.
    async fn look(&self, _sandbox: &SandboxId) {}
    /// Durable before it returns. Stopping what does not run succeeds.
    async fn stop(&self, sandbox: &SandboxId) -> Result<Metered, PortError>;
    /// After an agent restart: these still live and go on; every other open interval is closed.
    async fn adopt(&self, live: &[SandboxId]) -> Result<(), PortError>;
}
