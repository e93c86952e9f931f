//! What a pod refers to, looked up: ConfigMaps, Secrets, pull secrets, service-account tokens, the service environment.
//!
//! ```text
//!   Pod ── needs (pure) ──> Needs ── fetch (asks References) ──> Outcome: Resolved (the wire's) | Waiting (why)
//! ```
//!
//! A missing mandatory object is no failure: the pod waits, says so in the words of `facts/kubelet-api.md` section 4, and goes
//! on when the object appears. "Could not ask" also waits, under a reason of its own, and never counts as missing.

mod credentials;
mod fetch;
mod needs;
mod service;

pub(crate) use credentials::credentials;
pub use fetch::{HeldToken, Outcome, Resolution, Wait, fetch};
pub use needs::{Need, Needs, TokenNeed};
pub use service::{ClusterSettings, service_env};
