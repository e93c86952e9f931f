//! `launch`: a sandbox is asked for, until the first byte that the container's process writes; layers present.
//!
//! Ours is `prepare`, `configure`, `start` on the namespace backend, from its warm pool (and, for `launch.cold`, without one),
//! to the time that the shim took of the first byte. A peer is `PEER run` on a prepared bundle, to the first byte on its
//! standard output: the same program, user namespace, namespaces, capabilities, seccomp rules, masked paths, limits (see
//! [`oci`]). All take turns, so that a change of the machine's mood meets all of them.

pub mod oci;
mod ours;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::figure::{Better, Figure, Quantity, quantile};

const fn lower(name: &'static str, unit: &'static str) -> Quantity {
    Quantity { name, unit, better: Better::Lower }
}

/// What is measured here.
pub const FIGURES: [Quantity; 4] =
    [lower("launch.p50", "ms"), lower("launch.p99", "ms"), lower("launch.cold", "ms"), lower("launch.burst200", "s")];

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// The static `nodeless-shim`.
    pub shim: PathBuf,
    /// An EROFS layer with `/bin/echo`.
    pub layer: PathBuf,
    /// A directory on the state's file system, empty.
    pub dir: PathBuf,
    /// The peers by name, with their bundles.
    pub peers: Vec<oci::Peer>,
    /// Launches one after the other.
    pub singles: usize,
    /// Launches at once.
    pub burst: usize,
}

/// Measures those of [`FIGURES`] that are wanted.
pub async fn run(options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let [p50, p99, cold, burst] = FIGURES;
    let mut figures = Vec::new();
    if wanted(p50.name) || wanted(p99.name) {
        let (own, peers) = warm(options).await?;
        for (figure, q) in [(p50, 0.5), (p99, 0.99)].into_iter().filter(|(figure, _)| wanted(figure.name)) {
            let value = quantile(&own, q);
            for (peer, times) in options.peers.iter().zip(&peers) {
                figures.push(figure.beside(value, own.len(), &peer.name, quantile(times, q)));
            }
            if options.peers.is_empty() {
                figures.push(figure.alone(value, own.len()));
            }
        }
    }
    if wanted(cold.name) {
        let count = options.singles.min(50);
        let times = ours::with(options, 0, async |ours| repeat(count, async || ours.launch().await).await).await?;
        figures.push(cold.alone(quantile(&times, 0.5), times.len()));
    }
    if wanted(burst.name) {
        let burst_of = options.burst;
        let times = ours::with(options, burst_of, async |ours| repeat(3, async || ours.burst(burst_of).await).await);
        let times = times.await?;
        figures.push(burst.alone(quantile(&times, 0.5), times.len()));
    }
    Ok(figures)
}

async fn repeat(count: usize, mut measure: impl AsyncFnMut() -> Result<f64>) -> Result<Vec<f64>> {
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(measure().await?);
    }
    Ok(values)
}

/// Milliseconds of ours, and of each peer, taking turns.
async fn warm(options: &Options) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
    const POOL: usize = 8;
    let mut runners = options.peers.iter().map(oci::Runner::start).collect::<Result<Vec<_>>>()?;
    ours::with(options, POOL, async |ours| {
        let mut own = Vec::new();
        let mut peers = vec![Vec::new(); runners.len()];
        for _ in 0..options.singles {
            ours.wait_for_pool(POOL).await?;
            own.push(ours.launch().await?);
            for (number, runner) in runners.iter_mut().enumerate() {
                let name = &options.peers[number].name;
                peers[number].push(runner.launch().with_context(|| format!("launch by {name}"))?);
            }
        }
        Ok((own, peers))
    })
    .await
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
