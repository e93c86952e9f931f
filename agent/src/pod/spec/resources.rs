//! Requests, limits, quality of service, and what the kernel is told of them, computed as a kubelet does.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sandbox::spec::Resources;

use super::{oom, scalars};
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
pub(super) fn requests(resources: Option<&ResourceRequirements>) -> Result<Amounts, QuantityError> {
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

/// How a host treats its pods, beyond what they ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Policy {
    /// Most processes of one pod; 0 for no limit.
    pub pids_limit: u64,
    /// Requested memory is protected from reclaim (cgroup v2): for good in Guaranteed pods, as far as possible in Burstable ones.
    pub protect_memory: bool,
    /// Containers of Burstable pods are slowed down from this part of the way between their request and their limit on.
    pub throttling_factor: Option<f64>,
}

/// Processes of a pod that its containers leave free, so that a container which may have no more does not keep its
/// neighbours from being probed and stopped.
const SPARE_PIDS: u64 = 128;

/// The kernel's limits for one container. `host_memory` is the host's, in bytes.
pub fn of_container(
    spec: &PodSpec,
    container: &Container,
    host_memory: u64,
    policy: &Policy,
) -> Result<Resources, QuantityError> {
    let own = requests(container.resources.as_ref())?;
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let cpu_limit = get(limits, "cpu").transpose()?.filter(|v| *v > 0);
    let memory_limit = get(limits, "memory").transpose()?.filter(|v| *v > 0);
    let (memory_min, memory_low) = protection(spec, own.memory, policy);
    Ok(Resources {
        cpu_shares: Some(shares(own.milli_cpu)),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.map(|_| PERIOD_US),
        memory_limit,
        memory_min,
        memory_low,
        memory_high: policy
            .throttling_factor
            .and_then(|factor| throttled_from(own.memory, memory_limit, host_memory, factor)),
        pids_limit: Some(policy.pids_limit).filter(|limit| *limit > SPARE_PIDS * 2).map(|limit| limit - SPARE_PIDS),
        oom_score_adj: Some(oom::score_adj(spec, container, host_memory)?),
        ..Resources::default()
    })
}

/// What a container can write to its root, in bytes: somewhat more than its limit, so that one that reaches it is seen to have
/// gone beyond, and its pod is evicted as a kubelet evicts it, instead of being left with a full disk.
pub fn writable_limit(container: &Container) -> Result<Option<u64>, QuantityError> {
    const BEYOND: u64 = 1 << 20;
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let limit = get(limits, "ephemeral-storage").transpose()?.filter(|bytes| *bytes > 0);
    Ok(limit.map(|bytes| bytes.saturating_add(bytes / 16).saturating_add(BEYOND)))
}

/// `memory.min` and `memory.low`: what is requested, by quality of service.
fn protection(spec: &PodSpec, request: u64, policy: &Policy) -> (Option<u64>, Option<u64>) {
    let asked = Some(request).filter(|bytes| policy.protect_memory && *bytes > 0);
    match qos(spec) {
        Qos::Guaranteed => (asked, None),
        Qos::Burstable => (None, asked),
        Qos::BestEffort => (None, None),
    }
}

/// `memory.high` as the kubelet computes it: a part of the way from the request to the limit (without one, to what the
/// host has), in whole pages; none where nothing lies between.
fn throttled_from(request: u64, limit: Option<u64>, host_memory: u64, factor: f64) -> Option<u64> {
    const PAGE: u64 = 4096;
    let end = limit.unwrap_or(host_memory);
    if limit == Some(request) || end <= request {
        return None;
    }
    let high = request as f64 + (end - request) as f64 * factor;
    Some((high / PAGE as f64) as u64 * PAGE).filter(|high| *high > request)
}

/// The kernel's limits for the whole pod: set only where every container is limited, or at pod level.
pub fn of_pod(spec: &PodSpec, policy: &Policy) -> Result<Resources, QuantityError> {
    let requests = pod_requests(spec)?;
    let (memory_min, memory_low) = protection(spec, requests.memory, policy);
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
        memory_min,
        memory_low,
        pids_limit: Some(policy.pids_limit).filter(|limit| *limit > 0),
        ..Resources::default()
    })
}

