//! What a newer version of a pod asks for that this version does not do to a pod that it has: named, and kept as it was, so that
//! status, ledger and restarts go on telling and doing what is true. Pure.

use serde_json::{Map, Value};

/// Puts what cannot be changed back into `new`, as it stands in `old`; the paths of what was asked for in vain.
pub fn keep(old: &Value, new: &mut Value) -> Vec<String> {
    let mut kept = Vec::new();
    let (old, Some(spec)) = (&old["spec"], new.get_mut("spec").and_then(Value::as_object_mut)) else { return kept };
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            let before = old[list].as_array().into_iter().flatten().find(|c| c["name"] == name.as_str());
            if let (Some(before), Some(container)) = (before, container.as_object_mut()) {
                keep_resources(before, container, &format!("spec.{list}[{name}].resources"), &mut kept);
            }
        }
    }
    keep_resources(old, spec, "spec.resources", &mut kept);
    for container in spec.get("ephemeralContainers").and_then(Value::as_array).into_iter().flatten() {
        kept.push(format!("spec.ephemeralContainers[{}]", container["name"].as_str().unwrap_or_default()));
    }
    kept
}

fn keep_resources(before: &Value, now: &mut Map<String, Value>, path: &str, kept: &mut Vec<String>) {
    let (before, asked) = (&before["resources"], now.get("resources").unwrap_or(&Value::Null));
    if before == asked || (is_nothing(before) && is_nothing(asked)) {
        return;
    }
    now.insert("resources".to_owned(), before.clone());
    kept.push(path.to_owned());
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

/// Whether a resize is among them.
pub fn has_resize(kept: &[String]) -> bool {
    kept.iter().any(|path| is_resize(path))
}

/// Whether a path is that of resources.
pub fn is_resize(path: &str) -> bool {
    path.ends_with(".resources")
}

/// The Event's message.
pub fn message(kept: &[String]) -> String {
    format!("this version of nodeless cannot change in a running pod, and keeps as it was: {}", kept.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(cpu: &str) -> Value {
        let resources = json!({"requests": {"cpu": cpu}});
        json!({"spec": {"containers": [{"name": "a", "resources": resources}, {"name": "b", "resources": {}}]}})
    }

    #[test]
    fn a_resize_is_named_and_what_runs_is_kept() {
        let mut new = pod("2");
        assert_eq!(keep(&pod("1"), &mut new), ["spec.containers[a].resources"]);
        assert_eq!(new, pod("1"));
        assert!(has_resize(&keep(&pod("1"), &mut pod("2"))));
    }

    #[test]
    fn other_changes_pass_and_nothing_is_nothing() {
        let mut new = pod("1");
        new["metadata"] = json!({"labels": {"a": "b"}});
        new["spec"]["containers"][1].as_object_mut().unwrap().remove("resources");
        new["spec"]["activeDeadlineSeconds"] = 5.into();
        let asked = new.clone();
        assert!(keep(&pod("1"), &mut new).is_empty());
        assert_eq!(new, asked);
    }

    #[test]
    fn an_ephemeral_container_is_named() {
        let mut new = pod("1");
        new["spec"]["ephemeralContainers"] = json!([{"name": "debugger"}]);
        let kept = keep(&pod("1"), &mut new);
        assert_eq!(kept, ["spec.ephemeralContainers[debugger]"]);
        assert!(!has_resize(&kept));
    }
}
