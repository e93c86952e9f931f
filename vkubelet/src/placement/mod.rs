//! Which host a pod goes to.
//!
//! ```text
//!   Request (of a Pod) ─┐
//!                       ├─ choose (pure): filter, then score ──> host | Unfit (why, host by host)
//!   HostView (each) ────┘
//! ```
//!
//! * [`quantity`]: Kubernetes quantities as integers.
//! * [`request`]: what a pod asks for, as the scheduler counts it.
//! * [`choose`]: the decision, a pure function.
//! * [`oversize`]: whether a pod asks for more than the whole node has.
//! * [`reservations`]: who holds what on which host; a choice and its reservation are one step, so that two pods placed at
//!   the same time never count on the same room.
//!
//! A placed pod stays where it is: nothing here ever moves one.

pub mod choose;
pub mod oversize;
pub mod quantity;
pub mod request;
pub mod reservations;

pub use choose::{HostView, Unfit};
pub use request::Request;
pub use reservations::Reservations;
