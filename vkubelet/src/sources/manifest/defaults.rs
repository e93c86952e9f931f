//! The defaults that the API server gives a Pod (`pkg/apis/core/v1/defaults.go`), for pods that never meet it. Pure.

use serde_json::{Map, Value, json};

/// Adds what is missing. `pod` is a Pod that parsed.
pub(super) fn apply(pod: &mut Value, node_name: &str) {
    let meta = child(pod, "metadata");
    default(meta, "namespace", json!("default"));
    let annotations = child(&mut pod["metadata"], "annotations");
    default(annotations, "kubernetes.io/config.source", json!("file"));
    let spec = child(pod, "spec");
    spec.insert("nodeName".to_owned(), json!(node_name));
    for (key, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("enableServiceLinks", json!(true)),
        ("securityContext", json!({})),
    ] {
        default(spec, key, value);
    }
    for list in ["initContainers", "containers"] {
        each(spec, list, container);
    }
    each(spec, "volumes", volume);
}

fn child<'v>(value: &'v mut Value, key: &str) -> &'v mut Map<String, Value> {
    let slot = &mut value[key];
    if !slot.is_object() {
        *slot = json!({});
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("set to an object above"),
    }
}

fn default(map: &mut Map<String, Value>, key: &str, value: Value) {
    let missing = map.get(key).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
    if missing {
        map.insert(key.to_owned(), value);
    }
}

fn each(map: &mut Map<String, Value>, list: &str, change: fn(&mut Map<String, Value>)) {
    for item in map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(item) = item {
            change(item);
        }
    }
}

fn inner<'m>(map: &'m mut Map<String, Value>, key: &str) -> Option<&'m mut Map<String, Value>> {
    map.get_mut(key).and_then(Value::as_object_mut)
}

fn container(c: &mut Map<String, Value>) {
    let policy = pull_policy(c.get("image").and_then(Value::as_str).unwrap_or_default());
    default(c, "imagePullPolicy", json!(policy));
    default(c, "terminationMessagePath", json!("/dev/termination-log"));
    default(c, "terminationMessagePolicy", json!("File"));
    default(c, "resources", json!({}));
    each(c, "ports", |port| default(port, "protocol", json!("TCP")));
    each(c, "env", |env| {
        if let Some(field) = inner(env, "valueFrom").and_then(|from| inner(from, "fieldRef")) {
            default(field, "apiVersion", json!("v1"));
        }
    });
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = inner(c, probe) {
            handler(probe);
            default(probe, "timeoutSeconds", json!(1));
            default(probe, "periodSeconds", json!(10));
            default(probe, "successThreshold", json!(1));
            default(probe, "failureThreshold", json!(3));
        }
    }
    if let Some(lifecycle) = inner(c, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = inner(lifecycle, hook) {
                handler(hook);
            }
        }
    }
    if let Some(resources) = inner(c, "resources") {
        requests_from_limits(resources);
    }
}

fn handler(action: &mut Map<String, Value>) {
    if let Some(get) = inner(action, "httpGet") {
        default(get, "path", json!("/"));
        default(get, "scheme", json!("HTTP"));
    }
    if let Some(grpc) = inner(action, "grpc") {
        grpc.entry("service").or_insert_with(|| json!(""));
    }
}

fn requests_from_limits(resources: &mut Map<String, Value>) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let requests = resources.entry("requests").or_insert_with(|| json!({}));
    if let Value::Object(requests) = requests {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

/// `Always` for `:latest` or no tag, else `IfNotPresent`; a local layout is never pulled twice.
fn pull_policy(image: &str) -> &'static str {
    if image.starts_with("oci-layout:") || image.starts_with("docker-archive:") || image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn volume(volume: &mut Map<String, Value>) {
    if !volume.keys().any(|key| key != "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = inner(volume, source) {
            default(source, "defaultMode", json!(0o644));
        }
    }
    if let Some(path) = inner(volume, "hostPath") {
        path.entry("type").or_insert_with(|| json!(""));
    }
    if let Some(projected) = inner(volume, "projected") {
        each(projected, "sources", |source| {
            if let Some(token) = inner(source, "serviceAccountToken") {
                default(token, "expirationSeconds", json!(3600));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, want) in [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("host:5000/busybox", "Always"),
            ("host:5000/busybox:1", "IfNotPresent"),
            ("busybox@sha256:00", "IfNotPresent"),
            ("oci-layout:/x", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn what_is_given_stays() {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"restartPolicy": "Never",
            "containers": [{"name": "a", "image": "b", "imagePullPolicy": "Never",
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 5}}],
            "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "m", "defaultMode": 256}}]}});
        apply(&mut pod, "node");
        let spec = &pod["spec"];
        assert_eq!(spec["restartPolicy"], "Never");
        let c = &spec["containers"][0];
        assert_eq!(c["imagePullPolicy"], "Never");
        assert_eq!(c["resources"]["requests"], json!({"cpu": "100m", "memory": "1Gi"}));
        assert_eq!(
            c["livenessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
            "periodSeconds": 5, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["configMap"]["defaultMode"], 256);
        assert_eq!(pod["metadata"]["namespace"], "n");
        let once = pod.clone();
        apply(&mut pod, "node");
        assert_eq!(pod, once);
    }
}
