//! What a quickstart found out, as `--json` prints it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::pod;

/// The object that `--json` prints. Times in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pod: String,
    pub(crate) phase: String,
    image: String,
    /// Asked for the image -> its snapshot is ready.
    pub(crate) snapshot_ms: f64,
    /// The node saw the pod -> its container runs.
    pub(crate) start_ms: f64,
    /// The node saw the pod -> its first byte of output.
    first_byte_ms: f64,
    /// As `start_ms`, the second time.
    pub(crate) second_start_ms: f64,
    logs: String,
    exec: String,
    /// The final record, with `timeline`: when what it is made of happened.
    record: Value,
    #[serde(skip)]
    timeline: Timeline,
    #[serde(skip)]
    pub(crate) reason: String,
}

/// When what happened, in nanoseconds since 1970 (but for the `boottime` pair); 0: never.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Timeline {
    pub(crate) seen_ns: u64,
    pub(crate) placed_ns: u64,
    pub(crate) accepted_ns: u64,
    pub(crate) held_ns: u64,
    pub(crate) image_ready_ns: u64,
    pub(crate) sandbox_ready_ns: u64,
    pub(crate) started_ns: u64,
    pub(crate) first_byte_ns: u64,
    pub(crate) finished_ns: u64,
    pub(crate) released_ns: u64,
    pub(crate) held_boottime_ns: u64,
    pub(crate) released_boottime_ns: u64,
}

impl Timeline {
    pub(crate) fn of(pod: &Value) -> Self {
        serde_json::from_value(pod["timeline"].clone()).unwrap_or_default()
    }

    /// Milliseconds from when the node saw the pod until `then`.
    pub(crate) fn ms_until(&self, then: u64) -> f64 {
        Duration::from_nanos(then.saturating_sub(self.seen_ns)).as_secs_f64() * 1e3
    }
}

impl Outcome {
    #[expect(clippy::too_many_arguments, reason = "one argument for each thing that was found out")]
    pub(crate) fn new(
        image: &str,
        snapshot: Duration,
        ended: &Value,
        released: &Value,
        again: &Value,
        logs: String,
        exec: String,
        mut record: Value,
    ) -> Self {
        let (timeline, second) = (Timeline::of(released), Timeline::of(again));
        if let Some(record) = record.as_object_mut() {
            record.insert("timeline".to_owned(), json!(timeline));
        }
        let text = |field: &str| ended[field].as_str().unwrap_or_default().to_owned();
        Self {
            pod: format!("{}/{}", text("namespace"), text("name")),
            phase: text("phase"),
            image: image.to_owned(),
            snapshot_ms: rounded(snapshot.as_secs_f64() * 1e3),
            start_ms: rounded(timeline.ms_until(timeline.started_ns)),
            first_byte_ms: rounded(timeline.ms_until(timeline.first_byte_ns)),
            second_start_ms: rounded(second.ms_until(second.started_ns)),
            logs,
            exec,
            timeline,
            record,
            reason: pod::explain(ended),
        }
    }

    /// The bill must be what was held, rounded up once.
    pub(crate) fn check_bill(&self) -> Result<()> {
        let held = self.timeline.released_boottime_ns.saturating_sub(self.timeline.held_boottime_ns);
        let duration = self.record["duration_ns"].as_u64().context("the record has no duration")?;
        let billed = self.record["billed_seconds"].as_u64().context("the record has no billed seconds")?;
        ensure!(held > 0, "the timeline does not say how long resources were held");
        ensure!(duration == held, "the record says {duration} ns held, the timeline {held} ns");
        ensure!(billed == held.div_ceil(1_000_000_000), "{billed} s billed for {held} ns held");
        Ok(())
    }
}

/// To microseconds: the rest is noise.
fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}
