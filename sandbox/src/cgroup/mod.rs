//! Control groups behind one set of types, whatever layout the host has.
//!
//! ```text
//! PARENT/                     one a host, made by the agent (`Tree::open`)
//!   <sandbox id>/             one a pod, carries the pod's limits, but that of memory on v2
//!     shim/                   v2: the shim
//!     containers/             v2: carries the pod's limit of memory
//!       <container>/          one leaf a container, carries the container's limits
//!     <container>/            v1: the same. The shim is in the pod's own group: there a group may have processes beside
//!                             children, and each group costs kernel memory and time. Its memory is the keeper's, where
//!                             the memory controller has a hierarchy for itself, as hosts of v1 have
//! ```
//!
//! A pod can be full of what no end of a process frees, as files in memory. Were the shim's memory limited with it, the kernel
//! would end the shim, alone as it is then, and nobody could say what happened.
//!
//! * [`Layout`]: which hierarchies the host has and where (plain data; found once, sent along to the shim).
//! * [`Tree`]: PARENT in all of them; makes, opens, lists and removes pods.
//! * [`Group`]: one cgroup in all of them, held by directory file descriptors, so it works where the host's paths do
//!   not exist.
//! * [`plan`]: limits to file writes, pure.
//! * [`Driver`]: what differs between hosts: [`v1`] (v1 and hybrid: controllers under `/sys/fs/cgroup/NAME`, the unified
//!   mount for `cgroup.kill` and `cgroup.freeze`) and [`v2`].
//! * [`DeviceRule`]: which devices may be used: lines for the v1 devices controller, a program of our own making
//!   (`device_program`) where there is a unified mount, which a host loads once ([`DeviceProgram`]).
//!
//! # A controller that the host lacks
//! is told once by a warning when the tree is opened. Only a limit that needs it then fails
//! ([`CgroupError::ControllerMissing`]): cpu, memory and pids limits are never dropped in silence.
//!
//! # Why `cgroups-rs` finds the hierarchies and does nothing else
//! It names every cgroup by an absolute path and writes through it, so it can neither work by file descriptor from
//! the shim's mount namespace nor use `cgroup.kill`, `CLONE_INTO_CGROUP` or `memory.oom.group`; and it turns some
//! failed writes into nothing. It parses the mount table well, and the privileged tests let it judge our limits.

mod device_program;
mod devices;
mod driver;
mod error;
mod files;
mod freeze;
mod group;
mod huge_pages;
mod layout;
mod loaded_program;
pub mod plan;
mod remove;
mod tree;
pub mod v1;
pub mod v2;

#[cfg(test)]
mod tests;

pub use devices::{Access, DEFAULT_DEVICES, DeviceKind, DeviceRule, EVERY_DEVICE};
pub use driver::{Controller, Driver, Enforcement};
pub use error::CgroupError;
pub use group::{Group, Handle};
pub use layout::{Hierarchy, Layout};
pub use loaded_program::DeviceProgram;
pub use tree::{BegunPod, Tree};

/// Name of the leaf that holds the shim, on v2.
const SHIM_LEAF: &str = "shim";
/// Name of the group that a pod's containers are in, on v2.
const CONTAINERS: &str = "containers";
