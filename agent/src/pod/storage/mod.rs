//! What a pod keeps on the host's disk, and what is done about too much of it.
//!
//! ```text
//!  writable/ + logs/ + volumes/ ── walk ──> usage ── limits (pure) ──> Evict { message }     (limits: each pod for itself)
//!                                             └──── host::pressure (pure) ──> Evict           (a full disk: all pods together)
//! ```
//! * [`walk`]: bytes that a directory takes, whatever its owner does in it meanwhile
//! * [`usage`]: the same by container and volume, as a kubelet counts
//! * [`limits`]: what the pod may have, and the kubelet's words when it has more
//! * [`watch`]: looks again and again, cheaply

pub mod limits;
pub mod usage;
pub mod walk;
pub mod watch;
