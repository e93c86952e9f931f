//! An image that exists for two architectures.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::registry::DebianRegistry;
use tests::stack::{Programs, run};

/// Pushes busybox as `NAME:TAG`: an index in which this machine's architecture comes after one whose image does not work.
pub(crate) fn push_for_two_architectures(registry: &DebianRegistry, name: &str) -> Result<String> {
    let layout = registry.scratch("layout");
    let mut make = Command::new(Programs::find()?.xtask);
    run(make.args(["busybox-layout", "--tag", "single"]).arg(&layout))?;
    two_architectures(&layout).context("write the index of two architectures")?;
    registry.push(&format!("oci:{}:both", layout.display()), name)
}

/// Adds to the layout an index under the tag `both`: first an image for another architecture, without anything in it, then
/// the one that is there.
fn two_architectures(layout: &Path) -> Result<()> {
    let top = layout.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&top)?)?;
    let mut own = index["manifests"][0].clone();
    own.as_object_mut().context("the layout's image")?.remove("annotations");
    let other = if own["platform"]["architecture"] == "amd64" { "arm64" } else { "amd64" };

    let empty = add(layout, "application/vnd.oci.image.layer.v1.tar", &[0; 1024])?;
    let config = json!({"architecture": other, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [empty["digest"]]}});
    let config = add(layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [empty]});
    let mut foreign = add(layout, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())?;
    foreign["platform"] = json!({"architecture": other, "os": "linux"});

    let both = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [foreign, own]});
    let mut both = add(layout, "application/vnd.oci.image.index.v1+json", both.to_string().as_bytes())?;
    both["annotations"] = json!({"org.opencontainers.image.ref.name": "both"});
    index["manifests"].as_array_mut().context("the layout's images")?.push(both);
    fs::write(top, index.to_string()).context("write the layout's index")
}

fn add(layout: &Path, media_type: &str, blob: &[u8]) -> Result<Value> {
    let digest: String = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(layout.join("blobs/sha256").join(&digest), blob).context("write a blob")?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": blob.len()}))
}
