//! CPUs of a container's own (`--cpu-manager-policy=static`).
//!
//! ```text
//! --reserved-cpus ── Cpus (checked once) ── assign (pure): at admission, for Guaranteed pods with whole CPUs
//!                                             │ written down with the pod, free again when its sandbox is gone
//! board: what pods have ── shared: all but these ──> every other container's cpuset, as it starts and whenever it changes
//! ```
//! As with devices, what is free is no state of its own but follows from the board.

mod assign;
mod topology;

use std::collections::BTreeSet;
use std::path::Path;

pub use assign::assign;
pub use topology::Topology;

/// Numbers of CPUs.
pub type CpuSet = BTreeSet<u32>;

/// More CPUs than any kernel knows.
const MOST: u32 = 8192;

/// The host's CPUs, where some may be given to one container alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpus {
    all: CpuSet,
    reserved: CpuSet,
    topology: Topology,
}

/// Why CPUs cannot be given out.
#[derive(Debug, thiserror::Error)]
pub enum CpusError {
    /// The kernel does not say which there are.
    #[error("could not read which CPUs are online from {path:?}")]
    Online {
        /// Where.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is reserved is not there.
    #[error("--reserved-cpus {reserved} names CPUs that are not online: {online} are")]
    NotOnline {
        /// As given.
        reserved: String,
        /// What is there.
        online: String,
    },
    /// Nothing would be left.
    #[error(
        "--reserved-cpus {reserved} leaves no CPU to give out: reserve fewer, or leave --cpu-manager-policy at none"
    )]
    NothingLeft {
        /// As given.
        reserved: String,
    },
}

impl Cpus {
    /// Reads what is there; `root` is /sys/devices/system/cpu.
    pub fn read(root: &Path, reserved: CpuSet) -> Result<Self, CpusError> {
        let path = root.join("online");
        let failed = |source| CpusError::Online { path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        let all = parse(text.trim()).ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))?;
        if !reserved.is_subset(&all) {
            return Err(CpusError::NotOnline { reserved: list(&reserved), online: list(&all) });
        }
        if reserved == all {
            return Err(CpusError::NothingLeft { reserved: list(&reserved) });
        }
        let topology = Topology::read(root, &all);
        Ok(Self { all, reserved, topology })
    }

    /// How many may be given out.
    pub fn count(&self) -> usize {
        self.all.len() - self.reserved.len()
    }

    /// Where a container runs that has none of its own, while others have `taken`.
    pub fn shared(&self, taken: &CpuSet) -> CpuSet {
        self.all.difference(taken).copied().collect()
    }

    /// What may be given out beside `taken`.
    fn free(&self, taken: &CpuSet) -> CpuSet {
        self.shared(taken).difference(&self.reserved).copied().collect()
    }
}

/// Reads a list as the kernel writes it: `0-2,5`. `None` for anything else, and for nothing.
pub fn parse(text: &str) -> Option<CpuSet> {
    let mut cpus = CpuSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number =
            |text: &str| text.parse::<u32>().ok().filter(|n| *n < MOST && text.bytes().all(|b| b.is_ascii_digit()));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// As the kernel writes it.
pub fn list(cpus: &CpuSet) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for cpu in cpus {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => runs.push((*cpu, *cpu)),
        }
    }
    let one = |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.iter().map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(online: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("online"), format!("{online}\n")).unwrap();
        dir
    }

    #[test]
    fn reserved_cpus_are_the_hosts_and_not_all_of_them() {
        let dir = host("0-3");
        let read = |reserved: &str| Cpus::read(dir.path(), parse(reserved).unwrap());
        let cpus = read("0").unwrap();
        assert_eq!(
            (cpus.count(), list(&cpus.free(&[2].into())), list(&cpus.shared(&[2].into()))),
            (3, "1,3".into(), "0-1,3".into())
        );
        assert!(read("4").unwrap_err().to_string().contains("not online: 0-3 are"));
        assert!(read("0-3").unwrap_err().to_string().contains("leaves no CPU"));
        assert!(Cpus::read(Path::new("/does/not/exist"), CpuSet::new()).is_err());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["", "a", "1-", "-1", "2-1", "1,,2", "1 2", "+1", "99999", "0-4294967295"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(list(&parse("5,0-2,2").unwrap()), "0-2,5");
    }

    proptest! {
        #[test]
        fn a_list_is_read_as_it_was_written(cpus in proptest::collection::btree_set(0u32..200, 1..20)) {
            prop_assert_eq!(parse(&list(&cpus)), Some(cpus));
        }
    }
}
