//! Whether the host has huge pages at all. One without them has nothing to limit, and a controller costs each group memory.

use std::path::Path;

/// The host has huge pages, or may make some on demand.
pub(super) fn any() -> bool {
    counts(Path::new("/sys/kernel/mm/hugepages")).any(|count| count > 0)
}

/// How many pages the host has of each size, those that it may make on demand included.
fn counts(root: &Path) -> impl Iterator<Item = u64> {
    let sizes = std::fs::read_dir(root).into_iter().flatten().flatten();
    sizes.flat_map(|size| {
        ["nr_hugepages", "nr_overcommit_hugepages"]
            .map(|file| std::fs::read_to_string(size.path().join(file)).ok().and_then(|t| t.trim().parse().ok()))
            .into_iter()
            .flatten()
    })
}
