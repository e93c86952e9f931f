//! Requests, limits, quality of service, and what the kernel is told of them, computed as a kubelet does.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sandbox::spec::Resources;

use crate::quantity::{QuantityError, milli, whole};

/// Amounts of the resources that a host gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// CPU in thousandths of a core.
    pub milli_cpu: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Ephemeral storage in bytes.
    pub ephemeral: u64,
}

impl Amounts {
    fn plus(self, other: Self) -> Self {
        Self {
            milli_cpu: self.milli_cpu.saturating_add(other.milli_cpu),
            memory: self.memory.saturating_add(other.memory),
            ephemeral: self.ephemeral.saturating_add(other.ephemeral),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            milli_cpu: self.milli_cpu.max(other.milli_cpu),
            memory: self.memory.max(other.memory),
            ephemeral: self.ephemeral.max(other.ephemeral),
        }
    }
}

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Limits equal requests for CPU and memory, in all containers.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// As in PodStatus.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

type Map = BTreeMap<String, Quantity>;

fn get(map: Option<&Map>, name: &str) -> Option<Result<u64, QuantityError>> {
    let text = &map?.get(name)?.0;
    Some(if name == "cpu" { milli(text) } else { whole(text) })
}

fn amounts(map: Option<&Map>) -> Result<Amounts, QuantityError> {
    let one = |name| get(map, name).transpose().map(Option::unwrap_or_default);
    Ok(Amounts { milli_cpu: one("cpu")?, memory: one("memory")?, ephemeral: one("ephemeral-storage")? })
}

/// Requests of one set; a limit without a request is its own request.
fn requests(resources: Option<&ResourceRequirements>) -> Result<Amounts, QuantityError> {
    let Some(resources) = resources else { return Ok(Amounts::default()) };
    let mut merged = resources.limits.clone().unwrap_or_default();
    merged.extend(resources.requests.clone().unwrap_or_default());
    amounts(Some(&merged))
}

/// What the scheduler counts for the pod: sums and the peak of the init phase, pod-level values, overhead.
pub fn pod_requests(spec: &PodSpec) -> Result<Amounts, QuantityError> {
    combine(spec, requests)
}

/// What is held and billed: the limit where there is one, else the request.
pub fn pod_held(spec: &PodSpec) -> Result<Amounts, QuantityError> {
    combine(spec, |resources| {
        let limits = amounts(resources.and_then(|r| r.limits.as_ref()))?;
        Ok(limits.max(requests(resources)?))
    })
}

fn combine(
    spec: &PodSpec,
    of: impl Fn(Option<&ResourceRequirements>) -> Result<Amounts, QuantityError>,
) -> Result<Amounts, QuantityError> {
    let mut main = Amounts::default();
    for container in &spec.containers {
        main = main.plus(of(container.resources.as_ref())?);
    }
    let mut sidecars = Amounts::default();
    let mut peak = Amounts::default();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container.resources.as_ref())?;
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.plus(own);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.plus(own));
        }
    }
    let mut total = main.plus(sidecars).max(peak);
    if let Some(pod) = &spec.resources {
        let own = of(Some(pod))?;
        let named = |name: &str| [&pod.requests, &pod.limits].into_iter().flatten().any(|map| map.contains_key(name));
        if named("cpu") {
            total.milli_cpu = own.milli_cpu;
        }
        if named("memory") {
            total.memory = own.memory;
        }
    }
    Ok(total.plus(amounts(spec.overhead.as_ref())?))
}

/// The pod's quality of service.
pub fn qos(spec: &PodSpec) -> Qos {
    let one;
    let all: Vec<Option<&ResourceRequirements>> = if let Some(pod) = &spec.resources {
        one = pod;
        vec![Some(one)]
    } else {
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        containers.map(|c| c.resources.as_ref()).collect()
    };
    let value = |map: Option<&Map>, name| get(map, name).and_then(Result::ok).filter(|v| *v > 0);
    let mut any = false;
    let mut guaranteed = true;
    for resources in all {
        let limits = resources.and_then(|r| r.limits.as_ref());
        let requests = resources.and_then(|r| r.requests.as_ref());
        for name in ["cpu", "memory"] {
            let limit = value(limits, name);
            let request = value(requests, name).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
        (false, _) => Qos::BestEffort,
    }
}

const SHARES_PER_CPU: u64 = 1024;
const PERIOD_US: u64 = 100_000;

fn shares(milli_cpu: u64) -> u64 {
    (milli_cpu * SHARES_PER_CPU / 1000).clamp(2, 262_144)
}

fn quota(milli_cpu: u64) -> u64 {
    (milli_cpu * PERIOD_US / 1000).max(1000)
}

/// The kernel's limits for one container. `host_memory` is the host's, in bytes.
pub fn of_container(spec: &PodSpec, container: &Container, host_memory: u64) -> Result<Resources, QuantityError> {
    let own = requests(container.resources.as_ref())?;
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let cpu_limit = get(limits, "cpu").transpose()?.filter(|v| *v > 0);
    let memory_limit = get(limits, "memory").transpose()?.filter(|v| *v > 0);
    Ok(Resources {
        cpu_shares: Some(shares(own.milli_cpu)),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US),
        memory_limit,
        pids_limit: None,
        oom_score_adj: Some(oom_score_adj(spec, own.memory, host_memory)),
    })
}

