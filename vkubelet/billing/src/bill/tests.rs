use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

pub(crate) fn interval(sandbox: &str, start_ns: u64, proven_ns: u64, ended: bool) -> StoredInterval {
    StoredInterval {
        host: "h1".into(),
        boot_id: "b1".into(),
        boot_over: false,
        sandbox_id: sandbox.into(),
        start_ns,
        start_wall_ns: 1_700_000_000_000_000_000 + start_ns,
        proven_ns,
        proven_wall_ns: 1_700_000_000_000_000_000 + proven_ns,
        ended,
        held: Held { milli_cpu: 500, memory_bytes: 1 << 30, ..Held::default() },
        used: Used { cpu_ns: 7, memory_kib_s: 2, ..Used::default() },
        sandbox_kind: "namespace".into(),
        price_class: "on-demand".into(),
        images: vec!["sha256:aa".into()],
    }
}

fn pod(intervals: Vec<StoredInterval>) -> PodUsage {
    PodUsage { uid: "u".into(), namespace: "default".into(), name: "web".into(), intervals }
}

fn live(sandbox: &str, start_ns: u64, now_ns: u64) -> LiveInterval {
    let like = interval(sandbox, start_ns, now_ns, false);
    LiveInterval {
        host: like.host,
        boot_id: like.boot_id,
        now_ns,
        now_wall_ns: like.proven_wall_ns,
        uid: "u".into(),
        namespace: "default".into(),
        name: "web".into(),
        sandbox_id: sandbox.into(),
        start_ns,
        start_wall_ns: like.start_wall_ns,
        held: like.held,
        used: Used { cpu_ns: 99, ..Used::default() },
        sandbox_kind: like.sandbox_kind,
        price_class: like.price_class,
        images: like.images,
    }
}

#[test]
fn a_bill_in_full() {
    let plan = Plan {
        currency: "USD".into(),
        per_vcpu_second: "0.00001".parse().unwrap(),
        per_gib_second: "0.000001".parse().unwrap(),
        minimum_seconds: 0,
    };
    let two =
        vec![interval("a", 1_000_000_000, 2_500_000_001, true), interval("b", 4_000_000_000, 4_500_000_000, true)];
    insta::assert_json_snapshot!(bill(&pod(two), &plan).unwrap());
}

#[test]
fn seconds_are_rounded_up_once_for_all_segments() {
    let thirds =
        (0..3).map(|n| interval(&format!("s{n}"), n * 1_000_000_000, n * 1_000_000_000 + 400_000_000, true)).collect();
    let bill = bill(&pod(thirds), &Plan::default()).unwrap();
    assert_eq!((bill.duration_ns, bill.billed_seconds), (1_200_000_000, 2));
}

#[test]
fn a_resize_leaves_no_gap_and_no_overlap() {
    let mut after = interval("a", 100, 300, true);
    after.held.milli_cpu = 1000;
    let bill = bill(&pod(vec![interval("a", 0, 100, true), after]), &Plan::default()).unwrap();
    assert_eq!((bill.duration_ns, bill.cpu_core_ns), (300, 50 + 200));
}

#[test]
fn times_of_different_boots_are_added_not_united() {
    let mut other = interval("b", 0, 100, true);
    other.boot_id = "b2".into();
    assert_eq!(bill(&pod(vec![interval("a", 0, 100, true), other]), &Plan::default()).unwrap().duration_ns, 200);
}

#[test]
fn an_interval_of_a_boot_that_is_over_is_final() {
    let mut lost = interval("a", 0, 100, false);
    assert_eq!(bill(&pod(vec![lost.clone()]), &Plan::default()).unwrap().state, State::Open);
    lost.boot_over = true;
    assert_eq!(bill(&pod(vec![lost]), &Plan::default()).unwrap().state, State::Final);
}

#[test]
fn live_figures_move_open_intervals_only() {
    let stored = pod(vec![interval("done", 0, 100, true), interval("runs", 200, 300, false)]);
    let merged =
        with_live(Some(stored), vec![live("done", 0, 900), live("runs", 200, 1_234), live("new", 1_300, 1_400)])
            .unwrap();
    let ends: Vec<u64> = merged.intervals.iter().map(|interval| interval.proven_ns).collect();
    assert_eq!(ends, [100, 1_234, 1_400]);
    assert_eq!(bill(&merged, &Plan::default()).unwrap().duration_ns, 100 + 1_034 + 100);
    assert_eq!(with_live(None, vec![live("new", 0, 5)]).unwrap().uid, "u");
    assert_eq!(with_live(None, Vec::new()), None);
}

#[test]
fn a_live_answer_older_than_the_ledger_changes_nothing() {
    let stored = pod(vec![interval("runs", 200, 300, false)]);
    assert_eq!(with_live(Some(stored.clone()), vec![live("runs", 200, 250)]), Some(stored));
}

proptest! {
    /// Against the plainest oracle there is: the set of covered nanoseconds.
    #[test]
    fn the_union_counts_each_nanosecond_once(spans in prop::collection::vec((0u64..60, 0u64..30, 1u64..4), 0..8)) {
        let intervals: Vec<_> = spans.iter().enumerate().map(|(n, (start, length, cpu))| {
            let mut one = interval(&format!("s{n}"), *start, start + length, true);
            one.held.milli_cpu = cpu * 1000;
            one
        }).collect();
        let covered: BTreeSet<u64> = spans.iter().flat_map(|(start, length, _)| *start..start + length).collect();
        let cpu: u64 = covered.iter().map(|ns| spans.iter().filter(|(start, length, _)| (*start..start + length).contains(ns)).map(|(_, _, cpu)| cpu).max().unwrap()).sum();
        let Some(bill) = bill(&pod(intervals), &Plan::default()) else { return Ok(()) };
        prop_assert_eq!(bill.duration_ns, covered.len() as u64);
        prop_assert_eq!(bill.cpu_core_ns, u128::from(cpu));
        prop_assert_eq!(bill.billed_seconds, u64::from(!covered.is_empty()));
    }
}
