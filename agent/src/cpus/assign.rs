//! Who gets CPUs of its own. Pure.
//!
//! As a kubelet's static policy: a container of a Guaranteed pod that requests whole CPUs (not of one with pod-level resources). What
//! an init container had that ends before the next one is given to those that come after it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::{CpuSet, Cpus};
use crate::pod::spec::resources::{Qos, qos};
use crate::quantity::milli;

/// Gives a pod's containers their CPUs, beside those that others have; in the kubelet's words when there are too few.
pub fn assign(cpus: &Cpus, taken: &CpuSet, spec: &PodSpec) -> Result<BTreeMap<String, CpuSet>, String> {
    let mut assigned = BTreeMap::new();
    if qos(spec) != Qos::Guaranteed || spec.resources.is_some() {
        return Ok(assigned);
    }
    let mut taken = taken.clone();
    let mut reusable = CpuSet::new();
    let init = spec.init_containers.iter().flatten();
    let init = init.map(|container| (container, container.restart_policy.as_deref() != Some("Always")));
    for (container, ends) in init.chain(spec.containers.iter().map(|container| (container, false))) {
        let Some(wanted) = whole_cpus(container) else { continue };
        let free = cpus.free(&taken);
        let mut own = cpus.topology.take(&reusable, wanted.min(reusable.len())).unwrap_or_default();
        let more = cpus.topology.take(&free, wanted - own.len()).ok_or_else(|| {
            format!(
                "Allocate failed due to not enough cpus available to satisfy request: requested={wanted}, available={}, which \
                 is unexpected",
                free.len() + own.len()
            )
        })?;
        own.extend(more);
        taken.extend(&own);
        if ends {
            reusable.extend(&own);
        } else {
            reusable.retain(|cpu| !own.contains(cpu));
        }
        assigned.insert(container.name.clone(), own);
    }
    Ok(assigned)
}

/// How many whole CPUs a container requests; `None` for none, and for parts.
fn whole_cpus(container: &Container) -> Option<usize> {
    let resources = container.resources.as_ref()?;
    let get = |map: &Option<BTreeMap<String, _>>| map.as_ref().and_then(|map| map.get("cpu")).cloned();
    let request = get(&resources.requests).or_else(|| get(&resources.limits))?;
    let milli = milli(&request.0).ok().filter(|milli| *milli > 0 && milli.is_multiple_of(1000))?;
    usize::try_from(milli / 1000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpus::{list, parse};

    fn cpus() -> Cpus {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("online"), "0-4").unwrap();
        Cpus::read(dir.path(), parse("0").unwrap()).unwrap()
    }

    fn container(name: &str, cpu: &str) -> serde_json::Value {
        serde_json::json!({"name": name, "resources": {"limits": {"cpu": cpu, "memory": "1Mi"}}})
    }

    fn given(taken: &[u32], spec: serde_json::Value) -> Result<String, String> {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let assigned = assign(&cpus(), &taken.iter().copied().collect(), &spec)?;
        Ok(assigned.iter().map(|(name, cpus)| format!("{name}={}", list(cpus))).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn only_whole_cpus_of_guaranteed_pods_are_given() {
        let own = |spec| given(&[], spec).unwrap();
        assert_eq!(own(serde_json::json!({"containers": [container("a", "2"), container("b", "1")]})), "a=1-2 b=3");
        assert_eq!(own(serde_json::json!({"containers": [container("a", "2"), container("b", "500m")]})), "a=1-2");
        let burstable = serde_json::json!({"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Mi"}}});
        assert_eq!(own(serde_json::json!({"containers": [burstable]})), "");
        let pod_level = serde_json::json!({"limits": {"cpu": "1", "memory": "1Mi"}});
        assert_eq!(own(serde_json::json!({"resources": pod_level, "containers": [container("a", "1")]})), "");
    }

    #[test]
    fn reserved_ones_are_nobodys_and_too_few_are_refused_in_the_kubelets_words() {
        let ask = |cpu| serde_json::json!({"containers": [container("a", cpu)]});
        assert_eq!(given(&[1, 3], ask("2")).unwrap(), "a=2,4");
        assert_eq!(
            given(&[1, 3], ask("3")).unwrap_err(),
            "Allocate failed due to not enough cpus available to satisfy request: requested=3, available=2, which is unexpected"
        );
    }

    #[test]
    fn what_an_init_container_had_is_given_on() {
        let spec = serde_json::json!({
            "initContainers": [container("i", "4")], "containers": [container("a", "1"), container("b", "3")]});
        assert_eq!(given(&[], spec).unwrap(), "a=1 b=2-4 i=1-4");
        let mut sidecar = container("s", "2");
        sidecar["restartPolicy"] = "Always".into();
        let spec =
            serde_json::json!({"initContainers": [sidecar, container("i", "2")], "containers": [container("a", "2")]});
        assert_eq!(given(&[], spec).unwrap(), "a=3-4 i=3-4 s=1-2");
    }
}
