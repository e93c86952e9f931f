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
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// Prepare a snapshot of the image and mount it; answers with milliseconds.
    Mount,
    /// Bring another image and run it; answers with milliseconds to its first byte. It is gone afterwards.
    Pull {
        /// `HOST:PORT/NAME:TAG`, without TLS.
        image: String,
    },
}

impl Containerd {
    /// Returns at once; the first order is carried out when the instance answers.
    pub(super) fn start(&self) -> Result<Runner> {
        self.start_with(&["--net"])
    }

    /// The same, but in the host's network: for whom a registry is to be in reach.
    pub(super) fn start_in_hosts_network(&self) -> Result<Runner> {
        self.start_with(&[])
    }

    fn start_with(&self, namespaces: &[&str]) -> Result<Runner> {
        // The shell is the namespace's first process, and collects the shims.
        const INSIDE: &str = "mount -t tmpfs tmpfs /run && ip link set lo up && \"$@\"; exit $?";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid"]).args(namespaces);
        command.args(["--fork", "--kill-child", "--mount-proc", "sh", "-c", INSIDE, "sh"]);
        command.arg(this_program()?).arg("containerd").arg(&self.dir).arg(&self.image);
        Runner::spawn("containerd", command)
    }
}
