//! Debian's docker-registry as a real process, in plain HTTP or in TLS, at any address of this machine.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::stack::{PATIENCE, Process, run, wait};

/// A registry that runs; it ends when dropped.
#[derive(Debug)]
pub struct DebianRegistry {
    process: Option<Process>,
    dir: tempfile::TempDir,
    /// `HOST:PORT`
    pub address: String,
}

impl DebianRegistry {
    /// In plain HTTP.
    pub fn plain(at: IpAddr) -> Result<Self> {
        Self::start(at, |_| Ok(json!(null)))
    }

    /// In TLS, with a certificate for its address that nobody but itself vouches for ([`DebianRegistry::certificate`]).
    pub fn over_tls(at: IpAddr) -> Result<Self> {
        Self::start(at, |dir| {
            let made = rcgen::generate_simple_self_signed(vec![at.to_string()]).context("make a certificate")?;
            let (certificate, key) = (certificate(dir), dir.join("key.pem"));
            std::fs::write(&certificate, made.cert.pem()).context("write the certificate")?;
            std::fs::write(&key, made.signing_key.serialize_pem()).context("write its key")?;
            Ok(json!({"certificate": certificate, "key": key}))
        })
    }

    fn start(at: IpAddr, tls: impl FnOnce(&Path) -> Result<serde_json::Value>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let address: SocketAddr = TcpListener::bind((at, 0)).context("find a port")?.local_addr()?;
        let mut config = json!({"version": 0.1, "log": {"level": "warn"}, "http": {"addr": address},
            "storage": {"filesystem": {"rootdirectory": dir.path().join("storage")}}});
        let tls = tls(dir.path())?;
        if tls.is_object() {
            config["http"]["tls"] = tls;
        }
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config.to_string())?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&path);
        let process = Some(Process::start(command, &dir.path().join("log"))?);
        let registry = Self { process, dir, address: address.to_string() };
        wait("the registry serves", || Ok(TcpStream::connect(address).is_ok()))?;
        Ok(registry)
    }

    /// The certificate of one that speaks TLS.
    pub fn certificate(&self) -> PathBuf {
        certificate(self.dir.path())
    }

    /// A directory of its own, for what is to be pushed.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Pushes an image, whole with all its platforms; `from` as skopeo names it. The image's reference.
    pub fn push(&self, from: &str, name: &str) -> Result<String> {
        let reference = format!("{}/{name}", self.address);
        let mut push = Command::new("skopeo");
        push.args(["--insecure-policy", "copy", "--quiet", "--all", "--dest-tls-verify=false", from]);
        run(push.arg(format!("docker://{reference}")))?;
        Ok(reference)
    }

    /// Ends it.
    pub fn down(mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |process| process.terminate(PATIENCE))
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            let _ = process.terminate(PATIENCE);
        }
    }
}

fn certificate(dir: &Path) -> PathBuf {
    dir.join("certificate.pem")
}
