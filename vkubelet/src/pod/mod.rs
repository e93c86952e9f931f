//! From a desired pod to a running one: one owner task per pod, one session per connected host.
//!
//! ```text
//!   Desired ──> controller ── spawns, wakes ──> task (one per UID) ── reconcile (pure): what next?
//!                                                 │  Prepare: resolve + place, side by side; the placement is durable
//!                                                 │           before anything is sent
//!                                                 │  Intend:  a new intent with a higher generation, put on the board
//!                                                 │  Apply:   through Agents
//!                                                 │  RemoveObject, Forget, Finish
//!   Hosts ───> sessions (one per connection) ── complete-set sync from the board, then statuses and events ──> tasks, ports
//! ```
//!
//! | module | job |
//! | --- | --- |
//! | [`reconcile`] | the decision, pure |
//! | [`task`] | executes it; owns all change of one pod |
//! | [`board`] | what is known of every pod: read by sessions, the client API and the kubelet API |
//! | [`sessions`] | follows hosts; complete-set sync, status and event streams |
//! | `held` | what agents' mass-delete brakes hold, until an operator confirms it |
//! | [`agents`] | how a task reaches an agent; never while a sync of that host is under way |
//! | [`status`] | statuses that vkubelet itself says, when no agent has spoken yet or any more (pure) |
//! | [`intent`] | intents and their generations |
//! | [`access`] | logs and exec of a pod by name |
//!
//! Rules: a pod's placement never changes while an agent may run it; nothing is concluded from silence; a pod that is absent
//! from the desired store is removed only after every source has listed.

pub mod access;
pub mod agents;
pub mod board;
pub mod controller;
mod cursors;
mod held;
pub mod intent;
pub mod reconcile;
pub mod sessions;
pub mod status;
pub mod task;

pub use controller::{Controller, ControllerSettings};
pub use held::ReleaseError;
