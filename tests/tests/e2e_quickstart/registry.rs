//! Debian's registry on loopback, and an image in it that exists for two architectures.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::cluster::repository;
use tests::stack::{PATIENCE, Process, run, wait};

/// A registry that runs.
pub(crate) struct Registry {
    process: Option<Process>,
    dir: tempfile::TempDir,
    /// `127.0.0.1:PORT`
    pub(crate) address: String,
}

impl Registry {
    pub(crate) fn up() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = json!({"version": 0.1, "log": {"level": "warn"}, "http": {"addr": address},
            "storage": {"filesystem": {"rootdirectory": dir.path().join("storage")}}});
        let path = dir.path().join("config.yml");
        fs::write(&path, config.to_string())?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path);
        let process = Some(Process::start(command, &dir.path().join("log"))?);
        wait("the registry serves", || Ok(TcpStream::connect(&address).is_ok()))?;
        Ok(Self { process, dir, address })
    }

    /// Pushes busybox as `NAME:TAG`: an index in which this machine's architecture comes after one whose image does not work.
    pub(crate) fn push_for_two_architectures(&self, name: &str) -> Result<String> {
        let layout = self.dir.path().join("layout");
        let mut make = Command::new(xtask());
        run(make.args(["busybox-layout", "--tag", "single"]).arg(&layout))?;
        two_architectures(&layout).context("write the index of two architectures")?;
        let reference = format!("{}/{name}", self.address);
        let mut push = Command::new("skopeo");
        push.args(["--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false"]);
        run(push.arg(format!("oci:{}:both", layout.display())).arg(format!("docker://{reference}")))?;
        Ok(reference)
    }

    pub(crate) fn down(mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |process| process.terminate(PATIENCE))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            let _ = process.terminate(PATIENCE);
        }
    }
}

fn xtask() -> PathBuf {
    match std::env::var_os("NODELESS_BIN_DIR") {
        Some(dir) => Path::new(&dir).join("xtask"),
        None => repository().join("target/debug/xtask"),
    }
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
