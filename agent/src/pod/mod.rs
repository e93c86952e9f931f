//! One pod: pure decisions, and the task that owns it.
//!
//! * [`plan`]: what the pod's author asked, as far as decisions need it
//! * [`state`]: the machine `(state, event) -> (state, effects)`
//! * [`status`]: the machine's state as a core/v1 PodStatus
//! * [`refusals`]: what this version cannot honour, by name
//! * [`changes`]: what a newer version of a pod asks for in vain
//! * [`spec`]: Pod, image and values into sandbox and container specifications
//! * [`seccomp`]: the operator's own system call profiles
//! * [`resize`]: a change of a running pod's resources
//! * [`storage`]: what it keeps on disk, and the limits of that
//! * [`volumes`]: what appears in the containers' mounts
//! * [`task`]: the one owner of a pod's state; carries out effects

pub mod changes;
pub mod ephemeral;
pub mod plan;
pub mod refusals;
pub mod resize;
pub mod seccomp;
pub mod spec;
pub mod state;
pub mod status;
pub mod storage;
pub mod task;
pub mod volumes;
