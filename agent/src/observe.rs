//! What can be seen from outside: metrics, `/healthz`, `/readyz`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use agent_api::trace::Exporter;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::config::LogFormat;
use crate::image_metrics::ImageMetrics;
use crate::spool::SpoolGauges;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

/// Every metric of this program, `nodeless_agent_*`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pods: Gauge<i64, AtomicI64>,
    start_seconds: Histogram,
    pull_seconds: Histogram,
    pull_failures: Family<Reason, Counter<u64, AtomicU64>>,
    refusals: Family<Reason, Counter<u64, AtomicU64>>,
    unknown_fields: Counter<u64, AtomicU64>,
    brake_holds: Counter<u64, AtomicU64>,
    fenced: Counter<u64, AtomicU64>,
    events: Counter<u64, AtomicU64>,
    /// The usage spool's figures and alarms.
    pub spool: SpoolGauges,
    /// The image store's figures.
    pub images: ImageMetrics,
    ready: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("nodeless_agent");
        let seconds = || Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0]);
        let metrics = (
            Gauge::default(),
            seconds(),
            seconds(),
            Family::default(),
            Family::default(),
            Counter::default(),
            Counter::default(),
            Counter::default(),
            Counter::default(),
        );
        let (pods, start, pull, failures, refusals, unknown, brake, fenced, events) = metrics;
        registry.register("pods", "Pods on this host that are not terminated", Gauge::clone(&pods));
        registry.register_with_unit(
            "pod_start",
            "From acceptance to the first container's exec",
            Unit::Seconds,
            Histogram::clone(&start),
        );
        registry.register_with_unit("image_pull", "Time taken by image pulls", Unit::Seconds, Histogram::clone(&pull));
        registry.register("image_pull_failures", "Failed image pulls", Family::clone(&failures));
        registry.register("pods_refused", "Pods refused at admission", Family::clone(&refusals));
        registry.register("unknown_pod_fields", "Pod fields that this version does not know", Counter::clone(&unknown));
        registry.register(
            "mass_delete_brake_holds",
            "Complete-set syncs held by the mass-delete brake",
            Counter::clone(&brake),
        );
        registry.register("calls_fenced", "Calls refused because of a lower epoch", Counter::clone(&fenced));
        registry.register("log_bytes_sent", "Bytes of container logs sent", Counter::clone(&events));
        let spool = SpoolGauges::register(&mut registry);
        let images = ImageMetrics::register(&mut registry);
        Self {
            registry,
            spool,
            images,
            pods,
            start_seconds: start,
            pull_seconds: pull,
            pull_failures: failures,
            refusals,
            unknown_fields: unknown,
            brake_holds: brake,
            fenced,
            events,
            ready: AtomicBool::new(false),
        }
    }
}

impl Metrics {
    /// Pods that are not terminated.
    pub fn pods(&self, count: usize) {
        self.pods.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A pod's first container runs.
    pub fn started(&self, seconds: f64) {
        self.start_seconds.observe(seconds);
    }

    /// An image was pulled.
    pub fn pulled(&self, seconds: f64) {
        self.pull_seconds.observe(seconds);
    }

    /// An image could not be pulled.
    pub fn pull_failed(&self, reason: &str) {
        self.pull_failures.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }

    /// A pod was refused.
    pub fn refused(&self, reason: &str) {
        self.refusals.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }

    /// Fields that this version does not know.
    pub fn unknown_fields(&self, count: usize) {
        self.unknown_fields.inc_by(count as u64);
    }

    /// The mass-delete brake held.
    pub fn brake_held(&self) {
        self.brake_holds.inc();
    }

    /// A call with a lower epoch was refused.
    pub fn fenced(&self) {
        self.fenced.inc();
    }

    /// Log bytes went out.
    pub fn log_bytes(&self, count: usize) {
        self.events.inc_by(count as u64);
    }

    /// Pods of before have been recovered: calls are answered.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// See [`Metrics::set_ready`].
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// The text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Installs the subscriber of log lines and, with an exporter, of a pod's start's spans. Call once, first thing in main. `NODELESS_LOG` filters lines (`info` by default); with
/// `NODELESS_LOG_SPANS` set, each span (a pod's start and its steps) is logged with its time when it closes.
pub fn init(format: LogFormat, exporter: Option<&Exporter>) {
    let spans = if std::env::var_os("NODELESS_LOG_SPANS").is_some() { FmtSpan::CLOSE } else { FmtSpan::NONE };
    let filter = EnvFilter::try_from_env("NODELESS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer().with_span_events(spans).with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
    registry.with(exporter.map(|exporter| exporter.layer(&["agent", "image_snapshot", "sandbox"]))).init();
}

/// `/metrics`, `/healthz`, `/readyz`.
pub fn router(metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(metrics)
}

async fn metrics_text(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics.text())
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    if metrics.is_ready() { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "recovering pods\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_carry_the_programs_name_and_units() {
        let metrics = Metrics::default();
        metrics.pods(2);
        metrics.started(0.05);
        metrics.refused("OutOfcpu");
        let text = metrics.text();
        assert!(text.contains("nodeless_agent_pods 2"), "{text}");
        assert!(text.contains("nodeless_agent_pod_start_seconds_count 1"), "{text}");
        assert!(text.contains("nodeless_agent_pods_refused_total{reason=\"OutOfcpu\"} 1"), "{text}");
        assert!(!metrics.is_ready());
    }
}