/// A container's value for `resourceFieldRef`: `limits.cpu`, `requests.memory` …; a missing limit is the host's capacity.
pub fn field(container: &Container, resource: &str, host: Amounts) -> Option<Result<u64, QuantityError>> {
    let (kind, name) = resource.split_once('.')?;
    let capacity = match name {
        "cpu" => host.milli_cpu,
        "memory" => host.memory,
        "ephemeral-storage" => host.ephemeral,
        // No limit is none of them.
        _ if scalars::page_size(name).is_some() => 0,
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
    fn a_root_holds_somewhat_more_than_its_limit_and_without_one_what_the_disk_has() {
        let of = |resources: serde_json::Value| {
            let pod = spec(serde_json::json!({"containers": [{"name": "a", "resources": resources}]}));
            writable_limit(&pod.containers[0]).unwrap()
        };
        assert_eq!(of(serde_json::json!({"limits": {"ephemeral-storage": "16Mi"}})), Some(18 << 20));
        for none in [
            serde_json::json!({}),
            serde_json::json!({"requests": {"ephemeral-storage": "16Mi"}, "limits": {"memory": "1Mi"}}),
            serde_json::json!({"limits": {"ephemeral-storage": "0"}}),
        ] {
            assert_eq!(of(none.clone()), None, "{none}");
        }
    }

    #[test]
    fn the_kernel_is_told_shares_quota_and_memory() {
        let spec = spec(serde_json::json!({"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"cpu": "500m", "memory": "2Gi"}}},
            {"name": "b"}]}));
        let host = 4 << 30;
        let policy = Policy { pids_limit: 1024, ..Policy::default() };
        let a = of_container(&spec, &spec.containers[0], host, &policy).unwrap();
        assert_eq!((a.cpu_shares, a.cpu_quota_us, a.memory_limit), (Some(256), Some(50_000), Some(2 << 30)));
        assert_eq!(a.oom_score_adj, Some(750));
        let b = of_container(&spec, &spec.containers[1], host, &policy).unwrap();
        assert_eq!((b.cpu_shares, b.cpu_quota_us, b.oom_score_adj), (Some(2), None, Some(999)));
        assert_eq!((a.memory_min, a.memory_low, a.memory_high, a.pids_limit), (None, None, None, Some(896)));
        let pod = of_pod(&spec, &policy).unwrap();
        assert_eq!(pod.pids_limit, Some(1024));
        assert_eq!((pod.cpu_shares, pod.cpu_quota_us, pod.memory_limit), (Some(256), None, None));
    }

    #[test]
    fn requested_memory_is_protected_by_quality_of_service_and_only_burstable_containers_are_slowed_down() {
        let policy = Policy { protect_memory: true, throttling_factor: Some(0.9), ..Policy::default() };
        let host = 8 << 30;
        let of = |resources: serde_json::Value| {
            let spec = spec(serde_json::json!({"containers": [{"name": "a", "resources": resources}]}));
            let pod = of_pod(&spec, &policy).unwrap();
            let own = of_container(&spec, &spec.containers[0], host, &policy).unwrap();
            assert_eq!((own.memory_min, own.memory_low), (pod.memory_min, pod.memory_low));
            (own.memory_min, own.memory_low, own.memory_high)
        };
        let gib = 1u64 << 30;
        assert_eq!(of(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}})), (Some(gib), None, None));
        // floor[(1Gi + 0.9 * (2Gi - 1Gi)) / 4096] * 4096
        let limited = serde_json::json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}});
        assert_eq!(of(limited), (None, Some(gib), Some(2_040_107_008)));
        // floor[(4Gi + 0.9 * (8Gi - 4Gi)) / 4096] * 4096
        let unlimited = serde_json::json!({"requests": {"memory": "4Gi"}});
        assert_eq!(of(unlimited), (None, Some(4 * gib), Some(8_160_436_224)));
        assert_eq!(of(serde_json::json!({"requests": {"cpu": "1"}})).1, None);
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
