//! The peers' side: an OCI bundle that asks of crun or runc what our default profile does, and how long `run` takes on it.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sandbox::spec::{DEFAULT_CAPABILITIES, DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS, Resources};
use serde_json::{Value, json};

use super::milliseconds;

/// The container's program, the same for all.
pub const ARGS: [&str; 2] = ["/bin/echo", "x"];

/// Host id of the container's root in the peers' user namespaces.
pub const UID_BASE: u32 = 1 << 28;
const IDS: u32 = 1 << 16;

/// An OCI runtime with its bundle.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The figure's `peer`.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Directory with `config.json` and the root file system.
    pub bundle: PathBuf,
}

/// A process in a mount namespace of its own that launches when told: Debian's crun refuses hosts with a v2 mount beside v1
/// hierarchies, so that mount is taken out of its sight, once and not in the time that is measured.
pub(super) struct Runner {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Runner {
    pub(super) fn start(peer: &Peer) -> Result<Self> {
        const HIDDEN: &str = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
        let this = std::env::current_exe().context("find this program")?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", HIDDEN, "sh"]).arg(this).arg("launch-peer");
        command.arg("--peer").arg(format!("{}={}={}", peer.name, peer.program.display(), peer.bundle.display()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("execute unshare")?;
        let answers = child.stdout.take().context("a pipe was asked for")?;
        Ok(Self { orders: child.stdin.take(), child, answers: BufReader::new(answers).lines() })
    }

    /// One launch, in milliseconds.
    pub(super) fn launch(&mut self) -> Result<f64> {
        let orders = self.orders.as_mut().context("a pipe was asked for")?;
        orders.write_all(b"\n").context("order a launch")?;
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

impl Peer {
    /// Launches once for each line of standard input and answers with milliseconds.
    pub fn obey(&self) -> Result<()> {
        for (number, order) in std::io::stdin().lines().enumerate() {
            order.context("read an order")?;
            println!("{}", self.launch(number)?);
        }
        Ok(())
    }

    fn launch(&self, number: usize) -> Result<f64> {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.bundle.join("state")).args(["run", "--bundle"]).arg(&self.bundle);
        command.arg(format!("bench-{}-{number}", std::process::id()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
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
}

/// Limits of the sandbox, the same for all.
pub fn resources() -> Resources {
    Resources {
        cpu_shares: Some(128),
        cpu_quota_us: Some(100_000),
        cpu_period_us: Some(100_000),
        memory_limit: Some(64 << 20),
        pids_limit: Some(1024),
        oom_score_adj: None,
    }
}

/// Writes `config.json` of a bundle whose root file system lies beside it as `rootfs`.
pub fn write_config(bundle: &Path, cgroup: &str) -> Result<()> {
    let text = serde_json::to_vec_pretty(&config(cgroup))?;
    std::fs::write(bundle.join("config.json"), text).with_context(|| format!("write a bundle in {}", bundle.display()))
}

fn config(cgroup: &str) -> Value {
    let capabilities = json!(DEFAULT_CAPABILITIES);
    let ids = json!([{"containerID": 0, "hostID": UID_BASE, "size": IDS}]);
    let limits = resources();
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "user"].map(|kind| json!({"type": kind}));
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ARGS, "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": false,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}],
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "uidMappings": ids, "gidMappings": ids,
            "namespaces": namespaces,
            "maskedPaths": DEFAULT_MASKED_PATHS, "readonlyPaths": DEFAULT_READONLY_PATHS,
            "resources": {
                "cpu": {"shares": limits.cpu_shares, "quota": limits.cpu_quota_us, "period": limits.cpu_period_us},
                "memory": {"limit": limits.memory_limit}, "pids": {"limit": limits.pids_limit},
                "devices": [{"allow": false, "access": "rwm"}],
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
                "syscalls": [
                    {"names": sandbox::seccomp::allowed(), "action": "SCMP_ACT_ALLOW"},
                    {"names": ["clone", "socket", "socketpair", "personality"], "action": "SCMP_ACT_ALLOW"},
                ],
            },
        },
    })
}
