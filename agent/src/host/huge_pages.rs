//! The huge pages that the host has set aside.
//!
//! ```text
//! /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages               made, used or not
//!                                           nr_overcommit_hugepages    more that the kernel may make on demand
//! ```
//! Only the former are something to count on; as a kubelet does, they are told to the scheduler and taken off the memory.

use std::io;
use std::path::{Path, PathBuf};

use crate::pod::spec::scalars::{Scalars, page_name};

/// Where the kernel tells of them.
pub const ROOT: &str = "/sys/kernel/mm/hugepages";

/// The pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pool {
    /// Bytes of one page.
    pub size: u64,
    /// Pages that are there.
    pub pages: u64,
    /// Pages that may be made beyond them.
    pub on_demand: u64,
}

/// Why they are not known.
#[derive(Debug, thiserror::Error)]
#[error("could not read {path:?}")]
pub struct HugePagesError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads every size that the kernel knows, the smallest first; none on a kernel without huge pages.
pub fn read(root: &Path) -> Result<Vec<Pool>, HugePagesError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| HugePagesError { path, source }
    };
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed(root))?,
    };
    let mut pools = Vec::new();
    for entry in entries {
        let dir = entry.map_err(failed(root))?.path();
        let Some(size) = dir.file_name().and_then(|name| name.to_str()).and_then(size_of) else { continue };
        let count = |file: &str| {
            let path = dir.join(file);
            let text = std::fs::read_to_string(&path).map_err(failed(&path))?;
            text.trim().parse::<u64>().map_err(|error| failed(&path)(io::Error::other(error)))
        };
        pools.push(Pool { size, pages: count("nr_hugepages")?, on_demand: count("nr_overcommit_hugepages")? });
    }
    pools.sort_unstable();
    Ok(pools)
}

/// From `hugepages-2048kB`.
fn size_of(directory: &str) -> Option<u64> {
    let kib: u64 = directory.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    kib.checked_mul(1024).filter(|size| *size > 0)
}

/// What pods may have of them, under Kubernetes' names; sizes of which there is none are named too.
pub fn capacity(pools: &[Pool]) -> Scalars {
    pools.iter().map(|pool| (page_name(pool.size), pool.size.saturating_mul(pool.pages))).collect()
}

/// Bytes that are no ordinary memory any more.
pub fn set_aside(pools: &[Pool]) -> u64 {
    pools.iter().fold(0, |sum: u64, pool| sum.saturating_add(pool.size.saturating_mul(pool.pages)))
}

/// The sizes that a pod's control groups limit: all, once there can be a page of any; none of what nobody can have.
pub fn limited(pools: &[Pool]) -> Vec<u64> {
    let any = pools.iter().any(|pool| pool.pages > 0 || pool.on_demand > 0);
    if any { pools.iter().map(|pool| pool.size).collect() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(sizes: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, pages, on_demand) in sizes {
            let size = dir.path().join(name);
            std::fs::create_dir(&size).unwrap();
            std::fs::write(size.join("nr_hugepages"), pages).unwrap();
            std::fs::write(size.join("nr_overcommit_hugepages"), on_demand).unwrap();
        }
        dir
    }

    #[test]
    fn every_size_is_told_and_what_is_set_aside_is_no_memory() {
        let dir = host(&[("hugepages-1048576kB", "0\n", "0\n"), ("hugepages-2048kB", "512\n", "0\n")]);
        let pools = read(dir.path()).unwrap();
        let told = capacity(&pools);
        assert_eq!(told, [("hugepages-1Gi".to_owned(), 0), ("hugepages-2Mi".to_owned(), 1 << 30)].into());
        assert_eq!(set_aside(&pools), 1 << 30);
        assert_eq!(limited(&pools), [2 << 20, 1 << 30]);
    }

    #[test]
    fn where_nobody_can_have_a_page_nothing_is_limited() {
        let dir = host(&[("hugepages-2048kB", "0\n", "0\n")]);
        assert!(limited(&read(dir.path()).unwrap()).is_empty());
        let dir = host(&[("hugepages-2048kB", "0\n", "4\n")]);
        assert_eq!(limited(&read(dir.path()).unwrap()), [2 << 20]);
    }

    #[test]
    fn a_kernel_without_huge_pages_is_not_one_that_could_not_be_asked() {
        assert_eq!(read(Path::new("/does/not/exist")).unwrap(), []);
        let dir = host(&[("hugepages-2048kB", "many\n", "0\n")]);
        assert!(read(dir.path()).unwrap_err().to_string().contains("hugepages-2048kB/nr_hugepages"));
        assert!(read(Path::new(ROOT)).is_ok());
    }
}
