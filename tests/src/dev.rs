//! A whole cluster of `hack/dev`: control plane, registry, vkubelet and hosts, under a name of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::cluster::repository;

/// Longest wait for what a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What `hack/dev up` made; gone when dropped.
#[derive(Debug)]
pub struct Dev {
    name: String,
    told: String,
}

impl Dev {
    /// Starts it with so many hosts; `name` tells tests of one process apart.
    pub fn up(name: &str, hosts: u32) -> Result<Self> {
        let mut dev = Self { name: format!("{name}{}", std::process::id()), told: String::new() };
        dev.told = dev.hack(&["up", "--hosts", &hosts.to_string()])?;
        Ok(dev)
    }

    fn hack(&self, arguments: &[&str]) -> Result<String> {
        said(Command::new(repository().join("hack/dev")).args(arguments).args(["--name", &self.name]))
    }

    /// What stands behind `key` in what `hack/dev` told last: the daemons come first, the addresses after them.
    pub fn told(&self, key: &str) -> Result<&str> {
        let line = self.told.lines().rev().find_map(|line| line.strip_prefix(key)).map(str::trim);
        line.with_context(|| format!("hack/dev up told no {key}: {}", self.told))
    }

    /// What the administrator's kubectl prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        said(Command::new(self.told("kubectl")?).args(["--kubeconfig", self.told("KUBECONFIG")?]).args(arguments))
    }

    /// `kubectl apply` of one object.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let scratch = tempfile::NamedTempFile::new().context("make a file for the manifest")?;
        std::fs::write(scratch.path(), object.to_string()).context("write the manifest")?;
        self.kubectl(&["apply", "-f", &scratch.path().display().to_string()]).map(drop)
    }

    /// What the client prints.
    pub fn client_text(&self, arguments: &[&str]) -> Result<String> {
        let mut words = self.told("client")?.split(' ');
        said(Command::new(words.next().unwrap_or_default()).args(words).args(arguments))
    }

    /// The client's answer as JSON.
    pub fn client(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.client_text(&[&["-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("nodeless {arguments:?} said: {text}"))
    }

    /// Puts an image with busybox of so many layers into the registry; its reference there.
    pub fn busybox(&self, repository: &str, layers: u32) -> Result<String> {
        let scratch = tempfile::tempdir().context("make a directory for the image")?;
        let layout = scratch.path().join("busybox");
        let client = PathBuf::from(self.told("client")?.split(' ').next().unwrap_or_default());
        let mut xtask = Command::new(client.with_file_name("xtask"));
        said(xtask.arg("busybox-layout").arg(&layout).args(["--layers", &layers.to_string()]))?;
        let image = format!("{}/{repository}", self.told("registry")?);
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--quiet", "--dest-tls-verify=false"]);
        said(skopeo.arg(format!("oci:{}:latest", layout.display())).arg(format!("docker://{image}")))?;
        Ok(image)
    }

    /// Ends the registry: from now on nothing can be pulled.
    pub fn end_registry(&self) -> Result<()> {
        let file = PathBuf::from(format!("/var/lib/nodeless-{}/registry.pid", self.name));
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let pid = text.split(' ').next().and_then(|pid| pid.parse().ok()).context("the registry's pid")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        let gone = || !Path::new(&format!("/proc/{pid}/fd/0")).exists();
        until("the registry has ended", || if gone() { Ok(()) } else { Err(anyhow!("it runs")) })
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let down = self.hack(&["down"]);
        if !std::thread::panicking() {
            assert!(down.is_ok(), "hack/dev down failed: {down:?}");
        }
    }
}

/// What a command prints; an error when it fails.
pub fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {errors}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Looks until it is so.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(why) if Instant::now() >= end => bail!("{what}: not so after {} s: {why:#}", PATIENCE.as_secs()),
            Err(_) => sleep(Duration::from_millis(200)),
        }
    }
}
