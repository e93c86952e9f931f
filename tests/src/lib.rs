//! End-to-end, privileged, architecture and fault tests, and the benchmarks.

pub mod bed;
pub mod bench;
pub mod census;
pub mod cluster;
pub mod dev;
pub mod random;
pub mod registry;
pub mod stack;
