//! containerd as a peer: an instance of its own in mount, process and network namespaces of its own, so that all of it ends
//! with the process that holds it. Containers are made by `ctr`, links by CNI's bridge plugin.

mod cni;
mod instance;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::oci::{Runner, this_program};

/// containerd's own word for what containers belong to; their cgroups lie in one of this name.
const NAMESPACE: &str = "nodeless-bench-peer";

/// What is needed of the host.
#[derive(Debug, Clone)]
pub struct Containerd {
    /// An empty directory.
    pub dir: PathBuf,
    /// Busybox as an image archive; `bench:1` in it.
    pub image: PathBuf,
}

/// What it can be told; see [`Runner`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Order {
    /// Start as many containers that keep still, one after the other; answers with their number.
    Fill {
        /// How many.
        count: usize,
        /// Each connected to a bridge.
        network: bool,
    },
    /// Remove them, one after the other, and their links and namespaces; answers with milliseconds.
    Clear,
}

impl Containerd {
    /// Returns at once; the first order is carried out when the instance answers.
    pub(super) fn start(&self) -> Result<Runner> {
        // The shell is the namespace's first process, and collects the shims.
        const INSIDE: &str = "mount -t tmpfs tmpfs /run && ip link set lo up && \"$@\"; exit $?";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc", "sh", "-c", INSIDE, "sh"]);
        command.arg(this_program()?).arg("containerd").arg(&self.dir).arg(&self.image);
        Runner::spawn("containerd", command)
    }
}
