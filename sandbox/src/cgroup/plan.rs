//! From limits to writes of control files: pure.

use std::borrow::Cow;

use super::{CgroupError, Controller};
use crate::spec::Resources;

/// The kernel's smallest quota, in microseconds.
const SMALLEST_QUOTA_US: u64 = 1_000;
/// The period when none is given, in microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;
/// The weight of a cgroup that nobody set, as v1 shares.
const DEFAULT_SHARES: u64 = 1_024;

/// One step of applying limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write a value to a file of a controller.
    Set {
        /// Whose file.
        controller: Controller,
        /// Its name.
        file: Cow<'static, str>,
        /// What to write.
        value: String,
        /// A kernel built without the file is no failure.
        optional: bool,
    },
    /// v1: set the memory limit and the limit of memory and swap together, in whichever order the kernel accepts
    /// (each must stay at least the other while they change). `None`: unlimited.
    MemoryWithSwap {
        /// Bytes.
        limit: Option<u64>,
    },
}

fn set(controller: Controller, file: impl Into<Cow<'static, str>>, value: impl ToString) -> Step {
    Step::Set { controller, file: file.into(), value: value.to_string(), optional: false }
}

/// As [`set`], for what is a preference, or what a kernel may have been built without.
fn wish(controller: Controller, file: impl Into<Cow<'static, str>>, value: impl ToString) -> Step {
    Step::Set { controller, file: file.into(), value: value.to_string(), optional: true }
}

/// v1 shares as a v2 weight (1 to 10000). The curve is the one that runc 1.3.2, crun 1.23 and later use: it meets
/// both ends and maps the default (1024) to the default (100), which the older straight line did not.
pub fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // Rounding errors at the fixed points (1024 -> 100) must not tip the ceiling over.
    let weight = (10f64.powf(exponent) - 1e-9).ceil() as u64;
    weight.clamp(1, 10_000)
}

fn shares(resources: &Resources) -> Result<Option<u64>, CgroupError> {
    match resources.cpu_shares {
        Some(value) if !(2..=262_144).contains(&value) => {
            Err(CgroupError::OutOfRange { what: "cpu shares", value, allowed: "2 to 262144" })
        }
        other => Ok(other),
    }
}

fn period(resources: &Resources) -> Result<u64, CgroupError> {
    let value = resources.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US);
    if (1_000..=1_000_000).contains(&value) {
        Ok(value)
    } else {
        Err(CgroupError::OutOfRange { what: "cpu period", value, allowed: "1000 to 1000000 microseconds" })
    }
}

/// A quota below the kernel's smallest is raised to it, as the kubelet does.
fn quota(resources: &Resources) -> Option<u64> {
    resources.cpu_quota_us.map(|value| value.max(SMALLEST_QUOTA_US))
}

/// The steps for a v1 host. `fresh`: nothing was set before, so absent limits need no step.
pub fn v1(resources: &Resources, fresh: bool) -> Result<Vec<Step>, CgroupError> {
    let mut steps = Vec::with_capacity(5);
    match shares(resources)? {
        Some(value) => steps.push(set(Controller::Cpu, "cpu.shares", value)),
        None if !fresh => steps.push(set(Controller::Cpu, "cpu.shares", DEFAULT_SHARES)),
        None => {}
    }
    let period = period(resources)?;
    match quota(resources) {
        Some(value) => {
            // A fresh cgroup has the default period already.
            if !fresh || period != DEFAULT_PERIOD_US {
                steps.push(set(Controller::Cpu, "cpu.cfs_period_us", period));
            }
            steps.push(set(Controller::Cpu, "cpu.cfs_quota_us", value));
        }
        None if !fresh => steps.push(set(Controller::Cpu, "cpu.cfs_quota_us", -1)),
        None => {}
    }
    if resources.memory_limit.is_some() || !fresh {
        steps.push(Step::MemoryWithSwap { limit: resources.memory_limit });
    }
    pids(resources, fresh, &mut steps);
    huge_pages(resources, &mut steps);
    cpus(resources, fresh, &mut steps);
    Ok(steps)
}

