//! Seen from outside: logs, metrics, health.

mod http;
mod logs;
mod metrics;

pub use http::{Readiness, router};
pub use logs::init;
pub use metrics::Metrics;
