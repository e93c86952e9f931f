//! A change of a running pod's resources: what it means for the kernel, and the kubelet's words. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use sandbox::contract::SandboxStats;
use sandbox::spec::Resources;
use serde::{Deserialize, Serialize};

use crate::pod::spec::resources::{self, Amounts, Policy};
use crate::quantity::QuantityError;

/// A change that was allocated and is being carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resizing {
    /// The pod's generation that asked for it.
    pub generation: i64,
    /// What each container had before, and still has as far as anyone knows.
    pub before: BTreeMap<String, ResourceRequirements>,
    /// The same of the pod itself.
    #[serde(default)]
    pub pod: Option<ResourceRequirements>,
    /// Why it could not be carried out so far.
    pub error: Option<String>,
}

/// A change that waits for room.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    /// The pod as it is wanted.
    pub pod: serde_json::Value,
    /// Why it waits, once that is known.
    pub message: Option<String>,
    /// This host can never make it, whatever others give back: it is not tried again.
    #[serde(default)]
    pub infeasible: bool,
}

/// Why a host that has so much in all can never make a change to so much, in the kubelet's words.
pub fn infeasible(has: Amounts, wanted: Amounts) -> Option<String> {
    let lacks = |name: &str, wanted: u64, has: u64| {
        (wanted > has)
            .then(|| format!("Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {has}"))
    };
    lacks("memory", wanted.memory, has.memory).or_else(|| lacks("cpu", wanted.milli_cpu, has.milli_cpu))
}

fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// Each container's resources.
pub fn by_container(spec: &PodSpec) -> BTreeMap<String, ResourceRequirements> {
    all(spec).map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

/// What is to be done to a sandbox whose pod becomes another.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps {
    /// The pod's limits while both sets are in use.
    pub wide: Resources,
    /// Limits of containers that take them as they run.
    pub in_place: BTreeMap<String, Resources>,
    /// Containers that must be started again to take theirs.
    pub restarted: Vec<String>,
    /// The pod's limits in the end.
    pub narrow: Resources,
}

/// From the resources that running containers have to those of `new`.
pub fn steps(
    before: &BTreeMap<String, ResourceRequirements>,
    old: &PodSpec,
    new: &PodSpec,
    running: &[String],
    host_memory: u64,
    policy: &Policy,
) -> Result<Steps, QuantityError> {
    let narrow = resources::of_pod(new, policy)?;
    let mut steps = Steps {
        wide: wider(&resources::of_pod(old, policy)?, &narrow),
        in_place: BTreeMap::new(),
        restarted: Vec::new(),
        narrow,
    };
    for container in all(new).filter(|container| running.contains(&container.name)) {
        let now = container.resources.clone().unwrap_or_default();
        let Some(had) = before.get(&container.name).filter(|had| **had != now) else { continue };
        if must_restart(container, had, &now) {
            steps.restarted.push(container.name.clone());
        } else {
            let limits = resources::of_container(new, container, host_memory, policy)?;
            steps.in_place.insert(container.name.clone(), limits);
        }
    }
    Ok(steps)
}

/// Whether a resource changes whose policy says that the container is to be started again.
fn must_restart(container: &Container, had: &ResourceRequirements, now: &ResourceRequirements) -> bool {
    let changed = |name: &str| {
        let of = |map: &Option<BTreeMap<String, _>>| map.as_ref().and_then(|map| map.get(name)).cloned();
        of(&had.limits) != of(&now.limits) || of(&had.requests) != of(&now.requests)
    };
    let policies = container.resize_policy.iter().flatten();
    policies.filter(|policy| policy.restart_policy == "RestartContainer").any(|policy| changed(&policy.resource_name))
}

/// Limits within which both fit.
fn wider(a: &Resources, b: &Resources) -> Resources {
    let most = |a: Option<u64>, b: Option<u64>| Some(a?.max(b?));
    Resources {
        cpu_shares: a.cpu_shares.max(b.cpu_shares),
        cpu_quota_us: most(a.cpu_quota_us, b.cpu_quota_us),
        memory_limit: most(a.memory_limit, b.memory_limit),
        memory_min: a.memory_min.max(b.memory_min),
        memory_low: a.memory_low.max(b.memory_low),
        ..b.clone()
    }
}

