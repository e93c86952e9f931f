//! `store`: what a real image takes on the disk, all of the store counted, beside what its files hold.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::figure::{Figure, Quantity, lower};
use super::snapshot::{Compression, Picture, Snapshots};

/// What is measured here.
pub const FIGURES: [Quantity; 1] = [lower("store.overhead", "ratio")];

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// The image.
    pub picture: Picture,
    /// A directory on the state's file system, empty.
    pub dir: PathBuf,
}

/// Measures.
pub async fn run(options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let [overhead] = FIGURES;
    if !wanted(overhead.name) {
        return Ok(Vec::new());
    }
    let store = options.dir.join("store");
    let snapshots = Snapshots::open(&store, &options.picture)?;
    drop(snapshots.ensure(&options.picture.local(Compression::Gzip)).await?);
    let held = blocks_of(&store)?;
    drop(snapshots);
    std::fs::remove_dir_all(&store)?;
    let content = content_of(&options.picture.dir.join("layer.tar"))?;
    #[allow(clippy::cast_precision_loss, reason = "bytes of a disk")]
    Ok(vec![overhead.alone(held as f64 / content as f64, 1)])
}

/// Bytes of the disk that a directory takes.
fn blocks_of(dir: &Path) -> Result<u64> {
    let mut sum = std::fs::symlink_metadata(dir)?.blocks() * 512;
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { blocks_of(&entry.path())? } else { entry.metadata()?.blocks() * 512 };
    }
    Ok(sum)
}

/// Bytes of all files of an archive.
fn content_of(archive: &Path) -> Result<u64> {
    let file = std::fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let mut archive = tar::Archive::new(std::io::BufReader::new(file));
    archive.entries()?.map(|entry| Ok(entry?.size())).sum()
}
