//! The wire between vkubelet and agents.
//!
//! ```text
//! agent ── dials, mutual TLS ──> vkubelet        then the roles turn round:
//! agent (gRPC server, `Agent`) <── calls ── vkubelet, on that same connection
//! ```
//!
//! * [`proto`]: messages and services, generated from `proto/agent.proto`.
//! * [`codes`]: the closed set of error codes, and how they travel in a `tonic::Status`.
//! * [`transport`]: the reversed connection: serve on, or call over, one given stream; keepalive; welcome or refusal.
//! * [`identity`]: vkubelet's own CA, host keys and requests, TLS configurations, pinning, certificate checks.
//! * [`trace`]: how a pod's start stays one trace over both programs, and where its spans are sent.
//! * [`usage`]: the usage record, the one value that metering, spool and billing share; its chain and its checks.
//!
//! This crate knows neither Kubernetes types (a Pod is bytes here) nor sandboxes, images or prices.

pub mod codes;
pub mod identity;
pub mod trace;
pub mod transport;
pub mod usage;

/// Messages and services generated from `proto/agent.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("nodeless.agent.v1");
}

/// The protocol version that this build speaks.
pub const PROTOCOL: u32 = 1;