fn oom_score_adj(spec: &PodSpec, memory_request: u64, host_memory: u64) -> i32 {
    match qos(spec) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let share = u128::from(memory_request) * 1000 / u128::from(host_memory.max(1));
            // Between the Guaranteed and the BestEffort, as in the kubelet's policy.
            i32::try_from(1000_u128.saturating_sub(share)).unwrap_or(1000).clamp(3, 999)
        }
    }
}

/// The kernel's limits for the whole pod: set only where every container is limited, or at pod level.
pub fn of_pod(spec: &PodSpec, pids_limit: u64) -> Result<Resources, QuantityError> {
    let requests = pod_requests(spec)?;
    let pod_level = spec.resources.as_ref().and_then(|r| r.limits.as_ref());
    let every = |name: &str| {
        pod_level.is_some_and(|map| map.contains_key(name))
            || spec
                .init_containers
                .iter()
                .flatten()
                .chain(&spec.containers)
                .all(|c| c.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|m| m.contains_key(name)))
    };
    let limits = combine(spec, |r| amounts(r.and_then(|r| r.limits.as_ref())))?;
    let cpu_limit = every("cpu").then_some(limits.milli_cpu).filter(|v| *v > 0);
    Ok(Resources {
        cpu_shares: Some(shares(requests.milli_cpu)),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US),
        memory_limit: every("memory").then_some(limits.memory).filter(|v| *v > 0),
        pids_limit: Some(pids_limit),
        oom_score_adj: None,
    })
}

/// A container's value for `resourceFieldRef`: `limits.cpu`, `requests.memory` …; a missing limit is the host's capacity.
pub fn field(container: &Container, resource: &str, host: Amounts) -> Option<Result<u64, QuantityError>> {
    let (kind, name) = resource.split_once('.')?;
    let capacity = match name {
        "cpu" => host.milli_cpu,
        "memory" => host.memory,
        "ephemeral-storage" => host.ephemeral,
        _ => return None,
    };
    let resources = container.resources.as_ref();
    let limit = get(resources.and_then(|r| r.limits.as_ref()), name);
    let request = get(resources.and_then(|r| r.requests.as_ref()), name);
    match kind {
        "limits" => Some(match limit {
            Some(Ok(0)) | None => Ok(capacity),
            Some(value) => value,
        }),
        "requests" => Some(request.or(limit).unwrap_or(Ok(0))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_sidecar_counts_with_the_main_containers_and_an_init_container_with_its_peak() {
        let spec = spec(serde_json::json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m", "memory": "10"}}},
                {"name": "i", "resources": {"requests": {"cpu": "2", "memory": "5"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "300m", "memory": "100"}}}],
            "overhead": {"memory": "7"}
        }));
        let total = pod_requests(&spec).unwrap();
        assert_eq!((total.milli_cpu, total.memory), (2100, 117));
    }

    #[test]
    fn quality_of_service_is_the_kubelets() {
        let with =
            |r: serde_json::Value| qos(&spec(serde_json::json!({"containers": [{"name": "a", "resources": r}]})));
        assert_eq!(with(serde_json::json!({})), Qos::BestEffort);
        assert_eq!(with(serde_json::json!({"requests": {"cpu": "1m"}})), Qos::Burstable);
        assert_eq!(with(serde_json::json!({"limits": {"cpu": "1", "memory": "1Mi"}})), Qos::Guaranteed);
        assert_eq!(with(serde_json::json!({"limits": {"memory": "1Mi"}})), Qos::Burstable);
        assert_eq!(
            with(
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Mi"}, "requests": {"cpu": "1000m", "memory": "1Mi"}})
            ),
            Qos::Guaranteed
        );
    }

    #[test]
    fn the_kernel_is_told_shares_quota_and_memory() {
        let spec = spec(serde_json::json!({"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "500m", "memory": "2Gi"}}},
            {"name": "b"}]}));
        let host = 4 << 30;
        let a = of_container(&spec, &spec.containers[0], host).unwrap();
        assert_eq!((a.cpu_shares, a.cpu_quota_us, a.memory_limit), (Some(256), Some(50_000), Some(2 << 30)));
        assert_eq!(a.oom_score_adj, Some(750));
        let b = of_container(&spec, &spec.containers[1], host).unwrap();
        assert_eq!((b.cpu_shares, b.cpu_quota_us, b.oom_score_adj), (Some(2), None, Some(999)));
        let pod = of_pod(&spec, 1024).unwrap();
        assert_eq!((pod.cpu_shares, pod.cpu_quota_us, pod.memory_limit), (Some(256), None, None));
    }

    #[test]
    fn a_missing_limit_is_the_hosts_capacity_to_the_pod() {
        let spec = spec(serde_json::json!({"containers": [{"name": "a", "resources": {"limits": {"memory": "1Mi"}}}]}));
        let host = Amounts { milli_cpu: 2000, memory: 1 << 30, ephemeral: 5 };
        let of = |name| field(&spec.containers[0], name, host);
        assert_eq!(of("limits.cpu"), Some(Ok(2000)));
        assert_eq!(of("limits.memory"), Some(Ok(1 << 20)));
        assert_eq!(of("requests.memory"), Some(Ok(1 << 20)));
        assert_eq!(of("requests.cpu"), Some(Ok(0)));
        assert_eq!(of("limits.gpu"), None);
    }
}
