//! Log lines on standard error; what is logged is set by `NODELESS_LOG` (as `RUST_LOG`), `info` by default. And, with an
//! OTLP endpoint, the spans of pods' starts.

use agent_api::trace::Exporter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::LogFormat;

/// Installs the subscriber. Call once, first thing in main.
pub fn init(format: LogFormat, spans: Option<&Exporter>) {
    let filter = EnvFilter::try_from_env("NODELESS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
    registry.with(spans.map(|exporter| exporter.layer(&["vkubelet"]))).init();
}
