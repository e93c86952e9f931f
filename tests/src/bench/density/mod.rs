//! `density`: what an idle pod costs in memory: shim, namespaces, cgroups and the kernel's own books for them, as the
//! difference that some hundreds of pods with one sleeping container make to `MemAvailable`.
//!
//! Ours are made by the namespace backend without a pool. The peer is containerd with a shim and runc for each container, as
//! `ctr run` makes it, without the second (pause) container of a kubelet's pod. Each side has run one before, so that programs
//! and images are in memory at both ends of the difference; both are taken when the machine has come to rest.

mod memory;

use anyhow::{Context, Result};

use self::memory::Memory;
use super::containerd::{Containerd, Order};
use super::figure::{Figure, Quantity, lower};
use super::host::{Backend, Host, SLEEP};

/// What is measured here.
pub const FIGURES: [Quantity; 1] = [lower("density.memory", "MiB")];

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where.
    pub host: Host,
    /// The peer.
    pub containerd: Option<Containerd>,
    /// Pods of ours.
    pub pods: usize,
    /// Containers of the peer.
    pub peer_containers: usize,
}

/// Measures.
pub async fn run(options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let [memory] = FIGURES;
    if !wanted(memory.name) {
        return Ok(Vec::new());
    }
    let pods = options.pods;
    let own = options.host.with_backend(0, async |ours| of_ours(ours, pods).await).await?;
    let mut theirs = Vec::new();
    if let Some(containerd) = &options.containerd {
        let mut runner = containerd.start()?;
        runner.ask(Order::Fill { count: 1, network: false })?;
        runner.ask(Order::Clear)?;
        let before = Memory::at_rest()?;
        let count = options.peer_containers;
        runner.ask(Order::Fill { count, network: false })?;
        theirs.push(("containerd", Memory::at_rest()?.since(&before).tell("containerd", count)));
    }
    Ok(memory.beside_all(own, pods, theirs))
}

async fn of_ours(ours: &Backend, pods: usize) -> Result<f64> {
    let first = ours.start(&SLEEP).await?;
    ours.destroy(&first.id).await?;
    let before = rest().await?;
    let _crowd = ours.crowd(pods).await?;
    Ok(rest().await?.since(&before).tell("ours", pods))
}

async fn rest() -> Result<Memory> {
    tokio::task::spawn_blocking(Memory::at_rest).await.context("wait for the machine to rest")?
}
