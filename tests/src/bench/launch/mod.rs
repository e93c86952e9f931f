//! `launch`: a sandbox is asked for, until the first byte that the container's process writes; layers present.
//!
//! Ours is `prepare`, `configure`, `start` on the namespace backend, from its warm pool (and, for `launch.cold`, without one),
//! to the time that the shim took of the first byte. A peer is `PEER run` on a prepared bundle, to the first byte on its
//! standard output: the same program, user namespace, namespaces, capabilities, seccomp rules, masked paths, limits (see
//! [`oci`]). All take turns of ten.

use std::time::Duration;

use anyhow::{Context, Result};
use sandbox::sys::clock::boottime_ns;
use tokio::task::JoinSet;

use super::figure::{Figure, Quantity, lower, quantile};
use super::floor;
use super::host::{Backend, Host};
use super::oci::{self, Order, Runner};
use super::{milliseconds, turns};

/// What is measured here.
pub const FIGURES: [Quantity; 4] =
    [lower("launch.p50", "ms"), lower("launch.p99", "ms"), lower("launch.cold", "ms"), lower("launch.burst200", "s")];

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where.
    pub host: Host,
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
        let (own, theirs) = warm(options).await?;
        for (figure, q) in [(p50, 0.5), (p99, 0.99)].into_iter().filter(|(figure, _)| wanted(figure.name)) {
            let theirs = theirs.iter().map(|(name, times)| (name.as_str(), quantile(times, q)));
            figures.extend(figure.beside_all(quantile(&own, q), own.len(), theirs));
        }
    }
    if wanted(cold.name) {
        let count = options.singles.min(50);
        let mut floor = floor::runner(&options.host)?;
        let mut theirs = Vec::new();
        let measure = async |ours: &Backend| {
            let mut times = Vec::with_capacity(count);
            for count in turns(count) {
                for _ in 0..count {
                    times.push(launch(ours).await?);
                }
                if let Some(floor) = &mut floor {
                    for _ in 0..count {
                        theirs.push(floor.ask(Order::Cold)?);
                    }
                }
            }
            anyhow::Ok(times)
        };
        let times = options.host.with_backend(0, measure).await?;
        let theirs = floor.map(|_| (floor::NAME, quantile(&theirs, 0.5)));
        figures.extend(cold.beside_all(quantile(&times, 0.5), times.len(), theirs));
    }
    if wanted(burst.name) {
        let count = options.burst;
        let times = options.host.with_backend(count, async |ours| repeat(3, async || at_once(ours, count).await).await);
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
async fn warm(options: &Options) -> Result<(Vec<f64>, Vec<(String, Vec<f64>)>)> {
    const POOL: usize = 8;
    let mut runners = Runner::start_all(&options.host)?;
    let measure = async |ours: &Backend| {
        let mut own = Vec::new();
        let mut peers: Vec<_> = runners.iter().map(|runner| (runner.name().to_owned(), Vec::new())).collect();
        for count in turns(options.singles) {
            for _ in 0..count {
                ours.wait_for_pool(POOL).await?;
                own.push(launch(ours).await?);
            }
            for (runner, (_, times)) in runners.iter_mut().zip(&mut peers) {
                for _ in 0..count {
                    times.push(runner.ask(Order::Launch)?);
                }
            }
        }
        Ok((own, peers))
    };
    options.host.with_backend(POOL, measure).await
}

/// One launch, in milliseconds; its sandbox is destroyed afterwards.
async fn launch(ours: &Backend) -> Result<f64> {
    let ours = ours.clone();
    // Where an agent's pods have their tasks: on the runtime's threads.
    let launched = tokio::spawn(async move {
        let begin = boottime_ns();
        let mut pod = ours.start(&oci::ECHO).await?;
        let first = pod.first_byte().await?;
        ours.destroy(&pod.id).await?;
        Ok(milliseconds(Duration::from_nanos(first - begin)))
    });
    launched.await.context("a launch's task")?
}

/// As many at once, from a full pool: seconds until the last first byte.
async fn at_once(ours: &Backend, count: usize) -> Result<f64> {
    ours.wait_for_pool(count).await?;
    let begin = boottime_ns();
    let mut launches = JoinSet::new();
    for _ in 0..count {
        let ours = ours.clone();
        launches.spawn(async move {
            let mut pod = ours.start(&oci::ECHO).await?;
            let first = pod.first_byte().await?;
            Ok((pod.id, first))
        });
    }
    let launched = launches.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    let last = launched.iter().map(|(_, first)| *first).max().context("none was launched")?;
    for (id, _) in launched {
        ours.destroy(&id).await?;
    }
    Ok(Duration::from_nanos(last - begin).as_secs_f64())
}
