//! Which hosts shall have what. Pure.

use std::collections::{BTreeMap, BTreeSet};

use agent_api::proto::{PrepareImage, RegistryCredential};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::core::{Selector, SelectorExt as _};

use super::resource::{ImageSnapshot, WhenDone};
use crate::placement::choose::draw;

/// The label by which an object names a host by its id.
pub const HOST_LABEL: &str = "nodeless.dev/host";
/// The label by which it names a virtual node.
pub const NODE_LABEL: &str = "nodeless.dev/node";

/// The labels of a host; `None`: it was one of this node's, and has not been seen since this process began.
pub type Labels = Option<BTreeMap<String, String>>;

/// A host selector that selects nothing, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("spec.hostSelector is not valid: {0}")]
pub struct BadSelector(String);

/// When a snapshot's images are let go of.
#[must_use]
pub fn expires(snapshot: &ImageSnapshot) -> Option<Timestamp> {
    let seconds = snapshot.spec.retention.seconds?;
    let made = snapshot.metadata.creation_timestamp.as_ref()?.0;
    let at = made.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    // The API server keeps whole seconds: another time would be a change at each look.
    Some(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// Whether that time has come.
#[must_use]
pub fn is_expired(snapshot: &ImageSnapshot, now: Timestamp) -> bool {
    expires(snapshot).is_some_and(|at| at <= now)
}

/// The hosts of this node that shall have a snapshot. Those that have it stay before others are taken.
pub fn targets(
    snapshot: &ImageSnapshot,
    node: &str,
    hosts: &BTreeMap<String, Labels>,
    now: Timestamp,
) -> Result<BTreeSet<String>, BadSelector> {
    if is_expired(snapshot, now) || snapshot.metadata.deletion_timestamp.is_some() {
        return Ok(BTreeSet::new());
    }
    let selector = match &snapshot.spec.host_selector {
        Some(selector) => Selector::try_from(selector.clone()).map_err(|error| BadSelector(error.to_string()))?,
        None => Selector::default(),
    };
    let status = snapshot.status.as_ref();
    let assigned: BTreeSet<&str> =
        status.iter().flat_map(|s| &s.hosts).filter(|h| h.node == node).map(|h| h.name.as_str()).collect();
    let matches = |id: &str, labels: &Labels| match labels {
        Some(labels) => {
            let mut labels = labels.clone();
            labels.insert(HOST_LABEL.to_owned(), id.to_owned());
            labels.insert(NODE_LABEL.to_owned(), node.to_owned());
            selector.matches(&labels)
        }
        // What it was chosen for it keeps until it is known again, or known to be gone.
        None => assigned.contains(id),
    };
    let mut fit: Vec<&str> =
        hosts.iter().filter(|(id, labels)| matches(id, labels)).map(|(id, _)| id.as_str()).collect();
    if let IntOrString::Int(most) = snapshot.spec.replicas {
        let uid = snapshot.metadata.uid.as_deref().unwrap_or_default();
        fit.sort_by_key(|id| (!assigned.contains(id), draw(uid, id)));
        fit.truncate(usize::try_from(most).unwrap_or(0));
    }
    Ok(fit.into_iter().map(str::to_owned).collect())
}

/// One snapshot as far as hosts are concerned.
#[derive(Debug)]
pub struct Share<'a> {
    /// The object.
    pub snapshot: &'a ImageSnapshot,
    /// The hosts that shall have it.
    pub targets: &'a BTreeSet<String>,
    /// Of its pull secrets.
    pub credentials: &'a [RegistryCredential],
}

/// Everything that a host shall have ready. An image that several objects name is pinned if one pins it, and removed
/// afterwards if all say so.
#[must_use]
pub fn wanted(host: &str, shares: &[Share<'_>]) -> Vec<PrepareImage> {
    let mut all: BTreeMap<&str, PrepareImage> = BTreeMap::new();
    for share in shares.iter().filter(|share| share.targets.contains(host)) {
        let spec = &share.snapshot.spec;
        for image in &spec.images {
            let entry = all.entry(image).or_insert_with(|| PrepareImage {
                reference: image.clone(),
                credentials: Vec::new(),
                pinned: false,
                remove_after: true,
            });
            entry.pinned |= spec.pinned;
            entry.remove_after &= spec.retention.when_done == WhenDone::Remove;
            for credential in share.credentials {
                if !entry.credentials.contains(credential) {
                    entry.credentials.push(credential.clone());
                }
            }
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::resource::{HostStatus, ImageSnapshotStatus};
    use proptest::prelude::*;
    use serde_json::json;

    fn snapshot(spec: serde_json::Value, assigned: &[&str]) -> ImageSnapshot {
        let mut snapshot: ImageSnapshot = serde_json::from_value(json!({
            "apiVersion": "nodeless.dev/v1alpha1", "kind": "ImageSnapshot",
            "metadata": {"name": "s", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec,
        }))
        .unwrap();
        let host = |name: &&str| HostStatus { node: "n".to_owned(), name: (*name).to_owned(), ..HostStatus::default() };
        snapshot.status =
            Some(ImageSnapshotStatus { hosts: assigned.iter().map(host).collect(), ..ImageSnapshotStatus::default() });
        snapshot
    }

    fn hosts(names: &[&str]) -> BTreeMap<String, Labels> {
        let labels = |name: &str| Some(BTreeMap::from([("zone".to_owned(), name[..1].to_owned())]));
        names.iter().map(|name| ((*name).to_owned(), labels(name))).collect()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn chosen(snapshot: &ImageSnapshot, hosts: &BTreeMap<String, Labels>) -> Vec<String> {
        targets(snapshot, "n", hosts, at("2026-01-01T00:01:00Z")).unwrap().into_iter().collect()
    }

    #[test]
    fn all_hosts_or_those_selected_by_their_labels_their_id_or_their_node() {
        let all = hosts(&["a1", "a2", "b1"]);
        assert_eq!(chosen(&snapshot(json!({"images": ["x"]}), &[]), &all), ["a1", "a2", "b1"]);
        let by = |labels: serde_json::Value| {
            snapshot(json!({"images": ["x"], "hostSelector": {"matchLabels": labels}}), &[])
        };
        assert_eq!(chosen(&by(json!({"zone": "a"})), &all), ["a1", "a2"]);
        assert_eq!(chosen(&by(json!({HOST_LABEL: "b1"})), &all), ["b1"]);
        assert_eq!(chosen(&by(json!({NODE_LABEL: "n", "zone": "b"})), &all), ["b1"]);
        assert!(chosen(&by(json!({NODE_LABEL: "other"})), &all).is_empty());
        let bad = json!({"images": ["x"], "hostSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}});
        assert!(targets(&snapshot(bad, &[]), "n", &all, Timestamp::UNIX_EPOCH).is_err());
    }

    #[test]
    fn those_that_have_it_stay_before_others_are_taken() {
        let all = hosts(&["a1", "a2", "b1", "b2"]);
        for assigned in ["a1", "a2", "b1", "b2"] {
            assert_eq!(chosen(&snapshot(json!({"images": ["x"], "replicas": 1}), &[assigned]), &all), [assigned]);
        }
        // Not one that is gone, nor one that is selected no more.
        assert_eq!(chosen(&snapshot(json!({"images": ["x"], "replicas": 2}), &["gone", "b1"]), &all).len(), 2);
        assert!(chosen(&snapshot(json!({"images": ["x"], "replicas": 0}), &["a1"]), &all).is_empty());
    }

    #[test]
    fn a_host_that_is_not_seen_yet_keeps_what_it_was_chosen_for() {
        let unseen = BTreeMap::from([("a1".to_owned(), None)]);
        let spec = json!({"images": ["x"], "hostSelector": {"matchLabels": {"zone": "a"}}});
        assert_eq!(chosen(&snapshot(spec.clone(), &["a1"]), &unseen), ["a1"]);
        assert!(chosen(&snapshot(spec, &[]), &unseen).is_empty());
    }

    #[test]
    fn time_and_deletion_end_it() {
        let all = hosts(&["a1"]);
        let mut one = snapshot(json!({"images": ["x"], "retention": {"seconds": 60}}), &["a1"]);
        assert!(!targets(&one, "n", &all, at("2026-01-01T00:00:59Z")).unwrap().is_empty());
        assert!(targets(&one, "n", &all, at("2026-01-01T00:01:00Z")).unwrap().is_empty());
        one.spec.retention.seconds = Some(i64::MAX);
        assert!(!targets(&one, "n", &all, at("2026-01-01T00:01:00Z")).unwrap().is_empty());
        let said = serde_json::to_value(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(expires(&one).unwrap()));
        let heard: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time =
            serde_json::from_value(said.unwrap()).unwrap();
        assert_eq!(Some(heard.0), expires(&one), "what the API server gives back is what it was given");
        one.metadata.deletion_timestamp = one.metadata.creation_timestamp.clone();
        assert!(targets(&one, "n", &all, at("2026-01-01T00:00:00Z")).unwrap().is_empty());
    }

    #[test]
    fn an_image_of_several_objects_is_pinned_by_one_and_removed_by_all() {
        let going = snapshot(json!({"images": ["x", "y"], "pinned": false, "retention": {"whenDone": "Remove"}}), &[]);
        let pinning = snapshot(json!({"images": ["x"]}), &[]);
        let (here, nowhere) = (BTreeSet::from(["h".to_owned()]), BTreeSet::new());
        let credential = |name: &str| RegistryCredential { registry: name.to_owned(), ..RegistryCredential::default() };
        let (a, b) = ([credential("a"), credential("b")], [credential("b")]);
        let share = |snapshot, targets, credentials| Share { snapshot, targets, credentials };
        let list = wanted("h", &[share(&going, &here, &a[..]), share(&pinning, &here, &b[..])]);
        let short: Vec<_> =
            list.iter().map(|w| (w.reference.as_str(), w.pinned, w.remove_after, w.credentials.len())).collect();
        assert_eq!(short, [("x", true, false, 2), ("y", false, true, 2)]);
        assert!(wanted("h", &[share(&pinning, &nowhere, &[])]).is_empty());
    }

    proptest! {
        #[test]
        fn a_number_of_hosts_is_that_number_and_changes_no_more_than_it_must(
            count in 0usize..12, want in 0i32..12, lost in 0usize..12,
        ) {
            let names: Vec<String> = (0..count).map(|n| format!("h{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let spec = json!({"images": ["x"], "replicas": want});
            let first = chosen(&snapshot(spec.clone(), &[]), &hosts(&names));
            prop_assert_eq!(first.len(), count.min(want as usize));
            let left: Vec<&str> = names.iter().copied().filter(|n| *n != format!("h{lost}")).collect();
            let assigned: Vec<&str> = first.iter().map(String::as_str).collect();
            let second = chosen(&snapshot(spec, &assigned), &hosts(&left));
            prop_assert_eq!(second.len(), left.len().min(want as usize));
            let kept = first.iter().filter(|name| second.contains(name)).count();
            prop_assert_eq!(kept, first.iter().filter(|name| left.contains(&name.as_str())).count());
        }
    }
}
