//! Sandboxes: a pod's isolated place on a host, behind one contract.
//!
//! ```text
//!  agent ── Sandboxes (contract.rs) ──> namespace backend ── keeper socket ──> keeper ── fork ──> shim (one a pod)
//!                                                       └──── shim socket ─────────────────────────^
//! ```
//!
//! * [`spec`]: what a sandbox and a container are; plain data, the vocabulary of the OCI runtime specification.
//! * [`contract`]: what every sandbox kind must do. The agent holds a `dyn Sandboxes` and nothing else.
//! * [`namespace`]: the kind made of namespaces: the agent's side. [`shim`]: its other side. [`keeper`]: who parents shims.
//! * [`protocol`]: how the three speak. [`cgroup`], [`seccomp`], [`sys`]: the kernel, behind types. `ids`: whose ids are whose.
//! * [`attacks`]: which attack meets which wall, and the test of it.
//! * [`fake`]: a kind in memory, for the tests of those who use the contract. [`conformance`]: what every kind is put to.
//!
//! The **keeper** (one process a host) holds each layer's EROFS mount once in its private mount namespace, hands out
//! clones of it by file descriptor, and is the parent of the shims. The **shim** (one process a pod) owns the pod's
//! processes, their logs and their exit records, and outlives the agent.
//!
//! This crate knows nothing of Kubernetes, images, registries or HTTP. Its only input besides specifications is a
//! [`spec::Rootfs`]: an ordered list of layer files.

#[doc = include_str!("attacks.md")]
pub mod attacks {}
pub mod cgroup;
pub mod conformance;
pub mod contract;
pub mod fake;
pub(crate) mod ids;
pub mod keeper;
pub mod namespace;
pub mod protocol;
pub mod seccomp;
pub mod shim;
pub mod spec;
pub mod sys;