/// The steps for a v2 host.
pub fn v2(resources: &Resources, fresh: bool) -> Result<Vec<Step>, CgroupError> {
    let mut steps = Vec::with_capacity(6);
    match shares(resources)? {
        Some(value) => steps.push(set(Controller::Cpu, "cpu.weight", weight_of_shares(value))),
        None if !fresh => steps.push(set(Controller::Cpu, "cpu.weight", weight_of_shares(DEFAULT_SHARES))),
        None => {}
    }
    let period = period(resources)?;
    match quota(resources) {
        Some(value) => steps.push(set(Controller::Cpu, "cpu.max", format!("{value} {period}"))),
        None if !fresh => steps.push(set(Controller::Cpu, "cpu.max", format!("max {period}"))),
        None => {}
    }
    if fresh {
        steps.push(wish(Controller::Memory, "memory.swap.max", 0));
    }
    for (file, value, none) in [
        ("memory.min", resources.memory_min, "0"),
        ("memory.low", resources.memory_low, "0"),
        ("memory.high", resources.memory_high, "max"),
    ] {
        match value {
            Some(bytes) => steps.push(wish(Controller::Memory, file, bytes)),
            None if !fresh => steps.push(wish(Controller::Memory, file, none)),
            None => {}
        }
    }
    if let Some(limit) = resources.memory_limit {
        steps.push(set(Controller::Memory, "memory.max", limit));
    } else if !fresh {
        steps.push(set(Controller::Memory, "memory.max", "max"));
    }
    pids(resources, fresh, &mut steps);
    huge_pages(resources, &mut steps);
    cpus(resources, fresh, &mut steps);
    Ok(steps)
}

/// Both what is used and what is reserved by a mapping, so that a mapping that is too large is refused when it is made and
/// does not end in a signal later. (cgroup v1's files end in `limit_in_bytes` instead.) Nothing at all is had anyway where
/// nobody counts.
fn huge_pages(resources: &Resources, steps: &mut Vec<Step>) {
    for (size, bytes) in &resources.hugepages {
        let file = format!("hugetlb.{size}.max");
        steps.push(if *bytes > 0 { set(Controller::Hugetlb, file, bytes) } else { wish(Controller::Hugetlb, file, 0) });
        steps.push(wish(Controller::Hugetlb, format!("hugetlb.{size}.rsvd.max"), bytes));
    }
}

/// A container that was made before CPUs were given out stays where it is.
fn cpus(resources: &Resources, fresh: bool, steps: &mut Vec<Step>) {
    if let Some(list) = &resources.cpuset {
        steps.push(match fresh {
            true => set(Controller::Cpuset, "cpuset.cpus", list),
            false => wish(Controller::Cpuset, "cpuset.cpus", list),
        });
    }
}

