//! What a runner does: `run` and `exec` of its peer.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{ECHO, Order, Peer, TRUE, write_config};
use crate::bench::host::SLEEP;
use crate::bench::milliseconds;
use crate::bench::rate::per_second;
use crate::bench::released::Released;

/// Where a peer's own records are: as on a host, where /run is one too, a file system in memory.
const RUN: &str = "/dev/shm/nodeless-bench-peer";

/// The container that execs are made in.
const HELD: &str = "held";

impl Peer {
    /// Carries out the orders of standard input, and answers each; at their end it removes what it holds.
    pub fn obey(&self) -> Result<()> {
        let mut held = false;
        let obeyed = self.obey_all(&mut held);
        if held {
            ended(self.command(&["delete", "--force", &name(HELD)]))?;
        }
        // Absent when nothing was asked.
        let _ = std::fs::remove_dir_all(self.state());
        let _ = std::fs::remove_dir(RUN);
        obeyed
    }

    fn obey_all(&self, held: &mut bool) -> Result<()> {
        for (number, order) in std::io::stdin().lines().enumerate() {
            let order = serde_json::from_str(&order.context("read an order")?)?;
            let answer = match order {
                Order::Launch => self.launch(number)?,
                Order::Exec => {
                    if !*held {
                        self.hold()?;
                        *held = true;
                    }
                    self.exec()?
                }
                Order::Cold | Order::Crowd { .. } | Order::Kept { .. } => bail!("a peer is not measured so"),
                Order::Rate { workers, duration } => self.rate(number, workers, duration)?,
            };
            println!("{answer}");
        }
        Ok(())
    }

    fn launch(&self, number: usize) -> Result<f64> {
        let bundle = self.bundle("launch", &ECHO)?;
        let mut command = self.run(&bundle, &name(&number.to_string()), &[]);
        command.stdout(Stdio::piped());
        let begin = Instant::now();
        let mut child = command.spawn().context("execute the runtime")?;
        let mut out = child.stdout.take().context("a pipe was asked for")?;
        let mut first = [0];
        let read = out.read(&mut first).context("read the container's output")?;
        let taken = begin.elapsed();
        drop(out);
        let ended = child.wait_with_output().context("wait for the runtime")?;
        ensure!(read == 1 && ended.status.success(), "{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
        Ok(milliseconds(taken))
    }

    /// Its output is nobody's: what it holds open would be waited for.
    fn hold(&self) -> Result<()> {
        let bundle = self.bundle("exec", &SLEEP)?;
        let mut command = self.run(&bundle, &name(HELD), &["--detach"]);
        let status = command.stderr(Stdio::null()).status().context("execute the runtime")?;
        ensure!(status.success(), "run --detach: {status}");
        Ok(())
    }

    fn exec(&self) -> Result<f64> {
        let command = self.command(&["exec", &name(HELD), TRUE[0]]);
        let begin = Instant::now();
        ended(command)?;
        Ok(milliseconds(begin.elapsed()))
    }

    fn rate(&self, number: usize, workers: usize, duration: Duration) -> Result<f64> {
        let bundles: Vec<PathBuf> =
            (0..workers).map(|worker| self.bundle(&format!("rate-{worker}"), &TRUE)).collect::<Result<_>>()?;
        let released = Released::watch()?;
        let begin = Instant::now();
        let count = std::thread::scope(|scope| {
            let work = |worker: usize, bundle: &Path| {
                let mut done = 0;
                while begin.elapsed() < duration {
                    let name = name(&format!("{number}-{worker}-{done}"));
                    ended(self.run(bundle, &name, &[]))?;
                    done += 1;
                }
                Ok(done)
            };
            let working: Vec<_> =
                bundles.iter().enumerate().map(|(worker, bundle)| scope.spawn(move || work(worker, bundle))).collect();
            let joined = working
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked"))));
            joined.sum::<Result<usize>>()
        })?;
        released.wait()?;
        Ok(per_second(count, begin.elapsed()))
    }

    /// A bundle with a cgroup of its own.
    fn bundle(&self, name: &str, args: &[&str]) -> Result<PathBuf> {
        let bundle = self.dir.join(name);
        if !bundle.join("config.json").exists() {
            std::fs::create_dir_all(&bundle).with_context(|| format!("make {}", bundle.display()))?;
            let cgroup = format!("/nodeless-bench-peer/{}-{name}", self.name);
            write_config(&bundle, &self.dir.join("rootfs"), &cgroup, args)?;
        }
        Ok(bundle)
    }

    fn run(&self, bundle: &Path, name: &str, flags: &[&str]) -> Command {
        let mut command = self.command(&["run", "--bundle"]);
        command.arg(bundle).args(flags).arg(name);
        command
    }

    fn state(&self) -> PathBuf {
        Path::new(RUN).join(&self.name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.state()).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

/// A container's name: of this process's own.
fn name(what: &str) -> String {
    format!("bench-{}-{what}", std::process::id())
}

fn ended(mut command: Command) -> Result<()> {
    let Output { status, stderr, .. } = command.output().with_context(|| format!("execute {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}: {}", String::from_utf8_lossy(&stderr));
    Ok(())
}
