//! The virtual node in the cluster: its object, its conditions and its Lease.
//!
//! ```text
//! hosts (watch) ──> object (pure: sum of hosts -> Node) ──> controller ──> API: create once, then status patches
//!                                                           lease ───────> API: renew every 10 s, also while nothing changes
//! ```
//!
//! The Lease also carries the [`epoch`] under which this vkubelet commands the agents.
//!
//! A heartbeat is the Lease only; the Node's status is written when it changes and once in five minutes, as the kubelet does.

pub mod billing_access;
pub mod controller;
pub mod epoch;
pub mod lease;
pub mod object;
