//! A user namespace with a pod's ids.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::namespace;
use crate::bench::host::PATIENCE;
use crate::bench::oci::UID_BASE;

/// A process that keeps still in it.
struct Holder(Child);

/// Lives as long as this.
pub(super) struct UserNamespace {
    descriptor: OwnedFd,
    _holder: Holder,
}

impl UserNamespace {
    pub(super) fn make() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--user", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let holder = Holder(command.spawn().context("execute unshare")?);
        let pid = holder.0.id();
        let own = namespace(std::process::id(), "user")?.metadata()?.ino();
        let deadline = Instant::now() + PATIENCE;
        let found = loop {
            let found = namespace(pid, "user")?;
            if found.metadata()?.ino() != own {
                break found;
            }
            ensure!(Instant::now() < deadline, "unshare made no user namespace within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(1));
        };
        for kind in ["uid", "gid"] {
            let map = format!("/proc/{pid}/{kind}_map");
            std::fs::write(&map, format!("0 {UID_BASE} 65536")).with_context(|| format!("write {map}"))?;
        }
        Ok(Self { descriptor: found.into(), _holder: holder })
    }

    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends with its standard input.
        self.0.stdin = None;
        let _ = self.0.wait();
    }
}
