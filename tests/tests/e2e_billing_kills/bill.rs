//! What the payer sees: `/v1/records` page by page, `/v1/pods/{uid}`, `/v1/verify`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::stack::Stack;

use super::oracle::Oracle;

/// Bills on one page: few, so that pages are turned.
const PAGE: usize = 7;

/// Every pod's record, by UID.
pub(crate) struct Bill {
    pods: BTreeMap<String, Value>,
}

/// One sandbox's interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) pod: String,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().with_context(|| format!("no number {name} in {value}"))
}

impl Bill {
    pub(crate) fn all(stack: &Stack) -> Result<Self> {
        let (mut pods, mut cursor) = (BTreeMap::new(), String::new());
        loop {
            let page = stack.billing(&format!("/v1/records?limit={PAGE}{cursor}"))?;
            for record in page["records"].as_array().context("a list of records")? {
                let uid = record["uid"].as_str().context("a record without uid")?.to_owned();
                ensure!(pods.insert(uid.clone(), record.clone()).is_none(), "pod {uid} is on two pages");
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(Self { pods }),
            }
        }
    }

    /// Everything that the oracle saw has arrived, and nothing is open.
    pub(crate) fn is_settled(&self, oracle: &Oracle) -> bool {
        let segments: usize = self.pods.values().filter_map(|pod| pod["segments"].as_array()).map(Vec::len).sum();
        segments >= oracle.sandboxes() && self.pods.values().all(|pod| pod["state"] == "final")
    }

    /// By sandbox. What a pod's record says of itself must follow from its segments.
    pub(crate) fn segments(&self) -> Result<BTreeMap<String, Segment>> {
        let mut all = BTreeMap::new();
        for (uid, pod) in &self.pods {
            let mut own: Vec<(u64, u64)> = Vec::new();
            for segment in pod["segments"].as_array().context("segments")? {
                let (start, end) = (number(segment, "start_ns")?, number(segment, "end_ns")?);
                ensure!(start <= end && segment["open"] == false, "{segment}");
                let sandbox = segment["sandbox_id"].as_str().context("sandbox_id")?.to_owned();
                let segment = Segment { pod: uid.clone(), start, end };
                ensure!(all.insert(sandbox.clone(), segment).is_none(), "{sandbox} is billed twice");
                own.push((start, end));
            }
            own.sort_unstable();
            ensure!(own.windows(2).all(|two| two[0].1 <= two[1].0), "sandboxes of {uid} overlap: {own:?}");
            let sum: u64 = own.iter().map(|(start, end)| end - start).sum();
            ensure!(number(pod, "duration_ns")? == sum, "{uid}: {sum} ns in segments, but {pod}");
            ensure!(number(pod, "billed_seconds")? == sum.div_ceil(1_000_000_000), "{uid}: {sum} ns, but {pod}");
        }
        Ok(all)
    }

    /// A pod asked for by itself is the same as in the list.
    pub(crate) fn compare_each_pod(&self, stack: &Stack) -> Result<()> {
        for (uid, listed) in &self.pods {
            let mut alone = stack.billing(&format!("/v1/pods/{uid}"))?;
            let live = alone.as_object_mut().and_then(|pod| pod.remove("live"));
            ensure!(live.is_some(), "no word on whether {uid} is live");
            ensure!(alone == *listed, "alone {alone}, in the list {listed}");
        }
        Ok(())
    }

    /// The chains of records are whole.
    pub(crate) fn verify(&self, stack: &Stack) -> Result<()> {
        let report = stack.billing("/v1/verify")?;
        ensure!(report["faults"].as_array().is_some_and(Vec::is_empty), "{report}");
        ensure!(number(&report, "records")? > 0, "{report}");
        Ok(())
    }
}
