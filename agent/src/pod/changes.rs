//! What a newer version of a pod asks for that this version does not do to a pod that it has: named, and kept as it was, so that
//! status, ledger and restarts go on telling and doing what is true. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::spec::scalars;

/// Puts what cannot be changed back into `new`, as it stands in `old`; the paths of what was asked for in vain.
pub fn keep(old: &Value, new: &mut Value) -> Vec<String> {
    let mut kept = Vec::new();
    let (old, Some(spec)) = (&old["spec"], new.get_mut("spec").and_then(Value::as_object_mut)) else { return kept };
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            let before = old[list].as_array().into_iter().flatten().find(|c| c["name"] == name.as_str());
            if let (Some(before), Some(container)) = (before, container.as_object_mut()) {
                keep_counted(before, container, &format!("spec.{list}[{name}].resources"), &mut kept);
                keep_resources(before, container, &format!("spec.{list}[{name}].resources"), &mut kept);
            }
        }
    }
    keep_resources(old, spec, "spec.resources", &mut kept);
    kept
}

/// As [`keep`], for the images of containers that were made: what runs goes on, and starts again from what it had.
pub fn keep_images(old: &Value, new: &mut Value, made: impl Fn(&str) -> bool) -> Vec<String> {
    let mut kept = Vec::new();
    for list in ["initContainers", "containers"] {
        let containers = new["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            let before = old["spec"][list].as_array().into_iter().flatten().find(|c| c["name"] == name.as_str());
            let had = before.and_then(|before| before.get("image"));
            if let Some(had) = had.filter(|had| made(&name) && container.get("image") != Some(had)) {
                container.insert("image".to_owned(), had.clone());
                kept.push(format!("spec.{list}[{name}].image"));
            }
        }
    }
    kept
}

/// As [`keep`], for what is given to a pod once: huge pages and devices.
pub fn keep_scalars(old: &Value, new: &mut Value) {
    for list in ["initContainers", "containers"] {
        let containers = new["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let name = container.get("name").cloned().unwrap_or_default();
            let before = old["spec"][list].as_array().into_iter().flatten().find(|c| c["name"] == name);
            keep_counted(before.unwrap_or(&Value::Null), container, "", &mut Vec::new());
        }
    }
}

fn keep_counted(before: &Value, container: &mut Map<String, Value>, path: &str, kept: &mut Vec<String>) {
    let names = |map: &Value| {
        let keys: Vec<String> = map.as_object().into_iter().flat_map(Map::keys).cloned().collect();
        keys.into_iter().filter(|name| scalars::is_scalar(name))
    };
    for kind in ["limits", "requests"] {
        let had = before["resources"][kind].clone();
        let asked = container.get("resources").map(|resources| resources[kind].clone()).unwrap_or_default();
        let all: BTreeSet<String> = names(&had).chain(names(&asked)).collect();
        for name in all.into_iter().filter(|name| had.get(name) != asked.get(name)) {
            kept.push(format!("{path}.{kind}[{name}]"));
            let resources = container.entry("resources").or_insert_with(|| Value::Object(Map::new()));
            match had.get(&name) {
                Some(value) => resources[kind][&name] = value.clone(),
                None => drop(resources[kind].as_object_mut().and_then(|map| map.remove(&name))),
            }
        }
    }
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
    fn the_image_of_what_was_made_is_named_and_kept_and_that_of_nothing_yet_is_changed() {
        let with = |images: [&str; 2]| {
            let container = |(name, image): (&str, &str)| json!({"name": name, "image": image});
            let containers: Vec<Value> = ["a", "b"].into_iter().zip(images).map(container).collect();
            json!({"spec": {"containers": containers}})
        };
        let mut new = with(["x:2", "y:2"]);
        let kept = keep_images(&with(["x:1", "y:1"]), &mut new, |name| name == "a");
        assert_eq!((kept, new), (vec!["spec.containers[a].image".to_owned()], with(["x:1", "y:2"])));
        let mut same = with(["x:1", "y:1"]);
        assert!(keep_images(&with(["x:1", "y:1"]), &mut same, |_| true).is_empty());
    }

    #[test]
    fn huge_pages_and_devices_stay_as_they_were_given_beside_a_resize() {
        let with = |resources: Value| json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
        let old = with(json!({"limits": {"cpu": "1", "a.com/x": "1", "hugepages-2Mi": "2Mi"}}));
        let mut new = with(json!({"limits": {"cpu": "2", "a.com/x": "2", "b.com/y": "1"}}));
        let mut wanted = new.clone();
        let path = "spec.containers[a].resources";
        let counted = ["a.com/x", "b.com/y", "hugepages-2Mi"].map(|name| format!("{path}.limits[{name}]"));
        assert_eq!(keep(&old, &mut new), [&counted[..], &[path.to_owned()]].concat());
        assert_eq!(new, old);
        keep_scalars(&old, &mut wanted);
        assert_eq!(wanted, with(json!({"limits": {"cpu": "2", "a.com/x": "1", "hugepages-2Mi": "2Mi"}})));
        let mut none = json!({"spec": {"containers": [{"name": "a"}]}});
        keep_scalars(&old, &mut none);
        assert_eq!(none, with(json!({"limits": {"a.com/x": "1", "hugepages-2Mi": "2Mi"}})));
    }
}
