//! A pod's start, seen by an OpenTelemetry collector.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use serde_json::json;
use tests::stack::{Stack, is_root, wait};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

#[derive(Debug, Clone)]
struct Seen {
    service: String,
    name: String,
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    pod_uid: Option<String>,
}

/// Keeps every span that it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Seen>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.into_inner().resource_spans {
            let of = resource.resource.map(|r| r.attributes).unwrap_or_default();
            let service = text(&of, "service.name").unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                seen.push(Seen {
                    service: service.clone(),
                    pod_uid: text(&span.attributes, "pod.uid"),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match attributes.iter().find(|a| a.key == key)?.value.as_ref()? {
        AnyValue { value: Some(Value::StringValue(text)) } => Some(text.clone()),
        _ => None,
    }
}

#[test]
fn e2e_a_pod_s_start_is_one_trace_over_both_daemons() -> Result<()> {
    if !is_root("e2e_a_pod_s_start_is_one_trace_over_both_daemons") {
        return Ok(());
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let collector = Collector::default();
    let service = TraceServiceServer::new(collector.clone());
    runtime.spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );

    let flags = ["--otlp-endpoint", &endpoint];
    let mut stack = Stack::up_with("trace", &flags, &flags)?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "traced"},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": stack.busybox()?, "command": ["true"]}]},
    });
    stack.put_manifest("traced", &pod)?;
    wait("the pod succeeds", || {
        Ok(stack
            .client(&["ps"])?
            .as_array()
            .is_some_and(|pods| pods.iter().any(|p| p["status"]["phase"] == "Succeeded")))
    })?;
    let uid = stack.client(&["ps"])?[0]["uid"].as_str().unwrap_or_default().to_owned();
    stack.end_now()?;

    // Both daemons have ended, and send what is left when they do.
    let seen = collector.0.lock().unwrap().clone();
    let starts: BTreeMap<&str, &Seen> =
        seen.iter().filter(|s| s.name == "pod.start").map(|s| (s.service.as_str(), s)).collect();
    ensure!(starts.len() == 2, "pod.start of both: {seen:#?}");
    let (ours, theirs) = (starts["vkubelet"], starts["nodeless-agent"]);
    ensure!(ours.parent.is_empty(), "vkubelet's is the root: {ours:?}");
    ensure!(theirs.trace == ours.trace && theirs.parent == ours.id, "{ours:?} {theirs:?}");
    ensure!(ours.pod_uid.as_ref() == Some(&uid) && theirs.pod_uid.as_ref() == Some(&uid), "{uid}: {starts:?}");
    let trace = |service: &str| -> Vec<&str> {
        let part = seen.iter().filter(|s| s.trace == ours.trace && s.service == service);
        part.map(|s| s.name.as_str()).collect()
    };
    for (service, steps) in [
        ("vkubelet", ["pod.prepare", "intent.apply"].as_slice()),
        (
            "nodeless-agent",
            &["image.ensure", "sandbox.prepare", "network.attach", "container.start", "container.launch"],
        ),
    ] {
        let found = trace(service);
        ensure!(steps.iter().all(|step| found.contains(step)), "{service}: {found:?}");
    }
    Ok(())
}
