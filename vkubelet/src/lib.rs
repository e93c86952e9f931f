//! The virtual node: takes pods from a source, resolves what they refer to, places them on hosts and keeps both sides told.
//!
//! ```text
//!  sources/{kubernetes, manifest} ──> desired (store, keyed by UID) ──> pod (one owner task per pod)
//!        ^  status, placement, removal (ports)                            │ resolve -> placement -> intent
//!        └───────────────────────────────<───────────────────────────────┤
//!  client_api (Unix socket) ──> pods, hosts, billing                      v
//!  kubelet_api (HTTPS)      ──> pods, hosts                     hosts (one connection per agent)
//! ```
//!
//! * [`desired`]: the store of what the sources want.
//! * [`ports`]: what the core asks of a source and tells it.
//! * [`resolve`], [`placement`]: what a pod refers to; which host it goes to.
//! * [`pod`]: one owner task per pod, one session per connected host.
//! * [`snapshots`]: images that hosts have ready ahead of their use.
//! * [`config`], [`observe`], [`run`]: settings; logs, metrics, health; how it is all put together.
//!
//! This crate may not know how a sandbox or an image snapshot is made, nor what a second costs.

pub mod billing_pull;
pub mod client_api;
pub mod config;
pub mod desired;
mod durable;
pub mod events;
pub mod hosts;
pub mod kubelet_api;
pub mod node;
pub mod observe;
pub mod placement;
pub mod pod;
pub mod ports;
pub mod resolve;
pub mod run;
pub mod snapshots;
pub mod sources;
pub mod status;
