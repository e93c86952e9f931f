//! Benchmarks: each prints figures as JSON lines, one a figure and peer, beside its peer where one is measured.

pub mod figure;
pub mod start;
