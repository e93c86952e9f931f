//! The node-local half of a kubelet: what happens to a pod on this host.
//!
//! ```text
//!  vkubelet ══ link (mTLS, roles turned round) ══> service ──> roster ── one task a pod ──> pod::task
//!                                                                 │                            │ effects
//!                       ledger (disk) <── intent, steps ──────────┤              ┌─────────────┼──────────────┬─────────┐
//!                       secrets (tmpfs) <── secret values ────────┘          Sandboxes     ImageSource   PodNetwork   Metering
//!                                                                            (sandbox)   (image-snapshot)  network     meter, spool
//! ```
//!
//! | module | job |
//! | --- | --- |
//! | [`intent`], [`resolved`] | what vkubelet wants, parsed |
//! | [`pod`] | state machine, status, refusals, specification, volumes (pure), and the task that owns one pod |
//! | [`devices`] | devices of the host's that pods get by name: the operator's policy, who has which |
//! | [`cpus`] | CPUs of a container's own, and those that all others share |
//! | [`trust`] | what the host's operator lets pods have beyond what holds them apart |
//! | [`roster`] | every pod of this host: admission, complete-set sync, the mass-delete brake |
//! | [`ledger`], [`recover`] | what survives the agent, and how it goes on |
//! | [`host`] | capacity, conditions, identity |
//! | [`images`], [`layer_mounts`] | the image store as the pod task sees it; mounts of layers, which go with their files |
//! | [`prepared`], [`image_gc`], [`image_metrics`], [`host_credentials`] | images kept ready ahead of their use; those that make way; the host's own rights to pull |
//! | [`events`] | a bounded journal of what happened, in a kubelet's words |
//! | [`logs`] | CRI log files read as a kubelet reads them |
//! | [`service`] | the gRPC service `Agent`; thin |
//! | [`observe`] | metrics, health |
//! | [`meter`], [`spool`] | usage: what is held, since when, durably; kept until vkubelet has stored it |
//! | [`reset`] | takes the host out of service |
//! | [`ports`] | the traits by which a pod task acts on the world |
//!
//! This crate may not know: the Kubernetes API server, prices, how an image is stored, how a namespace is made. It never forks.

pub mod board;
pub mod clock;
pub mod config;
pub mod cpus;
pub mod devices;
pub mod errors;
pub mod events;
pub mod host;
pub mod host_credentials;
pub mod image_gc;
pub mod image_metrics;
pub mod images;
pub mod intent;
pub mod layer_mounts;
pub mod ledger;
pub mod link;
pub mod logs;
pub mod meter;
pub mod metering;
pub mod network;
pub mod observe;
pub mod pod;
pub mod ports;
pub mod prepared;
pub mod pulled_bytes;
pub mod quantity;
pub mod recover;
pub mod reset;
pub mod resolved;
pub mod roster;
pub mod run;
pub mod service;
pub mod spool;
#[cfg(test)]
mod testing;
pub mod trust;
