//! Log lines on standard error; what is logged is set by `NODELESS_LOG` (as `RUST_LOG`), `info` by default.

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Installs the subscriber. Call once, first thing in main.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("NODELESS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
