//! `convert`: one layer of a real image, compressed, becomes something that can be mounted.
//!
//! Ours is the product's whole way, by [`snapshot`]: an image with that one layer is read from a directory (`oci-layout:`), both
//! digests are checked, a confined process converts, and the snapshot is synced to the disk and recorded. Peers do less: they sync
//! nothing, and only umoci checks a digest. `mkfs.erofs` is fed by `tar -x`; `gzip -d` and `zstd -d` into nowhere are what one core
//! can reach. All take turns, on one file system.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::figure::{Figure, Quantity, lower, quantile};
use super::milliseconds;
use super::snapshot::{Compression, Picture, Snapshots};
use crate::stack::run as run_command;

/// What is measured here.
pub const FIGURES: [Quantity; 2] = [lower("convert.time", "ms"), lower("convert.zstd", "ms")];

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// The image.
    pub picture: Picture,
    /// A directory on the state's file system, empty.
    pub dir: PathBuf,
    /// How often all take their turn.
    pub rounds: usize,
}

/// Something that does the same, or a part of it, as a shell says it.
struct Peer {
    name: &'static str,
    /// `$1` is the image's directory, `$2` an empty one.
    script: &'static str,
}

const WITH_GZIP: [Peer; 3] = [
    Peer {
        name: "mkfs.erofs",
        script: "mkdir $2/x && tar -C $2/x -xzf $1/layer.tar.gz && mkfs.erofs $2/o $2/x >/dev/null 2>&1",
    },
    Peer { name: "umoci", script: "umoci unpack --image $1/gzip:latest $2/x >/dev/null 2>&1" },
    Peer { name: "gzip -d", script: "gzip -dc $1/layer.tar.gz >/dev/null" },
];

const WITH_ZSTD: [Peer; 2] = [
    Peer {
        name: "mkfs.erofs",
        script: "mkdir $2/x && tar -C $2/x --zstd -xf $1/layer.tar.zst && mkfs.erofs $2/o $2/x >/dev/null 2>&1",
    },
    Peer { name: "zstd -d", script: "zstd -dcq $1/layer.tar.zst >/dev/null" },
];

/// Measures.
pub async fn run(options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let [gzip, zstd] = FIGURES;
    let mut figures = Vec::new();
    let all: [(_, _, &[Peer]); 2] = [(gzip, Compression::Gzip, &WITH_GZIP), (zstd, Compression::Zstd, &WITH_ZSTD)];
    for (quantity, compression, peers) in all {
        if !wanted(quantity.name) {
            continue;
        }
        let mut own = Vec::new();
        let mut theirs = vec![Vec::new(); peers.len()];
        for _ in 0..options.rounds {
            own.push(ours(options, compression).await?);
            for (peer, times) in peers.iter().zip(&mut theirs) {
                times.push(peer.time(&options.picture, &options.dir)?);
            }
        }
        let theirs = peers.iter().zip(&theirs).map(|(peer, times)| (peer.name, quantile(times, 0.5)));
        figures.extend(quantity.beside_all(quantile(&own, 0.5), own.len(), theirs));
    }
    Ok(figures)
}

/// Milliseconds.
async fn ours(options: &Options, compression: Compression) -> Result<f64> {
    let store = options.dir.join("store");
    let snapshots = Snapshots::open(&store, &options.picture)?;
    rustix::fs::sync();
    let begin = Instant::now();
    let image = snapshots.ensure(&options.picture.local(compression)).await?;
    let taken = begin.elapsed();
    ensure!(image.rootfs.layers.len() == 1, "the image has other layers than it should");
    drop((image, snapshots));
    std::fs::remove_dir_all(&store)?;
    Ok(milliseconds(taken))
}

impl Peer {
    /// Milliseconds.
    fn time(&self, picture: &Picture, dir: &Path) -> Result<f64> {
        let own = dir.join("peer");
        std::fs::create_dir(&own)?;
        rustix::fs::sync();
        let begin = Instant::now();
        run_command(Command::new("sh").args(["-ec", self.script, self.name]).arg(&picture.dir).arg(&own))?;
        let taken = begin.elapsed();
        std::fs::remove_dir_all(&own)?;
        Ok(milliseconds(taken))
    }
}
