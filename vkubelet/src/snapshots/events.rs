//! What changed in an object's status, as Events.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};

use super::resource::{ImageSnapshot, ImageSnapshotStatus, Phase};
use super::status::amount;
use crate::ports::EventType;

/// Events of objects without a namespace are kept here, as Kubernetes' own.
const NAMESPACE: &str = "default";

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) kind: EventType,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What this node has to tell after writing `new` over `old`.
pub(super) fn changes(node: &str, old: &ImageSnapshotStatus, new: &ImageSnapshotStatus) -> Vec<Change> {
    let change = |kind, reason, message| Change { kind, reason, message };
    let mut all = Vec::new();
    for host in new.hosts.iter().filter(|host| host.node == node) {
        let before = old.hosts.iter().find(|h| h.node == host.node && h.name == host.name);
        let was = before.map(|h| h.phase);
        match host.phase {
            Phase::Ready if was != Some(Phase::Ready) => {
                let (name, count, size) = (&host.name, host.ready_images, amount(host.size_bytes));
                all.push(change(EventType::Normal, "HostReady", format!("host {name} has all {count} images: {size}")));
            }
            Phase::Failing if was != Some(Phase::Failing) || before.is_some_and(|h| h.message != host.message) => {
                let text = host.message.as_deref().unwrap_or_default();
                all.push(change(EventType::Warning, "HostFailing", format!("host {}: {text}", host.name)));
            }
            _ => {}
        }
    }
    if new.phase != old.phase {
        let text = new.message.clone().unwrap_or_default();
        match new.phase {
            Phase::Ready => {
                let message = format!("{} images are ready on {} hosts", new.images.len(), new.ready_hosts);
                all.push(change(EventType::Normal, "Ready", message));
            }
            Phase::Expired => all.push(change(EventType::Normal, "Expired", text)),
            _ => {}
        }
    }
    all
}

/// Writes it; failing to is no reason to stop.
pub(super) async fn write(client: &Client, node: &str, snapshot: &ImageSnapshot, change: &Change) {
    let now = Timestamp::now();
    let name = snapshot.metadata.name.clone().unwrap_or_default();
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("nodeless.dev/v1alpha1".to_owned()),
            kind: Some("ImageSnapshot".to_owned()),
            name: Some(name.clone()),
            uid: snapshot.metadata.uid.clone(),
            ..ObjectReference::default()
        },
        type_: Some(change.kind.as_str().to_owned()),
        reason: Some(change.reason.to_owned()),
        message: Some(change.message.chars().take(1024).collect()),
        source: Some(EventSource { component: Some("nodeless".to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some("nodeless".to_owned()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    let api: Api<Event> = Api::namespaced(client.clone(), NAMESPACE);
    if let Err(error) = api.create(&PostParams::default(), &event).await {
        tracing::warn!(
            snapshot = name,
            reason = change.reason,
            error = &error as &dyn std::error::Error,
            "event could not be written"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::resource::HostStatus;

    fn status(phase: Phase, hosts: &[(&str, &str, Phase, Option<&str>)]) -> ImageSnapshotStatus {
        let host = |(node, name, phase, message): &(&str, &str, Phase, Option<&str>)| HostStatus {
            node: (*node).to_owned(),
            name: (*name).to_owned(),
            phase: *phase,
            message: message.map(str::to_owned),
            ..HostStatus::default()
        };
        ImageSnapshotStatus { phase, hosts: hosts.iter().map(host).collect(), ..ImageSnapshotStatus::default() }
    }

    #[test]
    fn what_has_changed_is_told_once_and_by_the_node_whose_it_is() {
        let reasons = |old: &ImageSnapshotStatus, new: &ImageSnapshotStatus| -> Vec<&str> {
            changes("n", old, new).iter().map(|change| change.reason).collect()
        };
        let none = ImageSnapshotStatus::default();
        let ready = status(Phase::Ready, &[("n", "a", Phase::Ready, None), ("m", "b", Phase::Ready, None)]);
        assert_eq!(reasons(&none, &ready), ["HostReady", "Ready"]);
        assert!(reasons(&ready, &ready).is_empty());
        let failing = |why| status(Phase::Failing, &[("n", "a", Phase::Failing, Some(why))]);
        assert_eq!(reasons(&none, &failing("x")), ["HostFailing"]);
        assert!(reasons(&failing("x"), &failing("x")).is_empty());
        assert_eq!(reasons(&failing("x"), &failing("y")), ["HostFailing"]);
        assert_eq!(reasons(&ready, &status(Phase::Expired, &[])), ["Expired"]);
    }
}
