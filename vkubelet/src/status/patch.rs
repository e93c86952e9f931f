//! What a status write contains, and how long it may wait for a better one.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// A status that only says "on the way" waits this long for the next one: a plain pod's start then needs one write.
pub(super) const ON_THE_WAY: Duration = Duration::from_millis(400);

/// Waiting reasons that say only "on the way".
const USUAL: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// How long the status may wait to be overtaken.
pub(super) fn patience(status: &Value) -> Duration {
    let pending = status["phase"] == "Pending";
    let statuses = ["initContainerStatuses", "containerStatuses"]
        .into_iter()
        .filter_map(|field| status[field].as_array())
        .flatten();
    let usual = statuses
        .map(|c| &c["state"])
        .all(|state| state["waiting"]["reason"].as_str().is_some_and(|reason| USUAL.contains(&reason)));
    if pending && usual { ON_THE_WAY } else { Duration::ZERO }
}

/// The strategic merge patch that turns `written` into `wanted`, under the pod's UID; `None` when nothing changes.
///
/// Lists are sent whole. Conditions merge by type, so other writers' conditions (readiness gates, `PodScheduled`) stay.
pub(super) fn patch(uid: &str, written: Option<&Value>, wanted: &Value) -> Option<Value> {
    let empty = Map::new();
    let before = written.and_then(Value::as_object).unwrap_or(&empty);
    let after = wanted.as_object().unwrap_or(&empty);
    let mut changed = Map::new();
    for (key, value) in after {
        if before.get(key) != Some(value) {
            changed.insert(key.clone(), value.clone());
        }
    }
    for key in before.keys() {
        if !after.contains_key(key) {
            changed.insert(key.clone(), Value::Null);
        }
    }
    (!changed.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changed}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_on_its_way_may_wait_and_news_may_not() {
        let creating =
            json!({"phase":"Pending","containerStatuses":[{"state":{"waiting":{"reason":"ContainerCreating"}}}]});
        let failing = json!({"phase":"Pending","containerStatuses":[{"state":{"waiting":{"reason":"ErrImagePull"}}}]});
        let running = json!({"phase":"Running","containerStatuses":[{"state":{"running":{}}}]});
        assert_eq!(patience(&creating), ON_THE_WAY);
        assert_eq!(patience(&failing), Duration::ZERO);
        assert_eq!(patience(&running), Duration::ZERO);
    }

    #[test]
    fn an_init_container_that_failed_is_news() {
        let status = json!({"phase":"Pending",
            "initContainerStatuses":[{"state":{"terminated":{"exitCode":1}}}],
            "containerStatuses":[{"state":{"waiting":{"reason":"PodInitializing"}}}]});
        assert_eq!(patience(&status), Duration::ZERO);
    }

    #[test]
    fn only_what_changed_is_sent_and_what_went_is_nulled() {
        let before = json!({"phase":"Pending","message":"waiting","podIP":"10.0.0.1"});
        let after = json!({"phase":"Running","podIP":"10.0.0.1"});
        let patch = patch("u", Some(&before), &after).unwrap();
        assert_eq!(patch, json!({"metadata":{"uid":"u"},"status":{"phase":"Running","message":null}}));
    }

    #[test]
    fn an_unchanged_status_is_not_written() {
        let status = json!({"phase":"Running"});
        assert_eq!(patch("u", Some(&status), &status), None);
    }
}