fn pids(resources: &Resources, fresh: bool, steps: &mut Vec<Step>) {
    match resources.pids_limit {
        Some(value) => steps.push(set(Controller::Pids, "pids.max", value)),
        None if !fresh => steps.push(set(Controller::Pids, "pids.max", "max")),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn everything() -> Resources {
        Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            cpu_period_us: None,
            memory_limit: Some(64 << 20),
            pids_limit: Some(100),
            oom_score_adj: None,
            ..Resources::default()
        }
    }

    #[test]
    fn no_limits_on_a_fresh_cgroup_need_no_writes_but_that_nothing_is_swapped() {
        assert_eq!(v1(&Resources::default(), true).unwrap(), []);
        assert_eq!(v2(&Resources::default(), true).unwrap(), [wish(Controller::Memory, "memory.swap.max", 0)]);
    }

    #[test]
    fn v1_writes_shares_quota_memory_and_pids() {
        assert_eq!(
            v1(&everything(), true).unwrap(),
            [
                set(Controller::Cpu, "cpu.shares", 1024),
                set(Controller::Cpu, "cpu.cfs_quota_us", 50_000),
                Step::MemoryWithSwap { limit: Some(64 << 20) },
                set(Controller::Pids, "pids.max", 100),
            ]
        );
    }

    #[test]
    fn v2_writes_weight_max_swap_off_and_protection_before_the_limit() {
        let protected = Resources {
            memory_low: Some(32 << 20),
            memory_high: Some(60 << 20),
            hugepages: [("2MB".to_owned(), 4 << 20)].into(),
            ..everything()
        };
        assert_eq!(
            written(v2(&protected, true).unwrap()),
            [
                "cpu.weight=100",
                "cpu.max=50000 100000",
                "memory.swap.max=0",
                "memory.low=33554432",
                "memory.high=62914560",
                "memory.max=67108864",
                "pids.max=100",
                "hugetlb.2MB.max=4194304",
                "hugetlb.2MB.rsvd.max=4194304",
            ]
        );
    }

    fn written(steps: Vec<Step>) -> Vec<String> {
        let line = |step| match step {
            Step::Set { file, value, .. } => format!("{file}={value}"),
            Step::MemoryWithSwap { .. } => panic!("a v1 step on v2"),
        };
        steps.into_iter().map(line).collect()
    }

    #[test]
    fn cpus_are_the_same_on_both_and_needed_only_by_what_is_new() {
        let pinned = Resources { cpuset: Some("1-2".to_owned()), ..Resources::default() };
        for plan in [v1, v2] {
            assert!(plan(&pinned, true).unwrap().contains(&set(Controller::Cpuset, "cpuset.cpus", "1-2")));
            assert!(plan(&pinned, false).unwrap().contains(&wish(Controller::Cpuset, "cpuset.cpus", "1-2")));
            let untold = plan(&Resources::default(), false).unwrap();
            assert!(!untold.iter().any(|step| matches!(step, Step::Set { controller: Controller::Cpuset, .. })));
        }
    }

    #[test]
    fn an_update_takes_protection_back() {
        let lines = written(v2(&Resources::default(), false).unwrap());
        for line in ["memory.min=0", "memory.low=0", "memory.high=max"] {
            assert!(lines.contains(&line.to_owned()), "{line} in {lines:?}");
        }
    }

    #[test]
    fn an_update_resets_what_is_no_longer_limited() {
        let steps = v1(&Resources::default(), false).unwrap();
        assert!(steps.contains(&set(Controller::Cpu, "cpu.cfs_quota_us", -1)));
        assert!(steps.contains(&Step::MemoryWithSwap { limit: None }));
        assert!(steps.contains(&set(Controller::Pids, "pids.max", "max")));
        let steps = v2(&Resources::default(), false).unwrap();
        assert!(steps.contains(&set(Controller::Memory, "memory.max", "max")));
        assert!(steps.contains(&set(Controller::Cpu, "cpu.max", "max 100000")));
    }

    #[test]
    fn weights_meet_both_ends_and_the_default() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000), (102, 17), (512, 59)] {
            assert_eq!(weight_of_shares(shares), weight, "shares {shares}");
        }
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_by_name() {
        let bad = Resources { cpu_shares: Some(1), ..Resources::default() };
        assert!(matches!(v1(&bad, true), Err(CgroupError::OutOfRange { what: "cpu shares", .. })));
        let bad = Resources { cpu_period_us: Some(10), ..Resources::default() };
        assert!(matches!(v2(&bad, true), Err(CgroupError::OutOfRange { what: "cpu period", .. })));
        let tiny = Resources { cpu_quota_us: Some(1), ..Resources::default() };
        assert_eq!(v1(&tiny, true).unwrap(), [set(Controller::Cpu, "cpu.cfs_quota_us", 1000)]);
    }

    proptest! {
        #[test]
        fn weights_are_in_range_and_never_fall(a in 2u64..=262_144, b in 2u64..=262_144) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!((1..=10_000).contains(&weight_of_shares(low)));
            prop_assert!(weight_of_shares(low) <= weight_of_shares(high));
        }
    }
}
