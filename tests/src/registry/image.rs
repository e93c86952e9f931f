//! Images made of the busybox layout and one layer more, so that no two of them share all they have.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Bytes of the file that tells images apart; enough to cut it short.
const FILLING: usize = 96 << 10;

/// One image: its documents and layers by digest.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// Digest of the manifest.
    pub(super) manifest: String,
    /// Digest of the layer that is this image's own.
    pub(super) own_layer: String,
    /// Everything, by digest.
    pub(super) blobs: BTreeMap<String, Vec<u8>>,
}

/// What a new image is made from.
#[derive(Debug)]
pub(super) struct Base {
    config: Value,
    layers: Vec<Value>,
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Base {
    /// Reads the only image of an OCI layout.
    pub(super) fn read(layout: &Path) -> Result<Self> {
        let blob = |descriptor: &Value| -> Result<Vec<u8>> {
            let digest = descriptor["digest"].as_str().context("a descriptor without digest")?;
            let path = layout.join("blobs").join(digest.replace(':', "/"));
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        let index: Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).context("read the layout")?)?;
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])?)?;
        let config = serde_json::from_slice(&blob(&manifest["config"])?)?;
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        let mut blobs = BTreeMap::new();
        for layer in &layers {
            blobs.insert(layer["digest"].as_str().unwrap_or_default().to_owned(), blob(layer)?);
        }
        Ok(Self { config, layers, blobs })
    }

    /// The base and a layer with `/etc/image`, which begins with `name`. `user`: whom the image names.
    pub(super) fn image(&self, name: &str, user: &str) -> Result<Image> {
        let tar = layer(name)?;
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&tar)?;
        let packed = packed.finish()?;
        let mut blobs = self.blobs.clone();
        let mut add = |kind: &str, bytes: Vec<u8>| {
            let digest = digest(&bytes);
            let media_type = format!("application/vnd.oci.image.{kind}");
            let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
            blobs.insert(digest.clone(), bytes);
            (descriptor, digest)
        };
        let (own, own_layer) = add("layer.v1.tar+gzip", packed);
        let mut config = self.config.clone();
        config["config"]["User"] = user.into();
        config["history"] = Value::Null;
        if let Some(ids) = config["rootfs"]["diff_ids"].as_array_mut() {
            ids.push(digest(&tar).into());
        }
        let (config, _) = add("config.v1+json", serde_json::to_vec(&config)?);
        let layers: Vec<&Value> = self.layers.iter().chain([&own]).collect();
        let document = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        });
        let (_, manifest) = add("manifest.v1+json", serde_json::to_vec(&document)?);
        Ok(Image { manifest, own_layer, blobs })
    }
}

fn layer(name: &str) -> Result<Vec<u8>> {
    let mut content = format!("{name}\n").into_bytes();
    // What does not compress, so that half of the layer is half of the file.
    let mut state =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    while content.len() < FILLING {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        content.extend_from_slice(&(state >> 16).to_le_bytes()[..4]);
    }
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "etc/image", content.as_slice())?;
    Ok(builder.into_inner()?)
}

/// `sha256:HEX`.
pub(super) fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
