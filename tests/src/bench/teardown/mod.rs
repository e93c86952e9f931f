//! `teardown`: a hundred running pods with network are asked to go, until all that they held is released: processes, mounts,
//! cgroups, links, network namespaces.
//!
//! Ours is what the agent does for pods that go at the same time: `destroy` and `detach` for each, all at once. The peer is
//! containerd's `ctr task delete --force`, `ctr container delete`, CNI's bridge plugin `DEL`, `ip netns delete`, one
//! container after the other.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use agent::network::{DataPlane, Network, NetworkConfig};
use anyhow::{Context, Result, ensure};
use sandbox::spec::SandboxId;
use tokio::task::JoinSet;

use super::containerd::{Containerd, Order};
use super::figure::{Figure, Quantity, lower, quantile};
use super::host::{Backend, Host, SLEEP};
use super::leftovers::own_name;
use super::milliseconds;
use super::released::{Handle, Released};
use crate::stack::run as execute;

/// What is measured here.
pub const FIGURES: [Quantity; 1] = [lower("teardown.100", "ms")];

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where.
    pub host: Host,
    /// The peer.
    pub containerd: Option<Containerd>,
    /// Pods at once.
    pub pods: usize,
    /// How often ours is repeated; the median counts.
    pub rounds: usize,
}

/// Measures.
pub async fn run(options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let [teardown] = FIGURES;
    if !wanted(teardown.name) {
        return Ok(Vec::new());
    }
    let name = own_name();
    execute(Command::new("ip").args(["netns", "add", &name])).context("make the data plane's network namespace")?;
    let own = of_ours(options, &name).await;
    execute(Command::new("ip").args(["netns", "delete", &name]))
        .context("remove the data plane's network namespace")?;
    let own = own?;
    let mut theirs = Vec::new();
    if let Some(containerd) = &options.containerd {
        let mut runner = containerd.start()?;
        runner.ask(Order::Fill { count: options.pods, network: true })?;
        theirs.push(("containerd", runner.ask(Order::Clear)?));
    }
    Ok(teardown.beside_all(quantile(&own, 0.5), own.len(), theirs))
}

async fn of_ours(options: &Options, netns: &str) -> Result<Vec<f64>> {
    let config = NetworkConfig {
        state_dir: options.host.dir.join("network"),
        data_plane: DataPlane::Netns(Path::new("/run/netns").join(netns)),
        cidr: "10.98.0.0/16".parse().context("a subnet")?,
        bridge: "nodeless0".to_owned(),
    };
    let network = Network::open(config).await.context("open the network")?;
    let measure = async |ours: &Backend| {
        let mut times = Vec::with_capacity(options.rounds);
        for _ in 0..options.rounds {
            times.push(round(ours, &network, options.pods).await?);
        }
        Ok(times)
    };
    options.host.with_backend(0, measure).await
}

/// Milliseconds.
async fn round(ours: &Backend, network: &Network, count: usize) -> Result<f64> {
    let mut released = Released::watch()?;
    let mut pods = Vec::with_capacity(count);
    for _ in 0..count {
        let prepared = ours.prepare().await?;
        released.remember(Handle::of(prepared.netns.as_fd())?);
        network.attach(&prepared.id.0, prepared.netns.as_fd()).await.context("attach")?;
        pods.push(ours.start_in(prepared, &SLEEP).await?);
    }
    let begin = Instant::now();
    let mut going = JoinSet::new();
    for pod in pods {
        let (ours, network) = (ours.clone(), network.clone());
        going.spawn(async move { gone(&ours, &network, &pod.id).await });
    }
    going.join_all().await.into_iter().collect::<Result<()>>()?;
    tokio::task::spawn_blocking(move || released.wait()).await??;
    let taken = begin.elapsed();
    ensure!(network.addresses().is_empty(), "pods that are gone hold addresses");
    ensure!(ours.cgroups()?.is_empty(), "pods that are gone hold control groups: {:?}", ours.cgroups()?);
    Ok(milliseconds(taken))
}

async fn gone(ours: &Backend, network: &Network, id: &SandboxId) -> Result<()> {
    ours.destroy(id).await?;
    network.detach(&id.0).await.context("detach")
}
