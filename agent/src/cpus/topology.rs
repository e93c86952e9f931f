//! Which CPUs lie together, and which to take: whole packages, then whole cores, then single ones, those from the cores that are
//! broken into already first; so that what is left stays together, as a kubelet's static policy keeps it. The choice is pure.

use std::collections::BTreeMap;
use std::path::Path;

use super::CpuSet;

/// Package and core of each CPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology(BTreeMap<u32, (u32, u32)>);

impl Topology {
    /// Reads it; a CPU of which nothing is known is a core of its own.
    pub fn read(root: &Path, cpus: &CpuSet) -> Self {
        let number = |cpu: &u32, file: &str| {
            let text = std::fs::read_to_string(root.join(format!("cpu{cpu}/topology/{file}"))).ok()?;
            text.trim().parse::<u32>().ok()
        };
        let place =
            |cpu: &u32| (number(cpu, "physical_package_id").unwrap_or(0), number(cpu, "core_id").unwrap_or(*cpu));
        Self(cpus.iter().map(|cpu| (*cpu, place(cpu))).collect())
    }

    /// `count` of the free ones; `None` when there are fewer.
    pub fn take(&self, free: &CpuSet, count: usize) -> Option<CpuSet> {
        if free.len() < count {
            return None;
        }
        let mut left = free.clone();
        let mut taken = CpuSet::new();
        for of in [package as fn(Place) -> Place, core] {
            for (_, group) in self.whole(&left, of) {
                if taken.len() + group.len() <= count {
                    left.retain(|cpu| !group.contains(cpu));
                    taken.extend(group);
                }
            }
        }
        let mut singles: Vec<(usize, u32)> = Vec::new();
        for (_, group) in groups(&self.0, &left, core) {
            singles.extend(group.iter().map(|cpu| (group.len(), *cpu)));
        }
        singles.sort_unstable();
        taken.extend(singles.into_iter().take(count - taken.len()).map(|(_, cpu)| cpu));
        Some(taken)
    }

    /// The packages, or cores, that are wholly free.
    fn whole(&self, free: &CpuSet, of: fn((u32, u32)) -> (u32, u32)) -> BTreeMap<(u32, u32), CpuSet> {
        let all = groups(&self.0, &self.0.keys().copied().collect(), of);
        let mut groups = groups(&self.0, free, of);
        groups.retain(|place, group| all.get(place) == Some(group));
        groups
    }
}

type Place = (u32, u32);

fn package(place: Place) -> Place {
    (place.0, 0)
}

fn core(place: Place) -> Place {
    place
}

fn groups(
    places: &BTreeMap<u32, (u32, u32)>,
    cpus: &CpuSet,
    of: fn((u32, u32)) -> (u32, u32),
) -> BTreeMap<(u32, u32), CpuSet> {
    let mut groups: BTreeMap<(u32, u32), CpuSet> = BTreeMap::new();
    for cpu in cpus {
        groups.entry(of(places.get(cpu).copied().unwrap_or((0, *cpu)))).or_default().insert(*cpu);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpus::{list, parse};
    use proptest::prelude::*;

    /// Two packages of two cores of two threads; a core's second thread is the CPU four further on.
    fn machine() -> Topology {
        Topology((0..8).map(|cpu| (cpu, (cpu % 4 / 2, cpu % 2))).collect())
    }

    #[test]
    fn what_lies_together_is_taken_together() {
        let take = |free: &str, count| machine().take(&parse(free).unwrap(), count).map(|cpus| list(&cpus));
        assert_eq!(take("0-7", 4).as_deref(), Some("0-1,4-5"), "a package");
        assert_eq!(take("1-7", 4).as_deref(), Some("2-3,6-7"), "the package that is whole");
        assert_eq!(take("0-7", 2).as_deref(), Some("0,4"), "a core");
        assert_eq!(take("0-7", 3).as_deref(), Some("0-1,4"), "a core and a part of the next");
        assert_eq!(take("1-7", 1).as_deref(), Some("4"), "of a core that is broken into");
        assert_eq!(take("1-7", 3).as_deref(), Some("1,4-5"));
        assert_eq!(take("0-1", 3), None);
        assert_eq!(machine().take(&CpuSet::new(), 0), Some(CpuSet::new()));
    }

    proptest! {
        #[test]
        fn exactly_so_many_of_the_free_ones_are_taken(free in proptest::collection::btree_set(0u32..8, 0..8), count in 0usize..9) {
            match machine().take(&free, count) {
                Some(taken) => prop_assert!(taken.len() == count && taken.is_subset(&free)),
                None => prop_assert!(free.len() < count),
            }
        }
    }
}
