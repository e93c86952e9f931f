//! `oom_score_adj`: whom the kernel ends first when the host runs out of memory. As a kubelet computes it. Pure.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::resources::{Qos, qos, requests};
use crate::quantity::QuantityError;

/// For pods that should be the last.
const GUARANTEED: i64 = -997;
/// For pods that should be the first.
const BEST_EFFORT: i64 = 1000;

/// The value for one container. `host_memory` is the host's, in bytes.
pub(super) fn score_adj(spec: &PodSpec, container: &Container, host_memory: u64) -> Result<i32, QuantityError> {
    let host = i128::from(host_memory.max(1));
    let score = |bytes: i128| i64::try_from(1000 - 1000 * bytes / host).unwrap_or(0);
    let value = match qos(spec) {
        _ if spec.priority_class_name.as_deref() == Some("system-node-critical") => GUARANTEED,
        Qos::Guaranteed => GUARANTEED,
        Qos::BestEffort => BEST_EFFORT,
        Qos::Burstable => {
            let own = i128::from(requests(container.resources.as_ref())?.memory) + share_of_pod(spec)?;
            let mut value = score(own);
            if is_sidecar(spec, container) {
                // It goes no earlier than those it serves.
                let mut least = None::<i128>;
                for main in &spec.containers {
                    let bytes = i128::from(requests(main.resources.as_ref())?.memory);
                    least = Some(least.map_or(bytes, |least| least.min(bytes)));
                }
                value = value.min(score(least.unwrap_or(0)));
            }
            // Between the Guaranteed and the BestEffort.
            value.clamp(1000 + GUARANTEED, BEST_EFFORT - 1)
        }
    };
    Ok(i32::try_from(value).unwrap_or(1000))
}

fn is_sidecar(spec: &PodSpec, container: &Container) -> bool {
    spec.init_containers
        .iter()
        .flatten()
        .any(|init| init.name == container.name && init.restart_policy.as_deref() == Some("Always"))
}

/// What the pod itself requests beyond its containers, in equal parts.
fn share_of_pod(spec: &PodSpec) -> Result<i128, QuantityError> {
    let Some(pod) = &spec.resources else { return Ok(0) };
    let mut rest = i128::from(requests(Some(pod))?.memory);
    let sidecars =
        spec.init_containers.iter().flatten().filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let mut count = 0;
    for container in sidecars.chain(&spec.containers) {
        rest -= i128::from(requests(container.resources.as_ref())?.memory);
        count += 1;
    }
    Ok(if count == 0 { 0 } else { rest.max(0) / count })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: serde_json::Value, name: &str) -> i32 {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
        score_adj(&spec, all.find(|c| c.name == name).unwrap(), 4 << 30).unwrap()
    }

    #[test]
    fn burstable_containers_stand_between_guaranteed_and_best_effort_by_their_request() {
        let one = |resources: serde_json::Value| {
            of(serde_json::json!({"containers": [{"name": "a", "resources": resources}]}), "a")
        };
        assert_eq!(one(serde_json::json!({})), 1000);
        assert_eq!(one(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}})), -997);
        assert_eq!(one(serde_json::json!({"requests": {"memory": "1Gi"}})), 750);
        assert_eq!(one(serde_json::json!({"requests": {"cpu": "1"}})), 999);
        assert_eq!(one(serde_json::json!({"requests": {"memory": "4Gi"}})), 3);
        assert_eq!(one(serde_json::json!({"requests": {"memory": "9Gi"}})), 3);
    }

    #[test]
    fn a_sidecar_is_ended_no_earlier_than_those_it_serves() {
        let spec = serde_json::json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"memory": "1Mi"}}},
                {"name": "i", "resources": {"requests": {"memory": "1Mi"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"memory": "2Gi"}}},
                {"name": "b", "resources": {"requests": {"memory": "1Gi"}}}]});
        assert_eq!(["s", "i", "a", "b"].map(|name| of(spec.clone(), name)), [750, 999, 500, 750]);
    }

    #[test]
    fn a_pods_own_request_is_shared_by_its_containers_and_a_critical_pod_goes_last() {
        let spec = serde_json::json!({"resources": {"requests": {"memory": "3Gi"}},
            "containers": [{"name": "a", "resources": {"requests": {"memory": "1Gi"}}}, {"name": "b"}]});
        assert_eq!(["a", "b"].map(|name| of(spec.clone(), name)), [500, 750]);
        let critical = serde_json::json!({"priorityClassName": "system-node-critical", "containers": [{"name": "a"}]});
        assert_eq!(of(critical, "a"), -997);
    }
}
