//! How much a pod may keep on disk, and what a kubelet says when it is more. Pure.

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::usage::Usage;
use crate::quantity::{self, whole};

const STORAGE: &str = "ephemeral-storage";

fn bytes(quantity: &Quantity) -> Option<u64> {
    whole(&quantity.0).ok()
}

/// Something of the pod is limited on disk.
pub fn any(spec: &PodSpec) -> bool {
    pod_limit(spec).is_some()
        || spec.volumes.iter().flatten().filter_map(|volume| volume.empty_dir.as_ref()).any(|empty| {
            empty.medium.as_deref().is_none_or(str::is_empty)
                && empty.size_limit.as_ref().and_then(bytes).is_some_and(|b| b > 0)
        })
}

/// The sum of the containers' limits, those of init containers at their peak; `None` when no container has one.
fn pod_limit(spec: &PodSpec) -> Option<(u64, String)> {
    let limit = |resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>| {
        resources.and_then(|r| r.limits.as_ref()).and_then(|limits| limits.get(STORAGE)).cloned()
    };
    let mut like = None;
    let mut of = |resources| match limit(resources) {
        Some(quantity) => {
            let value = bytes(&quantity).unwrap_or(u64::MAX);
            like.get_or_insert(quantity.0);
            value
        }
        None => 0,
    };
    let main = spec.containers.iter().fold(0u64, |sum, c| sum.saturating_add(of(c.resources.as_ref())));
    let (mut sidecars, mut peak) = (0u64, 0u64);
    for init in spec.init_containers.iter().flatten() {
        let own = of(init.resources.as_ref());
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(own);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.saturating_add(own));
        }
    }
    let sum = main.saturating_add(sidecars).max(peak);
    like.map(|like| (sum, quantity::written_like(&like, sum)))
}

/// What is exceeded, in the kubelet's words and order: an emptyDir, the pod, a container.
pub fn exceeded(spec: &PodSpec, usage: &Usage) -> Option<String> {
    for volume in spec.volumes.iter().flatten() {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|empty| empty.size_limit.as_ref()) else { continue };
        let Some(most) = bytes(limit).filter(|bytes| *bytes > 0) else { continue };
        if usage.empty_dirs.get(&volume.name).is_some_and(|used| *used > most) {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {:?}. ", volume.name, limit.0));
        }
    }
    if let Some((most, text)) = pod_limit(spec)
        && usage.total() > most
    {
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {text}. "));
    }
    for container in &spec.containers {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let Some(limit) = limits.and_then(|limits| limits.get(STORAGE)) else { continue };
        let Some(most) = bytes(limit).filter(|bytes| *bytes > 0) else { continue };
        if usage.containers.get(&container.name).is_some_and(|used| *used > most) {
            return Some(format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                container.name, limit.0
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap()
    }

    fn limited(name: &str, limit: &str) -> serde_json::Value {
        serde_json::json!({"name": name, "resources": {"limits": {"ephemeral-storage": limit}}})
    }

    fn usage(containers: &[(&str, u64)], empty_dirs: &[(&str, u64)]) -> Usage {
        let map = |list: &[(&str, u64)]| list.iter().map(|(n, mib)| ((*n).to_owned(), mib << 20)).collect();
        Usage { containers: map(containers), empty_dirs: map(empty_dirs), other: 0 }
    }

    #[test]
    fn what_is_exceeded_is_said_in_the_kubelets_words_and_order() {
        let pod = spec(serde_json::json!({
            "containers": [limited("a", "1Gi"), limited("b", "512Mi")],
            "volumes": [{"name": "e", "emptyDir": {"sizeLimit": "100Mi"}}]}));
        assert!(any(&pod));
        let said = |containers: &[_], volumes: &[_]| exceeded(&pod, &usage(containers, volumes));
        assert_eq!(said(&[("a", 1024), ("b", 100)], &[("e", 100)]), None);
        assert_eq!(
            said(&[("b", 513)], &[("e", 0)]).unwrap(),
            "Container b exceeded its local ephemeral storage limit \"512Mi\". "
        );
        assert_eq!(
            said(&[("a", 1024), ("b", 513)], &[]).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 1536Mi. "
        );
        assert_eq!(
            said(&[("a", 2048)], &[("e", 101)]).unwrap(),
            "Usage of EmptyDir volume \"e\" exceeds the limit \"100Mi\". "
        );
    }

    #[test]
    fn a_pod_without_limits_is_not_looked_at_and_zero_is_none() {
        let of = |volumes| spec(serde_json::json!({"containers": [{"name": "a"}], "volumes": volumes}));
        assert!(!any(&of(serde_json::json!([]))));
        assert!(!any(&of(serde_json::json!([{"name": "e", "emptyDir": {"sizeLimit": "0"}}]))));
        assert!(!any(&of(serde_json::json!([{"name": "e", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]))));
        let pages = serde_json::json!([{"name": "e", "emptyDir": {"medium": "HugePages", "sizeLimit": "2Mi"}}]);
        assert!(!any(&of(pages)));
        assert_eq!(exceeded(&of(serde_json::json!([])), &usage(&[("a", 1 << 20)], &[("e", 5)])), None);
    }

    #[test]
    fn one_container_without_a_limit_is_counted_against_those_of_the_others() {
        let pod = spec(serde_json::json!({"containers": [limited("a", "1G"), {"name": "b"}]}));
        assert_eq!(
            exceeded(&pod, &usage(&[("b", 1024)], &[])).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 1G. "
        );
    }
}
