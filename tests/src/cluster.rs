//! The real control plane of `hack/testcluster`, shared by the tests of one run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// A running test cluster. `hack/test` names its directory in `NODELESS_TESTCLUSTER_DIR` and ends it afterwards; without
/// that it lies in the build directory and is ended by `hack/testcluster/down --dir DIR`.
#[derive(Debug, Clone)]
pub struct Cluster {
    dir: PathBuf,
}

impl Cluster {
    /// Starts the cluster, or finds it running.
    pub fn up() -> Result<Self> {
        let dir = std::env::var_os("NODELESS_TESTCLUSTER_DIR")
            .map_or_else(|| repository().join("target/testcluster"), PathBuf::from);
        let output = Command::new(repository().join("hack/testcluster/up"))
            .arg("--dir")
            .arg(&dir)
            .output()
            .context("run hack/testcluster/up")?;
        if !output.status.success() {
            bail!("hack/testcluster/up failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Self { dir })
    }

    /// The administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// A kubectl command with the administrator's kubeconfig.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.dir.join("kubectl"));
        command.arg("--kubeconfig").arg(self.admin_kubeconfig());
        command
    }

    /// Makes a node's credentials (`node.kubeconfig`, `kubelet.crt`, `kubelet.key`, `ca.crt`) and names their directory.
    pub fn node_credentials(&self, node: &str) -> Result<PathBuf> {
        let output = Command::new(self.dir.join("testcluster"))
            .args(["node-credentials", node, "--dir"])
            .arg(&self.dir)
            .output()
            .context("run testcluster node-credentials")?;
        if !output.status.success() {
            bail!("testcluster node-credentials failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
    }
}

/// A client with a kubeconfig file.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).context("read the kubeconfig")?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}