/// A limit that sinks below what is used now is refused, as a kubelet refuses it.
pub fn check_memory(steps: &Steps, old: &Sizes, used: &SandboxStats) -> Result<(), String> {
    let sinks = |new: Option<u64>, old: Option<u64>| new.filter(|new| old.is_none_or(|old| *new < old));
    let mut problems = Vec::new();
    if let Some(limit) = sinks(steps.narrow.memory_limit, old.pod)
        && used.pod.memory_bytes >= limit
    {
        let now = used.pod.memory_bytes;
        problems.push(format!("attempting to set pod memory limit ({limit}) below current usage ({now})"));
    }
    for (name, limits) in &steps.in_place {
        let now = used.containers.get(name).map_or(0, |usage| usage.memory_bytes);
        if let Some(limit) = sinks(limits.memory_limit, old.containers.get(name).copied().flatten())
            && now >= limit
        {
            problems.push(format!(
                "attempting to set container {name:?} memory limit ({limit}) below current usage ({now})"
            ));
        }
    }
    match problems.len() {
        0 => Ok(()),
        1 => Err(problems.remove(0)),
        _ => Err(format!("[{}]", problems.join(", "))),
    }
}

/// Memory limits in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The pod's.
    pub pod: Option<u64>,
    /// Each container's.
    pub containers: BTreeMap<String, Option<u64>>,
}

/// The memory limits of a pod.
pub fn sizes(old: &PodSpec, before: &BTreeMap<String, ResourceRequirements>, policy: &Policy) -> Sizes {
    let limit = |resources: &ResourceRequirements| {
        let quantity = resources.limits.as_ref().and_then(|limits| limits.get("memory"))?;
        crate::quantity::whole(&quantity.0).ok()
    };
    Sizes {
        pod: resources::of_pod(old, policy).ok().and_then(|pod| pod.memory_limit),
        containers: before.iter().map(|(name, resources)| (name.clone(), limit(resources))).collect(),
    }
}

/// The pod's specification as it was before.
pub fn with_resources(pod: &Pod, resizing: &Resizing) -> PodSpec {
    let mut spec = pod.spec.clone().unwrap_or_default();
    spec.resources.clone_from(&resizing.pod);
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        if let Some(had) = resizing.before.get(&container.name) {
            container.resources = Some(had.clone());
        }
    }
    spec
}

