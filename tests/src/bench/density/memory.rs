//! `/proc/meminfo` as a measure.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::stack::run;

/// How much `MemAvailable` may change in [`LOOK`] on a machine that rests.
const STILL_KIB: i64 = 512;
const LOOK: Duration = Duration::from_secs(1);

/// A machine that does not come to rest by then is measured as it is.
const LONGEST: Duration = Duration::from_secs(20);

/// What makes up a difference, for those who want to make it smaller.
const PARTS: [&str; 9] = [
    "AnonPages",
    "Cached",
    "Shmem",
    "SReclaimable",
    "SUnreclaim",
    "KernelStack",
    "PageTables",
    "Percpu",
    "SecPageTables",
];

/// The kinds of kernel objects that are told, those that grew most.
const KINDS: usize = 12;

/// Before the name of a kind of kernel objects.
const SLAB: &str = "slab ";

/// The machine's memory at one time, or a difference, in KiB by name.
#[derive(Debug)]
pub(super) struct Memory(BTreeMap<String, i64>);

impl Memory {
    /// What is to be written is written; then when free memory does not change any more.
    pub(super) fn at_rest() -> Result<Self> {
        run(&mut Command::new("sync"))?;
        let begin = Instant::now();
        let mut last = Self::now()?;
        loop {
            std::thread::sleep(LOOK);
            let now = Self::now()?;
            let change = (now.of("MemAvailable") - last.of("MemAvailable")).abs();
            if change <= STILL_KIB {
                return Ok(now);
            }
            if begin.elapsed() > LONGEST {
                eprintln!("density: the machine does not rest: free memory changes by {change} KiB a second");
                return Ok(now);
            }
            last = now;
        }
    }

    fn now() -> Result<Self> {
        let mut now = parsed(&std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?);
        now.0.extend(slabs(&std::fs::read_to_string("/proc/slabinfo").context("read /proc/slabinfo")?));
        Ok(now)
    }

    /// How all has grown (`MemAvailable`: shrunk).
    pub(super) fn since(&self, before: &Self) -> Self {
        let grown = |(name, now): (&String, &i64)| (name.clone(), now - before.of(name));
        Self(self.0.iter().map(grown).collect())
    }

    /// MiB for each of so many; says on standard error of what they are made.
    pub(super) fn tell(&self, whose: &str, count: usize) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "KiB of a machine's memory")]
        let each = |kib: i64| kib as f64 / count.max(1) as f64;
        let mut kinds: Vec<&str> = self.0.keys().filter(|name| name.starts_with(SLAB)).map(String::as_str).collect();
        kinds.sort_by_key(|kind| std::cmp::Reverse(self.of(kind)));
        let parts = PARTS.iter().chain(kinds.iter().take(KINDS));
        let parts: Vec<String> = parts.map(|part| format!("{part} {:.0}", each(self.of(part)))).collect();
        eprintln!(
            "density: {count} of {whose}, KiB for each: {:.0}: {}",
            -each(self.of("MemAvailable")),
            parts.join(", ")
        );
        -each(self.of("MemAvailable")) / 1024.0
    }

    fn of(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or_default()
    }
}

fn parsed(meminfo: &str) -> Memory {
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        Some((name.to_owned(), rest.split_whitespace().next()?.parse().ok()?))
    };
    Memory(meminfo.lines().filter_map(line).collect())
}

/// KiB that each kind of kernel objects takes, free ones on pages in use counted.
fn slabs(slabinfo: &str) -> impl Iterator<Item = (String, i64)> {
    slabinfo.lines().skip(2).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        let mut numbers = fields.skip(1).map(str::parse::<i64>);
        let (objects, size) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some((format!("{SLAB}{name}"), objects * size / 1024))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_objects_are_told_by_kind_in_kib() {
        let text = "slabinfo - version: 2.1\n# name <active_objs>\nnet_namespace 35 56 4096 7 8 : tunables 0 0 0\n";
        assert_eq!(slabs(text).collect::<Vec<_>>(), [("slab net_namespace".to_owned(), 224)]);
    }

    #[test]
    fn what_each_costs_is_what_became_unavailable() {
        let before = parsed("MemAvailable:    4096 kB\nSUnreclaim: 100 kB\n");
        let after = parsed("MemAvailable:    2048 kB\nSUnreclaim: 300 kB\n");
        let grown = after.since(&before);
        assert_eq!(grown.of("SUnreclaim"), 200);
        assert!((grown.tell("tests", 2) - 1.0).abs() < 1e-9);
    }
}
