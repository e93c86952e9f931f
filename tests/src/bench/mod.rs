//! Benchmarks: each prints figures as JSON lines, one a figure and peer, beside its peer where one is measured.
//!
//! A benchmark is a module with `FIGURES` (what it can measure) and `run`; `hack/bench.d/NAME.sh` brings up what it needs.

pub mod figure;
pub mod launch;
pub mod start;

/// Every figure that can be asked for.
pub fn figures() -> impl Iterator<Item = figure::Quantity> {
    [start::FIGURES.as_slice(), launch::FIGURES.as_slice()].into_iter().flatten().copied()
}
