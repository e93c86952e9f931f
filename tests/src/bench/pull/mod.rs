//! `pull`: an image in a registry on loopback is asked for, until the first byte that its container's process writes. Nothing
//! of it is here.
//!
//! Ours is the image's way through the store (digests, confined conversion, sync), then a sandbox of the warm pool with that
//! root. Peers are `skopeo copy`, `umoci unpack` and `runc run` of what it made, and containerd's `ctr images pull` and
//! `ctr run`. All take turns, on one file system; what each made is removed before its next turn.

pub(super) mod peer;

use std::path::Path;

use anyhow::{Context, Result};
use sandbox::spec::Layer;
use sandbox::sys::clock::boottime_ns;

use super::containerd::{Containerd, Order};
use super::figure::{Figure, Quantity, lower, quantile};
use super::host::{Backend, Host};
use super::oci::ECHO;
use super::snapshot::{Picture, Snapshots};

/// What is measured here.
pub const FIGURES: [Quantity; 1] = [lower("pull.first_byte", "ms")];

/// Sandboxes that stand by.
const POOL: usize = 4;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where.
    pub host: Host,
    /// The image, `HOST:PORT/NAME:TAG`.
    pub image: String,
    /// A peer, in the host's network.
    pub containerd: Option<Containerd>,
    /// A peer of programs: an empty directory for them.
    pub programs: Option<std::path::PathBuf>,
    /// How often all take their turn.
    pub rounds: usize,
}

/// Measures.
pub async fn run(options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let [first_byte] = FIGURES;
    if !wanted(first_byte.name) {
        return Ok(Vec::new());
    }
    let mut containerd = options.containerd.as_ref().map(Containerd::start_in_hosts_network).transpose()?;
    let (mut own, mut programs, mut ctr) = (Vec::new(), Vec::new(), Vec::new());
    let measure = async |ours: &Backend| {
        for _ in 0..options.rounds {
            ours.wait_for_pool(POOL).await?;
            own.push(pull(ours, options).await?);
            if let Some(dir) = &options.programs {
                programs.push(peer::pull(dir, &options.image)?);
            }
            if let Some(runner) = &mut containerd {
                ctr.push(runner.ask(Order::Pull { image: options.image.clone() })?);
            }
        }
        Ok(())
    };
    options.host.with_backend(POOL, measure).await?;
    let theirs = [("skopeo, umoci, runc", &programs), ("containerd", &ctr)];
    let theirs = theirs.into_iter().filter(|(_, times)| !times.is_empty());
    let theirs = theirs.map(|(name, times)| (name, quantile(times, 0.5)));
    Ok(first_byte.beside_all(quantile(&own, 0.5), own.len(), theirs))
}

/// Milliseconds of ours.
async fn pull(ours: &Backend, options: &Options) -> Result<f64> {
    let store = options.host.store();
    let snapshots = Snapshots::open(&store, &Picture { dir: store.clone() })?;
    rustix::fs::sync();
    let begin = boottime_ns();
    let image = snapshots.ensure(&options.image).await?;
    let prepared = ours.prepare().await?;
    let layers: Vec<Layer> =
        image.rootfs.layers.iter().map(|layer| Layer { id: layer.id.clone(), path: layer.path.clone() }).collect();
    let mut pod = ours.start_on(prepared, &layers, &ECHO).await?;
    let first = pod.first_byte().await?;
    pod.exited().await?;
    ours.destroy(&pod.id).await?;
    let ids: Vec<String> = layers.into_iter().map(|layer| layer.id).collect();
    ours.sandboxes.release_layers(&ids).await.context("let go of the image's layers")?;
    drop((image, snapshots));
    empty(&store)?;
    #[allow(clippy::cast_precision_loss, reason = "seconds")]
    Ok(first.saturating_sub(begin) as f64 / 1e6)
}

/// Removes what a store has, but not its directory of layers, which a keeper has open.
fn empty(store: &Path) -> Result<()> {
    let layers = store.join("layers");
    for dir in [store, &layers] {
        for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
            let path = entry?.path();
            let removed = match path.is_dir() {
                _ if path == layers => Ok(()),
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}
