//! What a pod takes on disk, by container and volume. Blocking.

use std::collections::BTreeMap;
use std::io;

use k8s_openapi::api::core::v1::PodSpec;

use super::walk;
use crate::pod::volumes::PodDirs;

/// Bytes on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Each container's changes to its root, and its logs.
    pub containers: BTreeMap<String, u64>,
    /// Each emptyDir on disk.
    pub empty_dirs: BTreeMap<String, u64>,
    /// The files of other volumes and of `/etc`, and termination messages.
    pub other: u64,
}

impl Usage {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.containers.values().chain(self.empty_dirs.values()).fold(self.other, |sum, one| sum.saturating_add(*one))
    }
}

/// Looks at everything that a pod has on disk. `written`: what containers have in roots whose files are in no directory of ours,
/// some of it perhaps not on the disk yet.
pub fn measure(spec: &PodSpec, dirs: &PodDirs, written: &BTreeMap<String, u64>) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let all = spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| &container.name);
    let added = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
    for name in all.chain(added) {
        let logs = walk::bytes(&dirs.logs().join(name))?;
        usage.containers.insert(name.clone(), logs);
    }
    let mut roots = BTreeMap::<String, u64>::new();
    for (name, path) in children(&dirs.disk.join("writable"))? {
        let owner = name.rsplit_once('-').map_or("", |(owner, _)| owner).to_owned();
        let bytes = walk::bytes(&path)?.saturating_sub(sandbox::namespace::overhead_bytes(&path)?);
        let sum = roots.entry(owner).or_default();
        *sum = sum.saturating_add(bytes);
    }
    for (owner, on_disk) in roots {
        let bytes = on_disk.max(written.get(&owner).copied().unwrap_or(0));
        match usage.containers.get_mut(&owner) {
            Some(sum) => *sum = sum.saturating_add(bytes),
            None => usage.other = usage.other.saturating_add(bytes),
        }
    }
    let volumes = spec.volumes.iter().flatten();
    let empty: Vec<&str> = volumes.filter(|volume| volume.empty_dir.is_some()).map(|v| v.name.as_str()).collect();
    for (name, path) in children(&dirs.disk.join("volumes"))? {
        let bytes = walk::bytes(&path)?;
        if empty.contains(&name.as_str()) {
            usage.empty_dirs.insert(name, bytes);
        } else {
            usage.other = usage.other.saturating_add(bytes);
        }
    }
    for name in ["etc", "containers"] {
        usage.other = usage.other.saturating_add(walk::bytes(&dirs.disk.join(name))?);
    }
    Ok(usage)
}

/// Names and paths of what is in one of our own directories.
fn children(path: &std::path::Path) -> io::Result<Vec<(String, std::path::PathBuf)>> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn changes_logs_and_volumes_are_counted_for_whom_they_belong_to() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = PodDirs::new(&dir.path().join("state"), &dir.path().join("run"), "u");
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "containers": [{"name": "a"}, {"name": "a-1"}],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "c"}}]
        }))
        .unwrap();
        let measure = |written: &[(&str, u64)]| {
            let written = written.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
            measure(&spec, &dirs, &written).unwrap()
        };
        assert_eq!(measure(&[("a", 1)]).total(), 0, "a root that is not there");
        let put = |path: std::path::PathBuf, kib: usize| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![1; kib << 10]).unwrap();
        };
        put(dirs.writable("a", 0).join("upper/x"), 100);
        put(dirs.writable("a-1", 12).join("upper/x"), 200);
        put(dirs.logs().join("a/0.log"), 300);
        put(dirs.disk.join("volumes/e/x"), 400);
        put(dirs.disk.join("volumes/c/x"), 500);
        let usage = measure(&[]);
        let about = |bytes: u64, kib: u64| ((kib << 10)..((kib + 40) << 10)).contains(&bytes);
        assert!(about(usage.containers["a"], 400), "{usage:?}");
        assert!(about(usage.containers["a-1"], 200), "{usage:?}");
        assert!(about(usage.empty_dirs["e"], 400), "{usage:?}");
        assert!(about(usage.other, 500), "{usage:?}");
        assert!(about(usage.total(), 1500), "{usage:?}");
        // A root in a file system of its own: what that took when it was empty is not its container's.
        put(dirs.writable("a", 1).join("65536.ext4"), 164);
        assert!(about(measure(&[]).containers["a"], 500), "{usage:?}");
        // What is not on the disk yet counts, and nothing twice.
        assert!(about(measure(&[("a", 300 << 10)]).containers["a"], 600), "{usage:?}");
        assert!(about(measure(&[("a", 150 << 10)]).containers["a"], 500), "{usage:?}");
    }
}
