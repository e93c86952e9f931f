//! Ephemeral containers (`kubectl debug`): in most respects containers like others, added to a pod that runs, run once. Pure.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};
use serde_json::Value;

use super::refusals;
use crate::intent::Intent;
use crate::trust::Trust;

/// What an ephemeral container has beside what every container has.
const TARGET: &str = "targetContainerName";

/// The same as a container; without its target.
pub fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let mut value = serde_json::to_value(ephemeral).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove(TARGET);
    }
    // Each of its fields is one of a container's.
    serde_json::from_value(value).unwrap_or_default()
}

/// The ephemeral container of this name.
pub fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a EphemeralContainer> {
    pod.spec.as_ref()?.ephemeral_containers.iter().flatten().find(|container| container.name == name)
}

/// The container whose processes it is to see.
pub fn target(pod: &Pod, name: &str) -> Option<String> {
    find(pod, name)?.target_container_name.clone().filter(|target| !target.is_empty())
}

/// Why the ephemeral container of this name is not started: what it asks for, judged as a container's of its pod. Another pod
/// would be refused for it; this one runs already, and goes on.
pub fn refusal(intent: &Intent, name: &str, trust: &Trust) -> Option<String> {
    let mut raw = (*intent.raw).clone();
    let spec = raw.get_mut("spec")?.as_object_mut()?;
    let mut own = spec.remove("ephemeralContainers")?.as_array()?.iter().find(|c| c["name"] == name)?.clone();
    own.as_object_mut()?.remove(TARGET);
    spec.remove("initContainers");
    spec.insert("containers".to_owned(), Value::Array(vec![own]));
    let pod = serde_json::from_value(raw.clone()).ok()?;
    let alone = Intent { raw: raw.into(), pod: std::sync::Arc::new(pod), ..intent.clone() };
    let found = refusals::find(&alone, trust);
    if let Some((_, message)) = found.verdict {
        return Some(message);
    }
    let own = found.refused.iter().filter_map(|path| path.strip_prefix("spec.containers["));
    let paths: Vec<String> = own.map(|rest| format!("spec.ephemeralContainers[{rest}")).collect();
    (!paths.is_empty()).then(|| refusals::refused_message(&paths))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::Source;
    use serde_json::json;

    fn intent(ephemeral: &Value) -> Intent {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {
                "containers": [{"name": "c", "image": "x:1", "securityContext": {"privileged": true}}],
                "ephemeralContainers": [ephemeral, {"name": "other", "image": "x:1", "securityContext": {"privileged": true}}]
            }
        });
        Intent::new("u".to_owned(), 1, pod, Default::default(), Source::Kubernetes, None).unwrap()
    }

    #[test]
    fn an_ephemeral_container_is_a_container_with_a_target() {
        let value = json!({"name": "d", "image": "x:1", "command": ["sh"], "stdin": true, "tty": true,
            "targetContainerName": "c", "env": [{"name": "A", "value": "b"}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}], "securityContext": {"runAsUser": 5}});
        let intent = intent(&value);
        let found = find(&intent.pod, "d").unwrap();
        let mut plain = value.clone();
        plain.as_object_mut().unwrap().remove(TARGET);
        assert_eq!(serde_json::to_value(as_container(found)).unwrap(), plain);
        assert_eq!(target(&intent.pod, "d").as_deref(), Some("c"));
        assert_eq!((target(&intent.pod, "other"), target(&intent.pod, "c")), (None, None));
    }

    #[test]
    fn it_is_refused_for_what_it_asks_for_itself() {
        let trust = Trust::default();
        assert_eq!(
            refusal(&intent(&json!({"name": "d", "image": "x:1", "targetContainerName": "c"})), "d", &trust),
            None
        );
        let asks = json!({"name": "d", "image": "x:1", "securityContext": {"privileged": true}});
        let words = refusal(&intent(&asks), "d", &trust).unwrap();
        assert!(
            words.contains("spec.ephemeralContainers[d].securityContext.privileged (host policy: --allow"),
            "{words}"
        );
        assert!(!words.contains("other"), "{words}");
    }
}
