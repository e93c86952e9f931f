//! `launch-rate`: sandboxes made, a container run in each to its end, that end seen, everything released; without pause, by as
//! many workers at once as serve best.
//!
//! Ours is `prepare`, `configure`, `start`, the exit as an event, `destroy` and the removal of the pod's directory. The pool is
//! there, but lives from hand to mouth: what it held at the beginning and not at the end is not counted. Each namespace is
//! made for one sandbox. A peer is `PEER run`, which removes its container at the end; two more are what the machine can do
//! ([`floor`]). The time ends when the network namespaces, which the kernel takes apart in the background, are gone too; it is the same
//! for all.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use super::figure::{Better, Figure, Quantity};
use super::floor;
use super::host::{Backend, Host};
use super::oci::{self, Order, Runner};
use super::released::{Handle, Released};

/// What is measured here. `dense`: the rate beside idle sandboxes, as a share of the rate without them.
pub const FIGURES: [Quantity; 2] = [
    Quantity { name: "launch-rate.rate", unit: "per s", better: Better::Higher },
    Quantity { name: "launch-rate.dense", unit: "ratio", better: Better::Higher },
];

/// Sandboxes kept ready.
const POOL: usize = 16;

/// Numbers of workers that are tried.
const WORKERS: [usize; 5] = [1, 2, 4, 8, 16];

/// How long each number is tried.
const TRIAL: Duration = Duration::from_millis(1000);

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where.
    pub host: Host,
    /// How long each side works.
    pub duration: Duration,
    /// Idle sandboxes for `dense`.
    pub idle: usize,
    /// Workers on either side; `None`: the number that serves best.
    pub workers: Option<usize>,
}

/// How many were done, and how many a second.
#[derive(Debug, Clone, Copy)]
struct Rate {
    count: usize,
    per_second: f64,
}

/// Measures those of [`FIGURES`] that are wanted.
pub async fn run(options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let [rate, dense] = FIGURES;
    let mut figures = Vec::new();
    let measure = async |ours: &Backend| {
        let workers = match options.workers {
            Some(workers) => workers,
            None => best(async |workers| Ok(work(ours, workers, TRIAL).await?.per_second)).await?,
        };
        let alone = work(ours, workers, options.duration).await?;
        if !wanted(dense.name) {
            return Ok((alone, None));
        }
        let _crowd = ours.crowd(options.idle).await?;
        Ok((alone, Some(work(ours, workers, options.duration).await?)))
    };
    let (alone, crowded) = options.host.with_backend(POOL, measure).await?;
    let mut theirs = Vec::new();
    let mut dense_theirs = None;
    for mut runner in Runner::start_all(&options.host)? {
        let floor = runner.name() == floor::NAME;
        if !wanted(rate.name) && !floor {
            continue;
        }
        let workers = match options.workers {
            Some(workers) => workers,
            None => best(async |workers| runner.ask(Order::Rate { workers, duration: TRIAL })).await?,
        };
        let duration = options.duration;
        let alone = runner.ask(Order::Rate { workers, duration })?;
        theirs.push((runner.name().to_owned(), alone));
        if !floor {
            continue;
        }
        if wanted(rate.name) {
            theirs.push((floor::KEPT.to_owned(), runner.ask(Order::Kept { workers, duration })?));
        }
        if wanted(dense.name) {
            runner.ask(Order::Crowd { count: options.idle })?;
            dense_theirs = Some(runner.ask(Order::Rate { workers, duration })? / alone);
        }
    }
    if wanted(rate.name) {
        let theirs = theirs.iter().map(|(name, rate)| (name.as_str(), *rate));
        figures.extend(rate.beside_all(alone.per_second, alone.count, theirs));
    }
    if let Some(crowded) = crowded {
        let theirs = dense_theirs.map(|theirs| (floor::NAME, theirs));
        figures.extend(dense.beside_all(crowded.per_second / alone.per_second, crowded.count, theirs));
    }
    Ok(figures)
}

/// The number of workers with the highest rate.
async fn best(mut rate: impl AsyncFnMut(usize) -> Result<f64>) -> Result<usize> {
    let mut best = (0.0, WORKERS[0]);
    for workers in WORKERS {
        let reached = rate(workers).await?;
        eprintln!("launch-rate: {workers} at once: {reached:.0} per s");
        if reached > best.0 {
            best = (reached, workers);
        }
    }
    Ok(best.1)
}

async fn work(ours: &Backend, workers: usize, duration: Duration) -> Result<Rate> {
    let mut released = Released::watch()?;
    let warm = ours.sandboxes.warm().await;
    let begin = Instant::now();
    let mut working: JoinSet<Result<(usize, Vec<Handle>)>> = JoinSet::new();
    for _ in 0..workers {
        let ours = ours.clone();
        working.spawn(async move {
            let (mut done, mut handles) = (0, Vec::new());
            while begin.elapsed() < duration {
                let prepared = ours.prepare().await?;
                handles.extend(Handle::of(prepared.netns.as_fd())?);
                let mut pod = ours.start_in(prepared, &oci::TRUE).await?;
                pod.exited().await?;
                ours.destroy(&pod.id).await?;
                done += 1;
            }
            Ok((done, handles))
        });
    }
    let mut done = 0;
    for worked in working.join_all().await {
        let (count, handles) = worked?;
        done += count;
        released.remember(handles);
    }
    let unmade = warm.saturating_sub(ours.sandboxes.warm().await);
    let count = done.saturating_sub(unmade);
    tokio::task::spawn_blocking(move || released.wait()).await??;
    Ok(Rate { count, per_second: per_second(count, begin.elapsed()) })
}

/// Also the peers' arithmetic.
#[allow(clippy::cast_precision_loss, reason = "some thousand launches")]
pub(super) fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
