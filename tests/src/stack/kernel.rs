//! What the kernel knows of the stack's sandboxes: their control groups and the processes in them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Stack;

/// The leaf of a sandbox's control group that its shim is in, on cgroup v2; on v1 it is in the group itself.
const SHIM_LEAF: &str = "shim";

/// The group in a sandbox's control group that its containers' leaves are in, on cgroup v2.
const CONTAINERS: &str = "containers";

/// How the command line of a shim, and of each stub that it has forked, begins.
const STUB: &[u8] = b"nodeless-shim\0shim\0";

impl Stack {
    /// Where sandboxes are while they are held: one directory each, named as in the bill.
    pub fn sandboxes(&self) -> PathBuf {
        self.dir.join("agent-run/sandboxes")
    }

    /// The control group of a sandbox; none when there is no such sandbox (any more).
    pub fn cgroup(&self, sandbox: &str) -> Option<PathBuf> {
        cgroup_of(&self.cgroup_parent(), &self.sandboxes().join(sandbox))
    }

    /// The control group (of the unified hierarchy) that all sandboxes are in.
    pub fn cgroup_parent(&self) -> PathBuf {
        let unified = Path::new("/sys/fs/cgroup/unified");
        let root = if unified.is_dir() { unified } else { Path::new("/sys/fs/cgroup") };
        root.join(&self.netns)
    }

    /// The process id of a sandbox's shim.
    pub fn shim(&self, sandbox: &str) -> Option<u32> {
        let pod = self.cgroup(sandbox)?;
        let group = [pod.join(SHIM_LEAF), pod].into_iter().find(|group| group.is_dir())?;
        let procs = std::fs::read_to_string(group.join("cgroup.procs")).ok()?;
        procs.lines().find_map(|pid| pid.parse().ok())
    }

    /// The process id of the keeper.
    pub fn keeper(&self) -> Option<u32> {
        let run_dir = self.dir.join("agent-run");
        let words = ["nodeless-shim keeper --run-dir", run_dir.to_str()?];
        // Its own children (who makes namespaces, a shim at its beginning) look like it.
        let found = processes_with(&words).ok()?;
        found.iter().copied().find(|pid| parent(*pid).is_none_or(|parent| !found.contains(&parent)))
    }
}

/// The control group of the sandbox whose directory this is.
pub fn cgroup_of(parent: &Path, sandbox: &Path) -> Option<PathBuf> {
    let text = std::fs::read(sandbox.join("slot.json")).ok()?;
    let slot: Value = serde_json::from_slice(&text).ok()?;
    Some(parent.join(slot["name"].as_str()?))
}

/// Whether a container's process is in a sandbox's control group. A stub that stands by there, or is on its way to becoming
/// a container's process, is none yet: its command line is still its shim's.
pub fn has_container_processes(cgroup: &Path) -> bool {
    // On v2 they are in a group of the containers'.
    let groups = [cgroup.join(CONTAINERS), cgroup.to_owned()];
    let leaves = groups.iter().filter_map(|group| std::fs::read_dir(group).ok()).flatten();
    leaves.flatten().filter(|leaf| leaf.file_name() != SHIM_LEAF).any(|leaf| {
        let members = std::fs::read_to_string(leaf.path().join("cgroup.procs")).unwrap_or_default();
        members.lines().any(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            !command.is_empty() && !command.starts_with(STUB)
        })
    })
}

/// Pids of the processes whose command line holds all of these words.
pub fn processes_with(words: &[&str]) -> Result<Vec<u32>> {
    let mut found = vec![];
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if words.iter().all(|word| line.contains(word)) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// SIGKILL to a process that the stack is known to have.
pub fn kill(pid: u32) -> Result<()> {
    let status = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().context("run kill")?;
    ensure!(status.success(), "kill {pid}: {status}");
    Ok(())
}
