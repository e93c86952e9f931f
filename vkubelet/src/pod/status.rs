//! Statuses that vkubelet itself says: while a pod waits, after a refusal, when its host is lost. Pure.

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

/// The pod waits before any agent has it: Pending, every container waiting for this reason.
#[must_use]
pub fn waiting(pod: &Pod, reason: &str, message: &str, now: &str) -> Value {
    let spec = pod.spec.as_ref();
    let states = |containers: &mut dyn Iterator<Item = &Container>| -> Vec<Value> {
        containers
            .map(|c| {
                json!({
                    "name": c.name, "image": c.image.clone().unwrap_or_default(), "imageID": "", "ready": false,
                    "started": false, "restartCount": 0,
                    "state": {"waiting": {"reason": reason, "message": message}},
                })
            })
            .collect()
    };
    let init = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let containers = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let not_yet = |type_: &str| json!({"type": type_, "status": "False", "reason": reason, "message": message, "lastTransitionTime": now});
    let mut status = json!({
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
            not_yet("Initialized"), not_yet("ContainersReady"), not_yet("Ready"),
        ],
        "containerStatuses": states(&mut containers.iter()),
        "qosClass": pod.status.as_ref().and_then(|s| s.qos_class.clone()).unwrap_or_else(|| "BestEffort".to_owned()),
    });
    if !init.is_empty() {
        status["initContainerStatuses"] = states(&mut init.iter()).into();
    }
    status
}

/// The pod was refused: Failed, with the reason as a kubelet gives it when it rejects a pod.
#[must_use]
pub fn refused(pod: &Pod, reason: &str, message: &str, now: &str) -> Value {
    let mut status = waiting(pod, reason, message, now);
    status["phase"] = "Failed".into();
    status["reason"] = reason.into();
    status["message"] = message.into();
    for list in ["containerStatuses", "initContainerStatuses"] {
        for container in status[list].as_array_mut().into_iter().flatten() {
            container["state"] = json!({"waiting": {"reason": "Refused"}});
        }
    }
    status
}

/// The pod was never admitted: as little as a kubelet says of such a pod, so that tools show the reason.
#[must_use]
pub fn rejected(pod: &Pod, reason: &str, message: &str) -> Value {
    let qos = pod.status.as_ref().and_then(|status| status.qos_class.clone());
    json!({
        "phase": "Failed", "reason": reason, "message": message,
        "qosClass": qos.unwrap_or_else(|| "BestEffort".to_owned()),
    })
}

/// An image of the pod could not be had, and will be asked for again.
#[must_use]
pub fn lacks_image(status: &Value) -> bool {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    lists.iter().flat_map(|list| status[list].as_array().into_iter().flatten()).any(|container| {
        matches!(container["state"]["waiting"]["reason"].as_str(), Some("ErrImagePull" | "ImagePullBackOff"))
    })
}

/// The host does not answer: what was last known, and not ready. The phase stays: the containers may well run.
#[must_use]
pub fn host_lost(last: &Value, host: &str, now: &str) -> Value {
    let mut status = last.clone();
    let message = format!("host {host} does not answer; the pod may still run there");
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if condition["type"] == "Ready" && condition["status"] == "True" {
            condition["status"] = "False".into();
            condition["reason"] = "HostLost".into();
            condition["message"] = message.clone().into();
            condition["lastTransitionTime"] = now.into();
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}}))
            .unwrap()
    }

    #[test]
    fn a_waiting_pod_is_pending_and_a_valid_status() {
        let status = waiting(&pod(), "CreateContainerConfigError", "no map", "2026-01-01T00:00:00Z");
        let typed: k8s_openapi::api::core::v1::PodStatus = serde_json::from_value(status).unwrap();
        assert_eq!(typed.phase.as_deref(), Some("Pending"));
        let waiting = typed.container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("CreateContainerConfigError"));
        assert_eq!(typed.init_container_statuses.unwrap().len(), 1);
    }

    #[test]
    fn an_image_that_could_not_be_had_is_seen_in_any_container() {
        for (reason, lacks) in [("ErrImagePull", true), ("ImagePullBackOff", true), ("CrashLoopBackOff", false)] {
            let status = waiting(&pod(), reason, "", "2026-01-01T00:00:00Z");
            assert_eq!(lacks_image(&status), lacks, "{reason}");
            let only_init = json!({"initContainerStatuses": status["initContainerStatuses"]});
            assert_eq!(lacks_image(&only_init), lacks, "{reason}");
        }
    }

    #[test]
    fn a_refused_pod_has_failed_by_name() {
        let status = refused(&pod(), "UnsupportedField", "spec.x", "2026-01-01T00:00:00Z");
        assert_eq!((status["phase"].as_str(), status["reason"].as_str()), (Some("Failed"), Some("UnsupportedField")));
    }

    #[test]
    fn a_lost_host_takes_readiness_only() {
        let last = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}]});
        let status = host_lost(&last, "h", "2026-01-01T00:00:00Z");
        assert_eq!(status["phase"], "Running");
        assert_eq!(status["conditions"][0]["status"], "False");
        assert_eq!(status["conditions"][1]["status"], "True");
    }
}
