//! What a benchmark that was killed has left: the next one removes it.
//!
//! Everything that a benchmark makes outside its own directory is called `nodeless-bench-PID`, after its process.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sandbox::namespace::{Config, NamespaceSandboxes};

use crate::stack::run;

const PREFIX: &str = "nodeless-bench-";

/// Where the run directories of benchmarks are: as on a host, where /run is one too, a file system in memory.
const RUN: &str = "/dev/shm";

/// Where network namespaces have names.
const NETNS: &str = "/run/netns";

/// The name of what this process makes.
pub(super) fn own_name() -> String {
    format!("{PREFIX}{}", std::process::id())
}

/// The run directory of a process's backend.
pub(super) fn run_dir(name: &str) -> PathBuf {
    Path::new(RUN).join(name)
}

/// Removes sandboxes, control groups, directories and network namespaces of benchmarks whose process is no more.
pub(super) async fn remove(shim: &Path) -> Result<()> {
    for name in dead_in(RUN) {
        eprintln!("removing what {name} has left");
        let config = Config {
            run_dir: run_dir(&name),
            shim_program: shim.to_owned(),
            cgroup_parent: name.clone(),
            layer_dirs: Vec::new(),
            pool_size: 0,
            ahead_dir: None,
            limit_writable: false,
        };
        let sandboxes =
            NamespaceSandboxes::open(config).await.with_context(|| format!("open the backend of {name}"))?;
        sandboxes.reset().await.with_context(|| format!("take the backend of {name} down"))?;
        drop(sandboxes);
        std::fs::remove_dir_all(run_dir(&name)).with_context(|| format!("remove the run directory of {name}"))?;
    }
    for name in dead_in(NETNS) {
        run(Command::new("ip").args(["netns", "delete", &name]))?;
    }
    Ok(())
}

/// Names of a directory's entries that a process made which is no more. A directory that cannot be read has none.
fn dead_in(directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| maker(name).is_some_and(|pid| !is_benchmark(pid))).collect()
}

fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// A process of another name that has come by the number since is none.
fn is_benchmark(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == "nodeless-bench")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_the_process_that_made_what_it_names() {
        assert_eq!(maker(&own_name()), Some(std::process::id()));
        assert_eq!(maker("nodeless-bench-12x"), None);
        assert_eq!(maker("nodeless-1"), None);
        assert!(!is_benchmark(u32::MAX));
    }
}