/// An Event's message, as a kubelet writes it.
pub fn message(what: &str, pod: &Pod, error: Option<&str>) -> String {
    let one = |container: &Container| {
        let resources = serde_json::to_value(&container.resources).unwrap_or_default();
        let resources = if resources.is_null() { serde_json::json!({}) } else { resources };
        format!("{{\"name\":{:?},\"resources\":{resources}}}", container.name)
    };
    let list = |containers: Vec<String>| format!("[{}]", containers.join(","));
    let spec = pod.spec.as_ref();
    let init: Vec<String> = spec.iter().flat_map(|s| s.init_containers.iter().flatten()).map(one).collect();
    let main: Vec<String> = spec.iter().flat_map(|s| &s.containers).map(one).collect();
    let mut parts = Vec::new();
    if !init.is_empty() {
        parts.push(format!("\"initContainers\":{}", list(init)));
    }
    parts.push(format!("\"containers\":{}", list(main)));
    parts.push(format!("\"generation\":{}", pod.metadata.generation.unwrap_or_default()));
    if let Some(error) = error {
        parts.push(format!("\"error\":{}", serde_json::Value::from(error)));
    }
    format!("Pod resize {what}: {{{}}}", parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox::contract::Usage;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"generation": 2}, "spec": {"containers": containers}}))
            .unwrap()
    }

    fn sized(name: &str, cpu: &str, memory: &str) -> serde_json::Value {
        serde_json::json!({"name": name, "resources": {
            "requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}}})
    }

    fn plan(old: &Pod, new: &Pod) -> Steps {
        let (old, new) = (old.spec.as_ref().unwrap(), new.spec.as_ref().unwrap());
        let running: Vec<String> = new.containers.iter().map(|c| c.name.clone()).collect();
        steps(&by_container(old), old, new, &running, 8 << 30, &Policy::default()).unwrap()
    }

    #[test]
    fn only_what_changes_is_changed_and_the_pod_is_wide_enough_meanwhile() {
        let old = pod(serde_json::json!([sized("a", "1", "100Mi"), sized("b", "1", "100Mi")]));
        let new = pod(serde_json::json!([sized("a", "2", "50Mi"), sized("b", "1", "100Mi")]));
        let steps = plan(&old, &new);
        assert_eq!(steps.in_place.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(steps.in_place["a"].cpu_quota_us, Some(200_000));
        assert_eq!((steps.wide.memory_limit, steps.narrow.memory_limit), (Some(200 << 20), Some(150 << 20)));
        assert_eq!((steps.wide.cpu_quota_us, steps.narrow.cpu_quota_us), (Some(300_000), Some(300_000)));
        assert!(steps.restarted.is_empty());
    }

    #[test]
    fn a_limit_that_is_taken_away_leaves_the_pod_without_one_at_once() {
        let old = pod(serde_json::json!([sized("a", "1", "100Mi")]));
        let new = pod(serde_json::json!([{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Mi"}}}]));
        assert_eq!(plan(&old, &new).wide.memory_limit, None);
    }

    #[test]
    fn a_container_is_started_again_only_for_a_resource_whose_policy_says_so() {
        let with_policy = |cpu: &str, memory: &str| {
            let mut container = sized("a", cpu, memory);
            container["resizePolicy"] = serde_json::json!([
                {"resourceName": "cpu", "restartPolicy": "NotRequired"},
                {"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
            pod(serde_json::json!([container]))
        };
        let old = with_policy("1", "100Mi");
        assert!(plan(&old, &with_policy("2", "100Mi")).restarted.is_empty());
        let steps = plan(&old, &with_policy("2", "200Mi"));
        assert_eq!(steps.restarted, ["a"]);
        assert!(steps.in_place.is_empty());
    }

    #[test]
    fn memory_below_what_is_used_is_refused_in_the_kubelets_words() {
        let old = pod(serde_json::json!([sized("a", "1", "100Mi")]));
        let new = pod(serde_json::json!([sized("a", "1", "50Mi")]));
        let spec = old.spec.as_ref().unwrap();
        let sizes = sizes(spec, &by_container(spec), &Policy::default());
        let used = |mib: u64| {
            let usage = Usage { memory_bytes: mib << 20, ..Usage::default() };
            SandboxStats { pod: Usage::default(), containers: [("a".to_owned(), usage)].into() }
        };
        let steps = plan(&old, &new);
        assert_eq!(check_memory(&steps, &sizes, &used(49)), Ok(()));
        assert_eq!(
            check_memory(&steps, &sizes, &used(50)).unwrap_err(),
            "attempting to set container \"a\" memory limit (52428800) below current usage (52428800)"
        );
        assert_eq!(check_memory(&plan(&old, &old), &sizes, &used(200)), Ok(()));
    }

    #[test]
    fn more_than_the_host_has_in_all_is_never_feasible() {
        let of = |milli_cpu, memory| Amounts { milli_cpu, memory, ephemeral: 0 };
        assert_eq!(infeasible(of(4000, 100), of(4000, 100)), None);
        assert_eq!(
            infeasible(of(4000, 100), of(4001, 100)).unwrap(),
            "Node didn't have enough capacity: cpu, requested: 4001, capacity: 4000"
        );
        assert_eq!(
            infeasible(of(4000, 100), of(4001, 101)).unwrap(),
            "Node didn't have enough capacity: memory, requested: 101, capacity: 100"
        );
    }

    #[test]
    fn events_carry_the_resources_as_a_kubelet_writes_them() {
        let pod = pod(serde_json::json!([{"name": "a", "resources": {"limits": {"cpu": "1"}}}, {"name": "b"}]));
        assert_eq!(
            message("started", &pod, None),
            "Pod resize started: {\"containers\":[{\"name\":\"a\",\"resources\":{\"limits\":{\"cpu\":\"1\"}}},\
             {\"name\":\"b\",\"resources\":{}}],\"generation\":2}"
        );
        assert!(message("error", &pod, Some("no \"room\"")).ends_with(",\"error\":\"no \\\"room\\\"\"}"));
    }
}
