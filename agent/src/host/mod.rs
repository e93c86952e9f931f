//! This host: what it has, what it is, how it does.

pub mod admission;
pub mod facts;
pub mod host_ports;
pub mod huge_pages;
pub mod kernel;
pub mod pressure;
pub mod thresholds;

pub use facts::Facts;
