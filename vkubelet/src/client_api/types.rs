//! What travels between vkubelet and the client.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A list, as every list route answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct List<T> {
    /// The items.
    pub items: Vec<T>,
}

/// One pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodItem {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// `kubernetes` or `manifest`.
    pub source: String,
    /// Its host; empty: not placed yet.
    pub host: String,
    /// Pending, Running, Succeeded, Failed.
    pub phase: String,
    /// As `kubectl get pods` says it: the phase, or the reason that matters more.
    pub display: String,
    /// Containers that are ready.
    pub ready: u32,
    /// Containers.
    pub containers: u32,
    /// Restarts of all containers.
    pub restarts: u32,
    /// Its address.
    pub ip: String,
    /// RFC 3339.
    pub created: String,
    /// A deletion is on its way.
    pub deleting: bool,
    /// Why it does not go on; empty: it does.
    pub waiting: String,
    /// When what happened.
    pub timeline: PodTimeline,
    /// core/v1 PodStatus, `null` when there is none yet.
    pub status: Value,
    /// core/v1 PodSpec.
    pub spec: Value,
    /// The last events, oldest first.
    pub events: Vec<PodEventItem>,
}

/// When what happened: nanoseconds since 1970; 0: not yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodTimeline {
    /// vkubelet saw the pod.
    pub seen_ns: u64,
    /// It was placed.
    pub placed_ns: u64,
    /// The agent acknowledged it.
    pub sent_ns: u64,
    /// The agent wrote it down.
    pub accepted_ns: u64,
    /// Resources are held: the bill starts.
    pub held_ns: u64,
    /// Every image is there as a snapshot.
    pub image_ready_ns: u64,
    /// The sandbox is up.
    pub sandbox_ready_ns: u64,
    /// The first container runs.
    pub started_ns: u64,
    /// The first byte of output.
    pub first_byte_ns: u64,
    /// The last container ended.
    pub finished_ns: u64,
    /// Nothing is held: the bill ends.
    pub released_ns: u64,
    /// CLOCK_BOOTTIME of `held_ns` at the host.
    pub held_boottime_ns: u64,
    /// CLOCK_BOOTTIME of `released_ns` at the host.
    pub released_boottime_ns: u64,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEventItem {
    /// `Normal` or `Warning`.
    pub kind: String,
    /// Such as `Pulled`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Nanoseconds since 1970.
    pub unix_ns: i64,
}

/// One host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostItem {
    /// Its id.
    pub id: String,
    /// Connected now.
    pub connected: bool,
    /// Takes new pods.
    pub ready: bool,
    /// Why not, as its conditions say.
    pub conditions: Vec<String>,
    /// `amd64` …
    pub architecture: String,
    /// Thousandths of a processor: what it has.
    pub capacity_milli_cpu: u64,
    /// Bytes: what it has.
    pub capacity_memory_bytes: u64,
    /// How many pods it takes.
    pub capacity_pods: u32,
    /// Held.
    pub used_milli_cpu: u64,
    /// Held.
    pub used_memory_bytes: u64,
    /// Held.
    pub used_pods: u32,
    /// Version of its agent.
    pub version: String,
    /// Kernel.
    pub kernel: String,
    /// Addresses.
    pub addresses: Vec<String>,
    /// From where it dialled.
    pub peer: String,
    /// UIDs of pods that it keeps though they are not wanted any more: too many at once have no deletion mark.
    #[serde(default)]
    pub held_pods: Vec<String>,
}

/// The removal of held pods was confirmed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedItem {
    /// The host.
    pub host: String,
    /// UIDs of the pods that it ends now.
    pub pods: Vec<String>,
}

/// One image on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageItem {
    /// The host.
    pub host: String,
    /// Its names.
    pub references: Vec<String>,
    /// Manifest digest.
    pub digest: String,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// Layers.
    pub layers: u32,
    /// Seconds since 1970.
    pub last_used_unix: i64,
    /// A pod holds it.
    pub in_use: bool,
    /// An ImageSnapshot keeps it from collection.
    #[serde(default)]
    pub pinned: bool,
    /// The trust domain (a namespace) whose own copy it is; empty: it is for all of the host's.
    #[serde(default)]
    pub domain: String,
}

/// A layer that was read and compared with what was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifiedItem {
    /// The host.
    pub host: String,
    /// Its chain id.
    pub layer: String,
    /// `sound`, `missing`, `damaged`.
    pub verdict: String,
    /// The images that it belongs to.
    pub references: Vec<String>,
    /// What was done: empty, `repaired`, `removed`, `in use`, `failed`.
    pub action: String,
    /// More of it, for people.
    pub message: String,
    /// The host could not be asked, or not to the end.
    pub error: String,
}

/// What a host removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CollectedItem {
    /// The host.
    pub host: String,
    /// The images.
    pub references: Vec<String>,
    /// Layers.
    pub layers: u32,
    /// Bytes.
    pub freed_bytes: u64,
    /// Why it could not; empty: it could.
    pub error: String,
}

/// An order to make a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullOrder {
    /// The image.
    pub reference: String,
    /// On which host; empty: on every connected one.
    #[serde(default)]
    pub host: String,
}

/// Progress of a pull, a line each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// The host.
    pub host: String,
    /// What is being done.
    pub phase: String,
    /// On which layer.
    pub layer: String,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; 0: not known.
    pub total_bytes: u64,
    /// For people.
    pub message: String,
    /// The pull failed: why.
    pub error: String,
    /// The pull is complete.
    pub complete: bool,
}

/// An image was removed from a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedItem {
    /// The host.
    pub host: String,
    /// It was there.
    pub removed: bool,
    /// Bytes.
    pub freed_bytes: u64,
    /// Why not; empty: it is.
    pub error: String,
}

/// A manifest that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemItem {
    /// The file.
    pub path: String,
    /// What is wrong and what to do.
    pub problem: String,
}
