//! Keeps the desired store equal to the API server's list of this node's pods.

use futures::{StreamExt, TryStreamExt, pin_mut};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use super::RawPod;
use crate::desired::{Desired, DesiredPod, SourceKind};

/// Runs until cancelled. A broken watch is resumed, or begun again with a complete list; a failed list removes nothing.
pub(super) async fn run(client: Client, node_name: String, desired: Desired, stop: CancellationToken) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let stream = watcher(Api::<RawPod>::all(client), config)
        .default_backoff()
        .inspect_err(|error| {
            tracing::warn!(error = error as &dyn std::error::Error, "pod watch failed; resuming");
        })
        .take_until(stop.cancelled_owned());
    pin_mut!(stream);
    let mut listing = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listing.clear(),
            Ok(watcher::Event::InitApply(pod)) => listing.extend(parse(&pod)),
            Ok(watcher::Event::InitDone) => {
                desired.replace(SourceKind::Kubernetes, std::mem::take(&mut listing));
                desired.mark_listed(SourceKind::Kubernetes);
            }
            Ok(watcher::Event::Apply(pod)) => {
                if let Some(pod) = parse(&pod) {
                    desired.upsert(pod);
                }
            }
            Ok(watcher::Event::Delete(pod)) => {
                // Its last state says how it is to end, even when that was never told before.
                if let Some(last) = parse(&pod).filter(|pod| desired.get(pod.uid()).is_some()) {
                    desired.upsert(last);
                }
                if let Some(uid) = &kube::Resource::meta(&pod).uid {
                    desired.remove(uid);
                }
            }
            Err(_) => {}
        }
    }
}

/// The pod, or nothing and a log line when this version cannot read it (others go on).
fn parse(pod: &RawPod) -> Option<DesiredPod> {
    match DesiredPod::from_json(SourceKind::Kubernetes, pod.json.clone()) {
        Ok(pod) => Some(pod),
        Err(error) => {
            let meta = kube::Resource::meta(pod);
            tracing::error!(
                pod.uid = meta.uid.as_deref().unwrap_or_default(),
                pod.namespace = meta.namespace.as_deref().unwrap_or_default(),
                pod.name = meta.name.as_deref().unwrap_or_default(),
                error = &error as &dyn std::error::Error,
                "pod cannot be read and is left alone"
            );
            None
        }
    }
}
