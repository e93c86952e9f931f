//! One writer per pod, with the newest report.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::Status;
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::patch::{CREATING, patch, patience};
use crate::desired::{Desired, DesiredPod, HOST_ANNOTATION};
use crate::pod::status::waiting;
use crate::ports::{PortError, StatusReport, StatusSink};
use crate::sources::kubernetes::{Traffic, port_error};

/// First and longest wait between tries.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

struct Slot {
    wanted: Option<Arc<Value>>,
    written: Option<Arc<Value>>,
    /// The pod's start that the wanted status is part of.
    start: Span,
    busy: bool,
    flush: bool,
}

impl Default for Slot {
    fn default() -> Self {
        Self { wanted: None, written: None, start: Span::none(), busy: false, flush: false }
    }
}

struct Inner {
    client: Client,
    desired: Desired,
    traffic: Traffic,
    slots: Mutex<HashMap<String, Slot>>,
    /// A slot has something new for its writer.
    news: Notify,
    /// A slot is written or gone.
    settled: Notify,
    stop: CancellationToken,
}

/// The [`StatusSink`] of the Kubernetes source.
pub struct StatusWriter {
    inner: Arc<Inner>,
}

/// How a write ended.
enum Outcome {
    Written,
    Gone,
    Again,
}

impl StatusWriter {
    /// Writes through this client until `stop` is cancelled.
    pub(crate) fn new(client: Client, desired: Desired, traffic: Traffic, stop: CancellationToken) -> Self {
        let inner = Inner {
            client,
            desired,
            traffic,
            slots: Mutex::new(HashMap::new()),
            news: Notify::new(),
            settled: Notify::new(),
            stop,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Waits until the newest report of a pod is written, or the pod is gone.
    async fn flush(&self, uid: &str) {
        loop {
            let notified = self.inner.settled.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut slots = self.inner.slots();
                match slots.get_mut(uid) {
                    Some(slot) if slot.busy => slot.flush = true,
                    _ => return,
                }
            }
            self.inner.news.notify_waiters();
            tokio::select! {
                () = notified => {}
                () = self.inner.stop.cancelled() => return,
            }
        }
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn write_until_done(self: Arc<Self>, pod: Arc<DesiredPod>) {
        let mut wait = RETRY.0;
        loop {
            let Some(wanted) = self.next(pod.uid()).await else { return };
            let span = self.span(pod.uid());
            let outcome = tokio::select! {
                outcome = self.write(&pod, &wanted).instrument(span) => outcome,
                () = self.stop.cancelled() => return,
            };
            match outcome {
                Outcome::Written => {
                    if let Some(slot) = self.slots().get_mut(pod.uid()) {
                        slot.start = Span::none();
                        slot.written = Some(wanted);
                    }
                    wait = RETRY.0;
                }
                Outcome::Gone => {
                    self.slots().remove(pod.uid());
                    self.settled.notify_waiters();
                    return;
                }
                Outcome::Again => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    /// The status to write next, after giving a better one the chance to come; `None` and not busy any more when all is written.
    async fn next(&self, uid: &str) -> Option<Arc<Value>> {
        let mut waited = Duration::ZERO;
        loop {
            let notified = self.news.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let left = {
                let mut slots = self.slots();
                let slot = slots.get_mut(uid)?;
                let wanted = slot.wanted.clone()?;
                if slot.written.as_ref() == Some(&wanted) {
                    slot.busy = false;
                    slot.flush = false;
                    self.settled.notify_waiters();
                    return None;
                }
                let left = patience(slot.written.as_deref(), &wanted).saturating_sub(waited);
                if left.is_zero() || slot.flush {
                    return Some(wanted);
                }
                left
            };
            let began = tokio::time::Instant::now();
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = notified => {}
                () = self.stop.cancelled() => return None,
            }
            waited += began.elapsed();
        }
    }

    /// A write is part of the pod's start, or of nothing.
    fn span(&self, uid: &str) -> Span {
        match self.slots().get(uid) {
            Some(slot) if !slot.start.is_none() => tracing::info_span!(parent: &slot.start, "status.write"),
            _ => Span::current(),
        }
    }

    async fn write(&self, pod: &DesiredPod, wanted: &Value) -> Outcome {
        let written = self.slots().get(pod.uid()).and_then(|s| s.written.clone());
        let Some(body) = patch(pod.uid(), written.as_deref(), wanted) else { return Outcome::Written };
        let PodParts { namespace, name, uid } = PodParts::of(pod);
        let _urgent = self.traffic.urgent();
        match self.api(namespace).patch_status(name, &PatchParams::default(), &Patch::Strategic(&body)).await {
            Ok(_) => Outcome::Written,
            Err(kube::Error::Api(status)) if is_gone(&status) => Outcome::Gone,
            Err(kube::Error::Api(status)) if status.is_invalid() => {
                tracing::error!(pod.uid = uid, pod.namespace = namespace, pod.name = name, message = %status.message, "the API server refuses the pod's status");
                Outcome::Written
            }
            Err(error) => {
                tracing::warn!(
                    pod.uid = uid,
                    pod.namespace = namespace,
                    pod.name = name,
                    error = &error as &dyn std::error::Error,
                    "pod status could not be written; trying again"
                );
                Outcome::Again
            }
        }
    }
}

/// No pod of that name, or one with another UID: the API server calls that a conflict, or an attempt to change the UID.
fn is_gone(status: &Status) -> bool {
    let another_uid = || {
        status.is_invalid()
            && status.details.as_ref().is_some_and(|d| d.causes.iter().any(|cause| cause.field == "metadata.uid"))
    };
    status.is_not_found() || status.is_conflict() || another_uid()
}

/// What the placement's write says of a pod that has no status yet: its containers are being created.
fn first_status(pod: &DesiredPod) -> Option<Value> {
    let told = pod.pod.status.as_ref().is_some_and(|s| s.container_statuses.as_ref().is_some_and(|c| !c.is_empty()));
    let now = k8s_openapi::jiff::Timestamp::now();
    (!told).then(|| waiting(&pod.pod, CREATING, "", &format!("{now:.0}")))
}

struct PodParts<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
}

impl<'a> PodParts<'a> {
    fn of(pod: &'a DesiredPod) -> Self {
        Self { namespace: &pod.pod_ref.namespace, name: &pod.pod_ref.name, uid: &pod.pod_ref.uid }
    }
}

#[async_trait]
impl StatusSink for StatusWriter {
    fn report(&self, pod: &Arc<DesiredPod>, report: StatusReport) {
        let start = {
            let mut slots = self.inner.slots();
            let slot = slots.entry(pod.uid().to_owned()).or_default();
            slot.wanted = Some(report.status);
            slot.start = report.start;
            !std::mem::replace(&mut slot.busy, true)
        };
        if start {
            tokio::spawn(Arc::clone(&self.inner).write_until_done(Arc::clone(pod)));
        } else {
            self.inner.news.notify_waiters();
        }
    }

    async fn place(&self, pod: &DesiredPod, host: &str) -> Result<(), PortError> {
        if pod.placement.as_deref() == Some(host) {
            return Ok(());
        }
        let PodParts { namespace, name, uid } = PodParts::of(pod);
        // Annotations may be written with the status; a node may not write a pod's other metadata.
        let mut body = serde_json::json!({"metadata": {"uid": uid, "annotations": {HOST_ANNOTATION: host}}});
        let creating = first_status(pod);
        if let Some(status) = &creating {
            body["status"] = status.clone();
        }
        let _urgent = self.inner.traffic.urgent();
        match self.inner.api(namespace).patch_status(name, &PatchParams::default(), &Patch::Strategic(&body)).await {
            Ok(_) => {
                if let Some(status) = creating {
                    let mut slots = self.inner.slots();
                    slots.entry(uid.to_owned()).or_default().written.get_or_insert(Arc::new(status));
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if is_gone(&status) => {
                Err(PortError::Stale { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() })
            }
            Err(error) => Err(port_error(format!("placement of pod {namespace}/{name}"), error)),
        }
    }

    async fn remove(&self, pod: &DesiredPod) -> Result<(), PortError> {
        self.flush(pod.uid()).await;
        let PodParts { namespace, name, uid } = PodParts::of(pod);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.inner.api(namespace).delete(name, &params).await {
            // The watch tells when it is really gone: a finalizer may hold it.
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                self.inner.desired.remove(uid);
            }
            Err(error) => return Err(port_error(format!("removal of pod {namespace}/{name}"), error)),
        }
        self.inner.slots().remove(uid);
        Ok(())
    }
}
