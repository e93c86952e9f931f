//! A pod's start is one trace, although two programs do it.
//!
//! vkubelet opens the span `pod.start` when it discovers the pod and sends its context with the intent, as a W3C
//! `traceparent`; the agent's `pod.start` becomes its child. With an endpoint set, both send their spans to it over OTLP
//! (gRPC, as Kubernetes' own components do); without one, spans cost next to nothing and [`traceparent`] is empty.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

const TRACEPARENT: &str = "traceparent";
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// A span of a pod's or a task's whole life is no work that took so long: it is a place for log lines.
const LIFE: &str = "pod";

/// Spans cannot be sent there.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// Not of the form that is understood.
    #[error("{endpoint:?} is no endpoint for spans: write http://HOST:PORT")]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// The exporter refuses it.
    #[error("make an exporter of spans to {endpoint}")]
    Exporter {
        /// What was given.
        endpoint: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Sends spans in batches from a thread of its own.
#[derive(Debug)]
pub struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// To an OTLP/gRPC `endpoint` (`http://HOST:PORT`), for this `service.name`. Connects when there is something to send;
    /// an endpoint that is away loses spans and nothing else. Needs the context of the tokio runtime that shall send.
    pub fn new(endpoint: &str, service: &'static str) -> Result<Self, ExporterError> {
        let named = |uri: http::Uri| uri.scheme_str() == Some("http") && uri.port().is_some() && uri.path() == "/";
        if !endpoint.parse().is_ok_and(named) {
            return Err(ExporterError::Endpoint { endpoint: endpoint.to_owned() });
        }
        let exporter =
            SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT).build();
        let exporter = exporter
            .map_err(|source| ExporterError::Exporter { endpoint: endpoint.to_owned(), source: Box::new(source) })?;
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            provider: SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build(),
        })
    }

    /// The layer that hands spans (not log lines) of this program's own crates to the exporter.
    pub fn layer<S>(&self, crates: &'static [&'static str]) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = filter_fn(move |meta| {
            let root = meta.target().split("::").next().unwrap_or_default();
            meta.is_span() && *meta.level() <= Level::INFO && meta.name() != LIFE && crates.contains(&root)
        });
        let tracer = self.provider.tracer("nodeless");
        tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false).with_filter(ours)
    }

    /// Sends what is left. Blocks, at most for the export's timeout.
    pub fn flush(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(EXPORT_TIMEOUT) {
            tracing::warn!(error = &error as &dyn std::error::Error, "some spans were not sent");
        }
    }
}

/// The context of a span as a W3C `traceparent`; empty when nothing is traced.
#[must_use]
pub fn traceparent(span: &Span) -> String {
    let context = span.context();
    if !context.span().span_context().is_valid() {
        return String::new();
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.remove(TRACEPARENT).unwrap_or_default()
}

/// Makes the sender of `traceparent` the parent of a span that nothing was done in yet. Empty or odd text changes nothing.
pub fn adopt(span: &Span, traceparent: &str) {
    if traceparent.is_empty() {
        return;
    }
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    if context.span().span_context().is_valid() {
        // Refused only when no layer traces this span: then there is nothing to adopt.
        let _ = span.set_parent(context);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn traced<T>(work: impl FnOnce() -> T) -> T {
        let exporter = Exporter { provider: SdkTracerProvider::builder().build() };
        let layer = exporter.layer(&["agent_api"]);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work)
    }

    #[test]
    fn a_context_that_is_sent_is_adopted() {
        traced(|| {
            let root = tracing::info_span!(parent: None, "pod.start");
            let sent = traceparent(&root);
            let other = tracing::info_span!(parent: None, "pod.start");
            adopt(&other, &sent);
            let trace = |text: &str| text.split('-').nth(1).map(str::to_owned);
            assert_eq!(sent.split('-').map(str::len).collect::<Vec<_>>(), [2, 32, 16, 2], "{sent}");
            assert_eq!(trace(&traceparent(&other)), trace(&sent));
            assert_ne!(traceparent(&other), sent);
        });
    }

    #[test]
    fn odd_contexts_and_a_life_s_span_make_no_trace() {
        traced(|| {
            for odd in ["", "00", "00-00000000000000000000000000000000-0000000000000000-01", "\u{1F980}"] {
                let span = tracing::info_span!(parent: None, "pod.start");
                adopt(&span, odd);
                assert!(!traceparent(&span).is_empty(), "{odd}");
            }
            assert_eq!(traceparent(&tracing::info_span!(parent: None, "pod")), "");
        });
        assert_eq!(traceparent(&tracing::info_span!(parent: None, "pod.start")), "", "nobody traces");
    }

    #[tokio::test]
    async fn an_endpoint_is_http_host_and_port() {
        for wrong in ["", "collector", "collector:4317", "https://collector:4317", "http://collector", "http://c:1/v1"]
        {
            let error = Exporter::new(wrong, "test").unwrap_err();
            assert!(error.to_string().contains("write http://HOST:PORT"), "{wrong}: {error}");
        }
        assert!(Exporter::new("http://127.0.0.1:4317", "test").is_ok());
    }
}
