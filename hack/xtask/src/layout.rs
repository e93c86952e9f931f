//! Writes OCI image layouts: `oci-layout`, `index.json` and `blobs/sha256/…`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A layout being written.
pub(crate) struct Layout {
    dir: PathBuf,
}

/// A layer that was written: its blob, and the digest of what is in it.
pub(crate) struct Layer {
    descriptor: Value,
    diff_id: String,
}

impl Layout {
    /// Starts a layout in `dir`, which is made.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
        write(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Adds a layer, compressed with gzip.
    pub(crate) fn add_layer(&self, tar: &[u8]) -> Result<Layer> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let compressed = encoder.write_all(tar).and_then(|()| encoder.finish()).context("cannot compress a layer")?;
        let descriptor = self.add_blob("application/vnd.oci.image.layer.v1.tar+gzip", &compressed)?;
        Ok(Layer { descriptor, diff_id: digest(tar) })
    }

    /// Adds the image of `layers` under `tag`, with `config` as its runtime configuration (`Cmd`, `Env` …).
    pub(crate) fn finish(self, tag: &str, layers: &[Layer], config: &Value) -> Result<()> {
        let image = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
            "history": layers.iter().map(|_| json!({"created_by": "cargo xtask busybox-layout"})).collect::<Vec<_>>(),
        });
        let config = self.add_blob("application/vnd.oci.image.config.v1+json", &bytes(&image)?)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers.iter().map(|layer| &layer.descriptor).collect::<Vec<_>>(),
        });
        let mut descriptor = self.add_blob("application/vnd.oci.image.manifest.v1+json", &bytes(&manifest)?)?;
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        descriptor["platform"] = json!({"architecture": architecture(), "os": "linux"});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor],
        });
        write(&self.dir.join("index.json"), &bytes(&index)?)
    }

    fn add_blob(&self, media_type: &str, blob: &[u8]) -> Result<Value> {
        let digest = digest(blob);
        write(&self.dir.join("blobs").join(digest.replace(':', "/")), blob)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": blob.len()}))
    }
}

/// `oci-layout:DIR:TAG` of the layout's only image.
pub(crate) fn reference(dir: &Path) -> Result<String> {
    let dir = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
    let path = dir.join("index.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let index: Value = serde_json::from_slice(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    let tag = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
        .as_str()
        .with_context(|| format!("{} names no image", path.display()))?;
    Ok(format!("oci-layout:{}:{tag}", dir.display()))
}

/// This machine's architecture, as Go and OCI call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn bytes(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("cannot write JSON")
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
