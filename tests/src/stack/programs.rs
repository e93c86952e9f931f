//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::repository;

/// The four programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// vkubelet
    pub vkubelet: PathBuf,
    /// nodeless-agent
    pub agent: PathBuf,
    /// nodeless-shim
    pub shim: PathBuf,
    /// nodeless
    pub client: PathBuf,
    /// The developer commands, where they have been built.
    pub xtask: PathBuf,
}

impl Programs {
    /// From `NODELESS_BIN_DIR` (as `hack/test e2e` sets it), else beside the test program's own build.
    pub fn find() -> Result<Self> {
        let dir = match std::env::var_os("NODELESS_BIN_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => std::env::current_exe()?
                .parent()
                .and_then(Path::parent)
                .context("the test program lies in no build directory")?
                .to_path_buf(),
        };
        let program = |name: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            ensure!(path.exists(), "{} is missing; run `hack/test e2e`, which builds it", path.display());
            Ok(path)
        };
        Ok(Self {
            vkubelet: program("vkubelet")?,
            agent: program("nodeless-agent")?,
            shim: program("nodeless-shim")?,
            client: program("nodeless")?,
            xtask: dir.join("xtask"),
        })
    }

    /// An OCI layout with busybox, made once; the reference to it.
    pub fn busybox(&self) -> Result<String> {
        let dir = repository().join("target/test-images/busybox");
        if !dir.join("index.json").exists() {
            let mut xtask = Command::new("cargo");
            xtask.current_dir(repository()).args(["run", "--quiet", "-p", "xtask", "--", "busybox-layout"]).arg(&dir);
            super::run(&mut xtask).context("make the busybox image")?;
        }
        Ok(format!("oci-layout:{}", dir.display()))
    }
}

/// True for root; else says why the test is skipped.
pub fn is_root(test: &str) -> bool {
    let root = std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0")));
    if !root {
        eprintln!("SKIPPED {test}: needs root");
    }
    root
}
