//! One task that writes Events, one after the other, and not while the API server is busy with what pods wait for.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event as KubeEvent, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::correlate::{Correlator, Decision};
use crate::desired::PodRef;
use crate::ports::{Event, EventSink};
use crate::sources::kubernetes::Traffic;

/// Events that may wait.
const QUEUE: usize = 4096;

/// How long an Event gives way to urgent requests, from when it is handed in.
const COURTESY: Duration = Duration::from_secs(3);

/// Who reports, as a kubelet says it: tools filter on it.
const COMPONENT: &str = "kubelet";

/// The [`EventSink`] of the Kubernetes source.
pub struct EventWriter {
    queue: mpsc::Sender<(Instant, PodRef, Event)>,
}

impl EventWriter {
    /// Starts the writer; it ends when `stop` is cancelled and the queue is empty.
    pub(crate) fn start(client: Client, node_name: &str, traffic: Traffic, stop: CancellationToken) -> Self {
        let (queue, mut events) = mpsc::channel::<(Instant, PodRef, Event)>(QUEUE);
        let node = node_name.to_owned();
        tokio::spawn(async move {
            let mut correlator = Correlator::default();
            loop {
                let next = tokio::select! {
                    biased;
                    next = events.recv() => next,
                    () = stop.cancelled() => None,
                };
                let Some((handed_in, pod, event)) = next else { return };
                let waited = handed_in.elapsed();
                tokio::select! {
                    () = traffic.quiet(COURTESY.saturating_sub(waited)) => {}
                    () = stop.cancelled() => {}
                }
                write(&client, &node, &mut correlator, &pod, &event).await;
            }
        });
        Self { queue }
    }
}

impl EventSink for EventWriter {
    fn event(&self, pod: &PodRef, event: Event) {
        if self.queue.try_send((Instant::now(), pod.clone(), event)).is_err() {
            tracing::warn!(pod.uid = %pod.uid, "event dropped: too many wait to be written");
        }
    }
}

async fn write(client: &Client, node: &str, correlator: &mut Correlator, pod: &PodRef, event: &Event) {
    let api: Api<KubeEvent> = Api::namespaced(client.clone(), &pod.namespace);
    let result = match correlator.decide(pod, event) {
        Decision::Drop => return,
        Decision::Create { name } => api.create(&PostParams::default(), &object(node, pod, event, name)).await,
        Decision::Count { name, count } => {
            let body = serde_json::json!({"count": count, "lastTimestamp": time(event)});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(&body)).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {
                    correlator.forget(&name);
                    match correlator.decide(pod, event) {
                        Decision::Create { name } => {
                            api.create(&PostParams::default(), &object(node, pod, event, name)).await
                        }
                        _ => return,
                    }
                }
                other => other,
            }
        }
    };
    if let Err(error) = result {
        tracing::warn!(pod.uid = %pod.uid, reason = %event.reason, error = &error as &dyn std::error::Error, "event could not be written");
    }
}

fn time(event: &Event) -> Option<Time> {
    Timestamp::from_nanosecond(i128::from(event.unix_ns)).ok().map(Time)
}

fn object(node: &str, pod: &PodRef, event: &Event, name: String) -> KubeEvent {
    KubeEvent {
        metadata: ObjectMeta { name: Some(name), namespace: Some(pod.namespace.clone()), ..ObjectMeta::default() },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            field_path: (!event.field_path.is_empty()).then(|| event.field_path.clone()),
            ..ObjectReference::default()
        },
        type_: Some(event.kind.as_str().to_owned()),
        reason: Some(event.reason.clone()),
        message: Some(event.message.clone()),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: time(event),
        last_timestamp: time(event),
        count: Some(1),
        ..KubeEvent::default()
    }
}
