//! Figures of the pull.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Which host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostLabel {
    host: String,
}

/// Figures of the pull, by host.
#[derive(Debug, Clone, Default)]
pub struct PullMetrics {
    records: Family<HostLabel, Counter>,
    failures: Family<HostLabel, Counter>,
    halted: Family<HostLabel, Gauge>,
}

impl PullMetrics {
    /// With its metrics registered under `nodeless_billing_pull_*`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("nodeless_billing_pull_records", "Usage records taken from a host", metrics.records.clone());
        registry.register(
            "nodeless_billing_pull_failures",
            "Attempts that failed and are tried again",
            metrics.failures.clone(),
        );
        registry.register(
            "nodeless_billing_pull_halted",
            "1 when the pull of a host is stopped because records are missing or altered",
            metrics.halted.clone(),
        );
        metrics
    }

    pub(super) fn ingested(&self, host: &str, records: usize) {
        self.records.get_or_create(&label(host)).inc_by(records as u64);
    }

    pub(super) fn failed(&self, host: &str) {
        self.failures.get_or_create(&label(host)).inc();
    }

    pub(super) fn halted(&self, host: &str, halted: bool) {
        self.halted.get_or_create(&label(host)).set(halted.into());
    }
}

fn label(host: &str) -> HostLabel {
    HostLabel { host: host.to_owned() }
}
