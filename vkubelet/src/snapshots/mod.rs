//! `ImageSnapshot`: images that hosts have ready before any pod asks for them.
//!
//! ```text
//!  watch ImageSnapshots ─┐                             ┌─> PrepareImages, the whole set of a host ──> agent
//!  hosts come and go ────┼─> [`controller`] ─ [`plan`] ┤
//!  pull secrets ─────────┘        │            (pure)  └<─ WatchPrepared <── agent
//!                                 └─ [`status`] (pure) ─> status of the object, Events of what changed in it
//! ```
//!
//! * [`resource`]: the custom resource; `vkubelet manifests` prints its definition and the rights that it needs.
//! * A host is told nothing before the objects have been listed: "could not ask" is no empty set. An agent keeps its pins
//!   over restarts, so nothing is lost while nobody tells it.
//! * Several virtual nodes share one object: each writes the entries of its own hosts, and the sums over all entries, under the
//!   object's resource version.

mod controller;
mod converse;
mod events;
mod manifests;
pub mod plan;
pub mod resource;
mod schema;
mod secrets;
pub mod status;

pub(crate) use controller::{Setting, run};
pub use manifests::manifests;
