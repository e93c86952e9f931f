//! A process that works with one peer when told, in namespaces of its own.

use std::fmt::Debug;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Peer;
use crate::bench::floor;
use crate::bench::host::Host;

/// What a runner can be told; it answers each order with a number.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(in crate::bench) enum Order {
    /// Run a container: milliseconds to its first byte.
    Launch,
    /// The same, with nothing made before. Only of the floor.
    Cold,
    /// Run a program in a container that keeps still: milliseconds to its end.
    Exec,
    /// Have as many containers that keep still, from now on: how many there are. Only of the floor.
    Crowd {
        /// As many.
        count: usize,
    },
    /// Run containers to their end without pause: how many a second.
    Rate {
        /// As many at once.
        workers: usize,
        /// As long.
        duration: Duration,
    },
    /// The same, each with a process of its own that stays with it, a record and a log. Only of the floor.
    Kept {
        /// As many at once.
        workers: usize,
        /// As long.
        duration: Duration,
    },
}

/// A child that carries out orders, each a line of JSON, and answers each with a number.
pub(in crate::bench) struct Runner {
    name: String,
    child: Child,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Runner {
    /// The peers' and, last, the floor's, where this kernel can be measured so.
    pub(in crate::bench) fn start_all(host: &Host) -> Result<Vec<Self>> {
        host.peers.iter().map(Self::start).chain(floor::runner(host).transpose()).collect()
    }

    pub(in crate::bench) fn name(&self) -> &str {
        &self.name
    }

    /// In a mount namespace of its own: Debian's crun refuses hosts with a v2 mount beside v1 hierarchies, so that mount is
    /// taken out of its sight, once and not in the time that is measured.
    pub(in crate::bench) fn start(peer: &Peer) -> Result<Self> {
        const HIDDEN: &str = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
        let peer_is = format!("{}={}={}", peer.name, peer.program.display(), peer.dir.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", HIDDEN, "sh"]).arg(this_program()?).args(["peer", &peer_is]);
        Self::spawn(&peer.name, command)
    }

    /// A command that obeys until its standard input ends.
    pub(in crate::bench) fn spawn(name: &str, mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("execute unshare")?;
        let answers = child.stdout.take().context("a pipe was asked for")?;
        let answers = BufReader::new(answers).lines();
        Ok(Self { name: name.to_owned(), orders: child.stdin.take(), child, answers })
    }

    pub(in crate::bench) fn ask<O: Serialize + Debug>(&mut self, order: O) -> Result<f64> {
        self.tell(&order).with_context(|| format!("{order:?} by {}", self.name))
    }

    fn tell<O: Serialize>(&mut self, order: &O) -> Result<f64> {
        let orders = self.orders.as_mut().context("a pipe was asked for")?;
        writeln!(orders, "{}", serde_json::to_string(order)?).context("give an order")?;
        let answer = self.answers.next().context("the runner has ended; its words are above")??;
        answer.parse().with_context(|| format!("the runner said {answer:?}"))
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Without orders it ends by itself.
        self.orders = None;
        let _ = self.child.wait();
    }
}

pub(in crate::bench) fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("find this program")
}
