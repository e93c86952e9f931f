//! Devices that the operator gives to pods as extended resources: `resources.limits["example.com/fuse"]: 1`.
//!
//! ```text
//! --device-policy FILE ── policy (checked once) ──> Policy ──┬── node: how many units of each
//!                                                            └── assign (pure): who gets which, at admission
//! pod's record: which container has which units, written down before anything is done for the pod
//! container's start ── nodes: units into device numbers, as they are then ──> sandbox
//! ```
//! Which units are free is no state of its own: those of the policy that no pod of the board has which is not terminated.
//! So a pod that is taken back after a restart has its units, and one whose sandbox is released has none.

mod assign;
mod nodes;
mod policy;

pub use assign::{Assigned, Taken, Units, assign, taken_cpus};
pub use nodes::{NodeError, nodes};
pub use policy::{Offer, Policy, PolicyError};
