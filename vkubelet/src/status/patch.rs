//! What a status write contains, and how long it may wait for a better one.

use std::time::Duration;

use serde_json::{Map, Value, json};

/// A status that only says "on the way" waits this long for the next one: a plain pod's start then needs one write.
pub(super) const ON_THE_WAY: Duration = Duration::from_millis(400);

/// The same when the API server has been told already that the pod is on its way.
pub(super) const STILL_ON_THE_WAY: Duration = Duration::from_secs(10);

/// Conditions that are there only while they hold.
const PASSING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The waiting reason of a container on its way.
pub(super) const CREATING: &str = "ContainerCreating";

/// Waiting reasons that say only "on the way".
const USUAL: [&str; 2] = [CREATING, "PodInitializing"];

/// How long the status may wait to be overtaken, given what the API server has.
pub(super) fn patience(written: Option<&Value>, wanted: &Value) -> Duration {
    match written {
        _ if !is_on_the_way(wanted) => Duration::ZERO,
        Some(written) if is_on_the_way(written) => STILL_ON_THE_WAY,
        _ => ON_THE_WAY,
    }
}

/// Pending, and every container waits for something usual.
fn is_on_the_way(status: &Value) -> bool {
    let statuses = ["initContainerStatuses", "containerStatuses"]
        .into_iter()
        .filter_map(|field| status[field].as_array())
        .flatten();
    status["phase"] == "Pending"
        && statuses.map(|c| &c["state"]["waiting"]["reason"]).all(|reason| USUAL.iter().any(|usual| reason == usual))
}

/// The strategic merge patch that turns `written` into `wanted`, under the pod's UID; `None` when nothing changes.
///
/// Lists are sent whole. Conditions merge by type, so other writers' conditions (readiness gates, `PodScheduled`) stay; what
/// a condition had and has no more (a reason, a message) must therefore be nulled by name, and one that passed be deleted so.
pub(super) fn patch(uid: &str, written: Option<&Value>, wanted: &Value) -> Option<Value> {
    let empty = Map::new();
    let before = written.and_then(Value::as_object).unwrap_or(&empty);
    let after = wanted.as_object().unwrap_or(&empty);
    let mut changed = Map::new();
    for (key, value) in after {
        match before.get(key) {
            Some(old) if old == value => {}
            Some(old) if key == "conditions" => {
                changed.insert(key.clone(), conditions(old, value));
            }
            _ => {
                changed.insert(key.clone(), value.clone());
            }
        }
    }
    for key in before.keys() {
        if !after.contains_key(key) {
            changed.insert(key.clone(), Value::Null);
        }
    }
    (!changed.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changed}))
}

/// The conditions of `after`, with a null for each field that the condition of that type had in `before`.
fn conditions(before: &Value, after: &Value) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let before = list(before);
    let with_nulls = |mut condition: Value| {
        let old = before.iter().find(|old| old["type"] == condition["type"]).and_then(Value::as_object);
        if let Some(fields) = condition.as_object_mut() {
            for key in old.into_iter().flat_map(Map::keys) {
                fields.entry(key.clone()).or_insert(Value::Null);
            }
        }
        condition
    };
    let after = list(after);
    let has = |conditions: &[Value], name: &str| conditions.iter().any(|c| c["type"] == name);
    let passed = PASSING.into_iter().filter(|name| has(&before, name) && !has(&after, name));
    let passed: Vec<Value> = passed.map(|name| json!({"type": name, "$patch": "delete"})).collect();
    after.into_iter().map(with_nulls).chain(passed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_passed_is_deleted_and_others_stay() {
        for passing in PASSING {
            let before = json!([{"type": passing, "status": "True"}, {"type": "PodScheduled", "status": "True"}]);
            let after = json!([{"type": "Ready", "status": "True"}]);
            let wanted = json!([{"type": "Ready", "status": "True"}, {"type": passing, "$patch": "delete"}]);
            assert_eq!(conditions(&before, &after), wanted);
            assert_eq!(conditions(&after, &after), after);
        }
    }

    #[test]
    fn a_pod_on_its_way_may_wait_and_news_may_not() {
        let creating =
            json!({"phase":"Pending","containerStatuses":[{"state":{"waiting":{"reason":"ContainerCreating"}}}]});
        let failing = json!({"phase":"Pending","containerStatuses":[{"state":{"waiting":{"reason":"ErrImagePull"}}}]});
        let running = json!({"phase":"Running","containerStatuses":[{"state":{"running":{}}}]});
        assert_eq!(patience(None, &creating), ON_THE_WAY);
        assert_eq!(patience(Some(&creating), &creating), STILL_ON_THE_WAY);
        assert_eq!(patience(Some(&creating), &failing), Duration::ZERO);
        assert_eq!(patience(Some(&creating), &running), Duration::ZERO);
    }

    #[test]
    fn an_init_container_that_failed_is_news() {
        let status = json!({"phase":"Pending",
            "initContainerStatuses":[{"state":{"terminated":{"exitCode":1}}}],
            "containerStatuses":[{"state":{"waiting":{"reason":"PodInitializing"}}}]});
        assert_eq!(patience(None, &status), Duration::ZERO);
    }

    #[test]
    fn only_what_changed_is_sent_and_what_went_is_nulled() {
        let before = json!({"phase":"Pending","message":"waiting","podIP":"10.0.0.1"});
        let after = json!({"phase":"Running","podIP":"10.0.0.1"});
        let patch = patch("u", Some(&before), &after).unwrap();
        assert_eq!(patch, json!({"metadata":{"uid":"u"},"status":{"phase":"Running","message":null}}));
    }

    #[test]
    fn a_condition_that_becomes_true_loses_its_reason() {
        let before = json!({"conditions":[{"type":"Ready","status":"False","reason":"ContainersNotReady"}]});
        let after = json!({"conditions":[{"type":"Ready","status":"True"}]});
        let patch = patch("u", Some(&before), &after).unwrap();
        let ready = &patch["status"]["conditions"][0];
        assert_eq!(ready["status"], "True");
        assert!(ready.as_object().unwrap().contains_key("reason") && ready["reason"].is_null());
    }

    #[test]
    fn an_unchanged_status_is_not_written() {
        let status = json!({"phase":"Running"});
        assert_eq!(patch("u", Some(&status), &status), None);
    }
}
