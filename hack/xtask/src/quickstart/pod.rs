//! The show's pod: its manifest, and how to read what the node says of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What the pod does: three seconds of a life that can be watched.
const SCRIPT: &str = "echo \"hello from pod $(hostname), kernel $(uname -r)\"
for second in 1 2 3; do sleep 1; echo \"second $second\"; done
echo bye";

/// The pod as one would write it.
pub(crate) fn manifest(name: &str, image: &str, command: &[String]) -> Value {
    let script = ["sh", "-c", SCRIPT].map(str::to_owned);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": if command.is_empty() { &script[..] } else { command },
                "resources": {"limits": {"cpu": "250m", "memory": "32Mi"}},
            }],
        },
    })
}

/// Puts the manifest into the node's directory, whole.
pub(crate) fn write(dir: &Path, name: &str, manifest: &Value) -> Result<()> {
    let (hidden, path) = (dir.join(format!(".{name}.new")), dir.join(format!("{name}.json")));
    fs::write(&hidden, manifest.to_string()).with_context(|| format!("cannot write {}", hidden.display()))?;
    fs::rename(&hidden, &path).with_context(|| format!("cannot write {}", path.display()))
}

/// Takes the manifest away, which ends the pod.
pub(crate) fn remove(dir: &Path, name: &str) -> Result<()> {
    let path = dir.join(format!("{name}.json"));
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Whether the pod has ended, well or not.
pub(crate) fn is_over(pod: &Value) -> bool {
    matches!(pod["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// Why a pod is not where it should be, from everything that the node says of it.
pub(crate) fn explain(pod: &Value) -> String {
    if pod.is_null() {
        return "the node did not show the pod at all".to_owned();
    }
    let mut said = vec![format!("phase {}", pod["phase"].as_str().unwrap_or("unknown"))];
    said.extend(pod["waiting"].as_str().filter(|waiting| !waiting.is_empty()).map(str::to_owned));
    for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
        for state in ["waiting", "terminated"] {
            let state = &container["state"][state];
            if let Some(reason) = state["reason"].as_str() {
                said.push(format!("{reason} {}", state["message"].as_str().unwrap_or_default()));
            }
        }
    }
    if let Some(event) = pod["events"].as_array().and_then(|events| events.last()) {
        said.push(format!("last event: {}", event["message"].as_str().unwrap_or_default()));
    }
    said.join("; ")
}
