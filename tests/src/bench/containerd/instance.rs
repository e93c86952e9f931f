//! What the process inside does: containerd's life, and orders on it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Containerd, NAMESPACE, Order, cni};
use crate::bench::host::{PATIENCE, SLEEP};
use crate::bench::milliseconds;
use crate::bench::oci;
use crate::bench::pull::peer::first_byte;
use crate::bench::released::Released;
use crate::stack::run;

/// No plugin that a benchmark of containers has no use for, and no directory that is not its own.
const CONFIG: &str = r#"version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.zfs"]
"#;

/// The name of what is prepared to be mounted.
const SNAPSHOT: &str = "prepared";

/// A running containerd.
struct Instance<'a> {
    given: &'a Containerd,
    daemon: Child,
    /// Containers that run; with links or without.
    running: usize,
    network: bool,
}

impl Containerd {
    /// Carries out the orders of standard input, and answers each; at their end nothing runs any more.
    pub fn obey(&self) -> Result<()> {
        let mut instance = Instance::start(self)?;
        let obeyed = instance.obey();
        let ended = instance.end();
        obeyed.and(ended)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }
}

impl<'a> Instance<'a> {
    fn start(given: &'a Containerd) -> Result<Self> {
        let config = given.dir.join("config.toml");
        std::fs::write(&config, CONFIG).context("write containerd's configuration")?;
        let log = std::fs::File::create(given.dir.join("containerd.log")).context("make containerd's log")?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(config).arg("--address").arg(given.socket());
        command.arg("--root").arg(given.dir.join("root")).args(["--state", "/run/containerd"]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let daemon = command.spawn().context("execute containerd")?;
        let mut instance = Self { given, daemon, running: 0, network: false };
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = instance.ctr(&["version"]) {
            let ended = instance.daemon.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < deadline, "containerd does not answer: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let image = given.image.to_string_lossy();
        instance.ctr(&["images", "import", &image])?;
        Ok(instance)
    }

    fn obey(&mut self) -> Result<()> {
        for order in std::io::stdin().lines() {
            let answer = match serde_json::from_str(&order.context("read an order")?)? {
                Order::Fill { count, network } => self.fill(count, network)?,
                Order::Clear => self.clear()?,
                Order::Mount => self.mount()?,
                Order::Pull { image } => self.pull(&image)?,
            };
            println!("{answer}");
        }
        Ok(())
    }

    fn fill(&mut self, count: usize, network: bool) -> Result<f64> {
        self.network = network;
        let memory = oci::resources().memory_limit.unwrap_or_default().to_string();
        for number in self.running..self.running + count {
            let id = id(number);
            let namespace = format!("network:{}", cni::path(&id));
            let mut args = vec!["run", "--detach", "--null-io", "--seccomp", "--memory-limit", &memory];
            if network {
                cni::add(&self.given.dir, &id)?;
                args.extend(["--with-ns", &namespace]);
            }
            args.extend(["docker.io/library/bench:1", &id]);
            args.extend(SLEEP);
            self.ctr(&args)?;
            self.running += 1;
        }
        #[allow(clippy::cast_precision_loss, reason = "a few hundred containers")]
        Ok(count as f64)
    }

    fn clear(&mut self) -> Result<f64> {
        let released = Released::watch()?;
        let begin = Instant::now();
        while self.running > 0 {
            let id = id(self.running - 1);
            self.ctr(&["task", "delete", "--force", &id])?;
            self.ctr(&["container", "delete", &id])?;
            if self.network {
                cni::delete(&self.given.dir, &id)?;
            }
            self.running -= 1;
        }
        released.wait()?;
        Ok(milliseconds(begin.elapsed()))
    }

    /// As `ctr` has a snapshot mounted: it prints the command.
    fn mount(&mut self) -> Result<f64> {
        let parent = self.top_snapshot()?;
        let target = self.given.dir.join("mounted");
        std::fs::create_dir_all(&target).context("make a place for mounts")?;
        let place = target.display().to_string();
        let begin = Instant::now();
        let prepared = self.asked(&["snapshots", "prepare", "--target", &place, SNAPSHOT, &parent])?;
        run(Command::new("sh").args(["-ec", &prepared]))?;
        let taken = begin.elapsed();
        ensure!(target.join("layer-9").exists(), "containerd's root lacks a layer");
        run(Command::new("umount").arg(&target))?;
        self.ctr(&["snapshots", "rm", SNAPSHOT])?;
        Ok(milliseconds(taken))
    }

    /// The snapshot that is nobody's parent.
    fn top_snapshot(&self) -> Result<String> {
        let list = self.asked(&["snapshots", "ls"])?;
        let rows: Vec<Vec<&str>> = list.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let is_parent = |key: &str| rows.iter().any(|row| row.len() == 3 && row[1] == key);
        let top = rows.iter().find(|row| row.last() == Some(&"Committed") && !is_parent(row[0]));
        Ok(top.context("containerd has unpacked no image")?[0].to_owned())
    }

    fn pull(&mut self, image: &str) -> Result<f64> {
        const SCRIPT: &str = r#"
            ctr --address "$1" --namespace "$2" images pull --plain-http "$3" >/dev/null
            exec ctr --address "$1" --namespace "$2" run --rm "$3" pulled"#;
        rustix::fs::sync();
        let mut command = Command::new("sh");
        command.args(["-ec", SCRIPT, "sh"]).arg(self.given.socket()).args([NAMESPACE, image]);
        let taken = first_byte(command)?;
        self.ctr(&["images", "rm", "--sync", image])?;
        let left = self.asked(&["images", "ls", "--quiet"])?;
        ensure!(!left.contains(image), "containerd still has {image}");
        Ok(taken)
    }

    fn end(mut self) -> Result<()> {
        let cleared = self.clear();
        run(Command::new("kill").arg("-TERM").arg(self.daemon.id().to_string()))?;
        self.daemon.wait().context("wait for containerd")?;
        cleared.map(drop)
    }

    fn ctr(&self, args: &[&str]) -> Result<()> {
        self.asked(args).map(drop)
    }

    /// What `ctr` prints.
    fn asked(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.given.socket()).args(["--namespace", NAMESPACE]).args(args);
        run(command.stdin(Stdio::null()))
    }
}

fn id(number: usize) -> String {
    format!("bench-{number}")
}
