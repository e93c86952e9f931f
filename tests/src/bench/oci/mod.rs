//! The peers' side: crun and runc on OCI bundles that ask of them what our default profile does.
//!
//! [`Runner`] is this side of a process that works with one peer when told ([`Peer::obey`]).

mod peer;
mod runner;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sandbox::spec::{DEFAULT_CAPABILITIES, DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS, Resources};
use serde_json::{Value, json};

pub(super) use runner::{Order, Runner, this_program};

/// A container's program that writes a byte.
pub(super) const ECHO: [&str; 2] = ["/bin/echo", "x"];

/// A program that ends at once.
pub(super) const TRUE: [&str; 1] = ["/bin/true"];

/// Host id of the container's root in the peers' user namespaces.
pub const UID_BASE: u32 = 1 << 28;
const IDS: u32 = 1 << 16;

/// An OCI runtime with a place for its bundles.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The figure's `peer`.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Directory with the root file system as `rootfs`, owned by [`UID_BASE`].
    pub dir: PathBuf,
}

/// Limits of the sandbox, the same for all.
pub fn resources() -> Resources {
    Resources {
        cpu_shares: Some(128),
        cpu_quota_us: Some(100_000),
        cpu_period_us: Some(100_000),
        memory_limit: Some(64 << 20),
        pids_limit: Some(1024),
        ..Resources::default()
    }
}

/// Writes `config.json` of a bundle.
fn write_config(bundle: &Path, rootfs: &Path, cgroup: &str, args: &[&str]) -> Result<()> {
    let text = serde_json::to_vec_pretty(&config(rootfs, cgroup, args))?;
    std::fs::write(bundle.join("config.json"), text).with_context(|| format!("write a bundle in {}", bundle.display()))
}

fn config(rootfs: &Path, cgroup: &str, args: &[&str]) -> Value {
    let capabilities = json!(DEFAULT_CAPABILITIES);
    let ids = json!([{"containerID": 0, "hostID": UID_BASE, "size": IDS}]);
    let limits = resources();
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "user"].map(|kind| json!({"type": kind}));
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": false,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}],
        },
        "root": {"path": rootfs, "readonly": false},
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
