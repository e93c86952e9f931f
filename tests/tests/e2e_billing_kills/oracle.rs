//! What the pods' owners said when they took and let go, held against the bill and against the world.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::bill::{Bill, Segment};
use super::churn::Told;
use super::witness::Seen;

/// A sandbox is held before it is seen, and until after it is gone; no longer than this while an agent lives.
const SLACK_NS: u64 = 20_000_000_000;

#[derive(Debug, Default)]
struct Held {
    pod_uid: String,
    pod_name: String,
    from: Option<u64>,
    until: Option<u64>,
}

/// By sandbox.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    sandboxes: BTreeMap<String, Held>,
}

impl Oracle {
    /// From the agents' log. Whoever repeats an instant after a restart must repeat the same.
    pub(crate) fn read(log: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(log).context("read the agents' log")?;
        let mut oracle = Self::default();
        for line in text.lines().filter(|line| line.contains("resources are ")) {
            let line: Value = serde_json::from_str(line).with_context(|| format!("a torn line: {line}"))?;
            let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("{line}"));
            let span = &line["span"];
            let at = line["boottime_ns"].as_u64().with_context(|| format!("{line}"))?;
            let held = oracle.sandboxes.entry(text(&line["sandbox.id"])?).or_default();
            (held.pod_uid, held.pod_name) = (text(&span["pod.uid"])?, text(&span["pod.name"])?);
            let instant = match line["message"].as_str() {
                Some("resources are held") => &mut held.from,
                Some("resources are released") => &mut held.until,
                other => bail!("unknown message {other:?}"),
            };
            ensure!(*instant.get_or_insert(at) == at, "said before with another instant: {line}");
        }
        // Released without ever having been held: its start was never durable, so it holds nothing and costs nothing.
        oracle.sandboxes.retain(|_, held| held.from.is_some());
        Ok(oracle)
    }

    pub(crate) fn sandboxes(&self) -> usize {
        self.sandboxes.len()
    }

    pub(crate) fn pods(&self) -> usize {
        self.sandboxes.values().map(|held| &held.pod_uid).collect::<BTreeSet<_>>().len()
    }

    fn interval(&self, sandbox: &str) -> Result<(&Held, u64, u64)> {
        let held = self.sandboxes.get(sandbox).with_context(|| format!("{sandbox} was never held"))?;
        let from = held.from.with_context(|| format!("{sandbox} was never held"))?;
        Ok((held, from, held.until.with_context(|| format!("{sandbox} was never released"))?))
    }

    /// Equal, sandbox by sandbox; the sum in nanoseconds.
    pub(crate) fn compare(&self, bill: &Bill) -> Result<u64> {
        let billed = bill.segments()?;
        for sandbox in billed.keys() {
            ensure!(self.sandboxes.contains_key(sandbox), "{sandbox} is billed and was never held");
        }
        let mut sum = 0;
        for sandbox in self.sandboxes.keys() {
            let (held, start, end) = self.interval(sandbox)?;
            let expected = Segment { pod: held.pod_uid.clone(), start, end };
            ensure!(
                billed.get(sandbox) == Some(&expected),
                "{sandbox}: held {expected:?}, billed {:?}",
                billed.get(sandbox)
            );
            sum += end - start;
        }
        Ok(sum)
    }

    /// What a pod's status said is the first time that it was held and the last that it was released.
    pub(crate) fn compare_told(&self, told: &[Told]) -> Result<()> {
        for pod in told {
            let own = self.sandboxes.values().filter(|held| held.pod_uid == pod.uid);
            let (from, until) = own.fold((None, None), |(from, until), held| {
                (from.into_iter().chain(held.from).min(), until.max(held.until))
            });
            ensure!(
                (from, until) == (Some(pod.held), Some(pod.released)),
                "{} says {}..{}, its sandboxes {from:?}..{until:?}",
                pod.uid,
                pod.held,
                pod.released
            );
        }
        Ok(())
    }

    /// Whatever the kernel showed lies within its interval, and the interval is not much longer.
    pub(crate) fn compare_world(
        &self,
        seen: &BTreeMap<String, Seen>,
        put: &BTreeMap<String, u64>,
        gone: u64,
        absences: &[(u64, u64)],
    ) -> Result<String> {
        let alone = |from: u64, until: u64| -> u64 {
            let overlap = |(dead, back): &(u64, u64)| (*back).min(until).saturating_sub((*dead).max(from));
            absences.iter().map(overlap).sum()
        };
        let (mut ran, mut through, mut again, mut most) = (0, 0, 0, 0);
        for (sandbox, seen) in seen {
            let (_, from, until) = self.interval(sandbox)?;
            let within = |what: &str, first: u64, last: u64| {
                ensure!(from <= first && last <= until, "{sandbox}: {what} {first}..{last}, held {from}..{until}");
                Ok(())
            };
            within("existed", seen.first, seen.last)?;
            if let Some((first, last)) = seen.ran {
                within("had processes", first, last)?;
                ran += 1;
            }
            for (what, a, b) in [("before it was there", from, seen.first), ("after it was gone", seen.last, until)] {
                let beyond = b.saturating_sub(a).saturating_sub(alone(a, b));
                most = most.max(beyond);
                ensure!(beyond <= SLACK_NS, "{sandbox} was held for {beyond} ns {what}, with an agent");
            }
        }
        for (sandbox, held) in &self.sandboxes {
            let (_, from, until) = self.interval(sandbox)?;
            let written = put.get(&held.pod_name).with_context(|| format!("who is {}?", held.pod_name))?;
            ensure!((written..=&until).contains(&&from) && until <= gone, "{sandbox}: {written} {from} {until} {gone}");
            through += usize::from(absences.iter().any(|(dead, back)| from < *dead && *back < until));
            again += usize::from(!sandbox.ends_with("-0"));
        }
        Ok(format!(
            "{} seen to exist, {ran} with processes, {through} held through an agent's absence, {again} made anew; at most {} ms beyond what was seen",
            seen.len(),
            most / 1_000_000
        ))
    }
}
