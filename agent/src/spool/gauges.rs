//! The spool's figures and alarms as metrics.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Health;

/// `usage_spool_*`: what [`Health`] says, as of the last update.
#[derive(Debug, Default)]
pub struct SpoolGauges {
    unacked_records: Gauge,
    segments: Gauge,
    reserve_segments: Gauge,
    failed_segments: Gauge,
    failed_appends: Gauge,
    damage: Gauge,
}

impl SpoolGauges {
    /// Registered in `registry`, at zero.
    pub fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        let all = [
            ("unacked_records", "Usage records that vkubelet has not stored yet", &gauges.unacked_records),
            ("segments", "Segment files of the usage spool, the reserve not counted", &gauges.segments),
            ("reserve_segments", "Segments kept ready for a full disk", &gauges.reserve_segments),
            ("failed_segments", "Segments given up because a write or an fdatasync failed", &gauges.failed_segments),
            ("failed_appends", "Appends that could not be made durable at all", &gauges.failed_appends),
            ("damage", "Places at which usage records are destroyed; a human must act", &gauges.damage),
        ];
        for (name, help, gauge) in all {
            registry.register(format!("usage_spool_{name}"), help, gauge.clone());
        }
        gauges
    }

    /// Brought up to date.
    pub fn update(&self, health: &Health) {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.unacked_records.set(number(health.unacked_records));
        self.segments.set(number(health.segments as u64));
        self.reserve_segments.set(number(health.reserve_segments as u64));
        self.failed_segments.set(number(health.failed_segments));
        self.failed_appends.set(number(health.failed_appends));
        self.damage.set(number(health.damage.len() as u64));
    }
}
