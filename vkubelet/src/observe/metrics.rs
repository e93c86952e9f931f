//! Metrics, named `nodeless_vkubelet_*`.

use std::collections::BTreeMap;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::pod::board::Board;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

/// Counters that the core adds to. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    intents_applied: Counter,
    intents_refused: Family<ReasonLabel, Counter>,
    syncs: Counter,
    syncs_held: Gauge,
    pod_start: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let bounds = [0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
        Self {
            intents_applied: Counter::default(),
            intents_refused: Family::default(),
            syncs: Counter::default(),
            syncs_held: Gauge::default(),
            pod_start: Histogram::new(bounds),
        }
    }
}

impl Metrics {
    /// A registry with everything that can be seen.
    #[must_use]
    pub fn registry(&self, board: Board) -> Registry {
        let mut root = Registry::default();
        let registry = root.sub_registry_with_prefix("nodeless_vkubelet");
        registry.register("intents_applied", "Intents that agents accepted", self.intents_applied.clone());
        registry.register("intents_refused", "Pods that agents refused", self.intents_refused.clone());
        registry.register("syncs", "Complete sets told to hosts", self.syncs.clone());
        registry.register(
            "pods_held_by_brake",
            "Pods whose removal an agent's mass-delete brake held at the last complete set",
            self.syncs_held.clone(),
        );
        registry.register(
            "pod_start_seconds",
            "From seeing a pod to the start of its first container",
            self.pod_start.clone(),
        );
        registry.register_collector(Box::new(Pods { board }));
        root
    }

    /// An agent accepted an intent.
    pub fn applied(&self) {
        self.intents_applied.inc();
    }

    /// An agent refused a pod.
    pub fn refused(&self, reason: &str) {
        self.intents_refused.get_or_create(&ReasonLabel { reason: reason.to_owned() }).inc();
    }

    /// A complete set was told; so many removals are held by the brake.
    pub fn synced(&self, held: usize) {
        self.syncs.inc();
        self.syncs_held.set(i64::try_from(held).unwrap_or(i64::MAX));
    }

    /// A pod's first container started so many nanoseconds after the pod was seen.
    pub fn started(&self, nanoseconds: u64) {
        self.pod_start.observe(nanoseconds as f64 / 1e9);
    }
}

/// Counts pods when asked.
#[derive(Debug)]
struct Pods {
    board: Board,
}

impl Collector for Pods {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut phases: BTreeMap<String, i64> = BTreeMap::new();
        for entry in self.board.all() {
            let phase = entry.report.as_ref().and_then(|r| r.status["phase"].as_str()).unwrap_or("Pending").to_owned();
            *phases.entry(phase).or_default() += 1;
        }
        let gauge = ConstGauge::new(0i64);
        let mut family = encoder.encode_descriptor("pods", "Pods by phase", None, gauge.metric_type())?;
        for (phase, count) in phases {
            let labels = [("phase", phase)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_carry_the_prefix_and_units() {
        let metrics = Metrics::default();
        metrics.applied();
        metrics.refused("UnsupportedField");
        metrics.started(80_000_000);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry(Board::default())).unwrap();
        assert!(text.contains("nodeless_vkubelet_intents_applied_total 1"), "{text}");
        assert!(text.contains(r#"nodeless_vkubelet_intents_refused_total{reason="UnsupportedField"} 1"#), "{text}");
        assert!(text.contains(r#"nodeless_vkubelet_pod_start_seconds_bucket{le="0.1"} 1"#), "{text}");
    }
}
