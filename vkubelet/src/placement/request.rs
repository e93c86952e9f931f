//! What a pod asks for, counted as the Kubernetes scheduler counts it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::quantity::{self, QuantityError};

/// The RuntimeClass that asks for the microVM sandbox.
pub const MICROVM_RUNTIME_CLASS: &str = "nodeless-vm";

const EPHEMERAL: &str = "ephemeral-storage";

/// What one pod needs of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Thousandths of a processor.
    pub milli_cpu: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Bytes of writable layers, logs and emptyDirs.
    pub ephemeral_bytes: u64,
    /// Huge pages in bytes and devices in units, by Kubernetes' names.
    pub scalars: BTreeMap<String, u64>,
    /// `amd64`, `arm64`; `None`: any.
    pub architecture: Option<String>,
    /// `namespace` or `microvm`.
    pub sandbox_kind: String,
    /// The images of its containers, canonical.
    pub images: Vec<String>,
    /// Ports of the host that it keeps from others.
    pub host_ports: Vec<HostPort>,
}

/// A port of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// 1 to 65535.
    pub port: i32,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// On this address; empty or unspecified: on all.
    pub address: String,
}

impl HostPort {
    /// Whether both cannot be on one host.
    #[must_use]
    pub fn excludes(&self, other: &Self) -> bool {
        let on_all = |port: &Self| matches!(port.address.as_str(), "" | "0.0.0.0" | "::");
        self.port == other.port
            && self.protocol == other.protocol
            && (on_all(self) || on_all(other) || self.address == other.address)
    }
}

/// The host ports of what runs all the time: containers and sidecars, as the scheduler counts them. In the host's network each
/// port that a container names is the host's, as its agent counts them, also where no API server wrote it twice.
fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let in_hosts_network = spec.host_network == Some(true);
    let claimed = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        Some(HostPort {
            port: port.host_port.filter(|number| *number > 0).or(in_hosts_network.then_some(port.container_port))?,
            protocol: port.protocol.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| "TCP".to_owned()),
            address: port.host_ip.clone().unwrap_or_default(),
        })
    };
    ports.filter_map(claimed).collect()
}

/// A request that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {field}")]
pub struct RequestError {
    field: String,
    #[source]
    source: QuantityError,
}

/// Processor, memory, ephemeral storage.
type Resources = (u64, u64, u64);

impl Request {
    /// Sums up a pod: max(containers + sidecars, each init container with the sidecars before it), or the pod-level
    /// requests where given, plus overhead.
    pub fn of(pod: &Pod) -> Result<Self, RequestError> {
        let Some(spec) = &pod.spec else { return Ok(Self::default()) };
        let (milli_cpu, memory_bytes, ephemeral_bytes) = resources(spec)?;
        let architecture = spec.node_selector.as_ref().and_then(|s| s.get("kubernetes.io/arch")).cloned();
        let microvm = spec.runtime_class_name.as_deref() == Some(MICROVM_RUNTIME_CLASS);
        let init = spec.init_containers.iter().flatten();
        let mut images: Vec<String> =
            spec.containers.iter().chain(init).filter_map(|c| c.image.as_deref()).map(canonical_image).collect();
        images.sort();
        images.dedup();
        Ok(Self {
            milli_cpu,
            memory_bytes,
            ephemeral_bytes,
            scalars: scalars(spec)?,
            architecture,
            sandbox_kind: if microvm { "microvm" } else { "namespace" }.to_owned(),
            images,
            host_ports: host_ports(spec),
        })
    }
}

fn resources(spec: &PodSpec) -> Result<Resources, RequestError> {
    let mut sum = (0, 0, 0);
    for (i, container) in spec.containers.iter().enumerate() {
        sum = add(sum, of_container(container, &format!("spec.containers[{i}]"))?);
    }
    let mut sidecars = (0, 0, 0);
    let mut peak = (0, 0, 0);
    for (i, container) in spec.init_containers.iter().flatten().enumerate() {
        let own = of_container(container, &format!("spec.initContainers[{i}]"))?;
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = add(sidecars, own);
            peak = max(peak, sidecars);
        } else {
            peak = max(peak, add(sidecars, own));
        }
    }
    let mut total = max(add(sum, sidecars), peak);
    if let Some(pod_level) = &spec.resources {
        let cpu = amount(pod_level, "cpu", "spec.resources")?;
        let memory = amount(pod_level, "memory", "spec.resources")?;
        total = (cpu.unwrap_or(total.0), memory.unwrap_or(total.1), total.2);
    }
    if let Some(overhead) = &spec.overhead {
        let cpu = read(overhead, "cpu", "spec.overhead")?.unwrap_or(0);
        let memory = read(overhead, "memory", "spec.overhead")?.unwrap_or(0);
        let ephemeral = read(overhead, EPHEMERAL, "spec.overhead")?.unwrap_or(0);
        total = add(total, (cpu, memory, ephemeral));
    }
    Ok(total)
}

/// Huge pages and devices, summed up in the same way; huge pages that the pod itself asks for count instead of the sum.
fn scalars(spec: &PodSpec) -> Result<BTreeMap<String, u64>, RequestError> {
    let init = spec.init_containers.iter().flatten().enumerate().map(|(i, c)| (c, format!("spec.initContainers[{i}]")));
    let main = spec.containers.iter().enumerate().map(|(i, c)| (c, format!("spec.containers[{i}]")));
    let mut of: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let containers: Vec<_> = init.chain(main).collect();
    for (at, (container, path)) in containers.iter().enumerate() {
        let Some(resources) = &container.resources else { continue };
        let names = [&resources.limits, &resources.requests].into_iter().flatten().flat_map(BTreeMap::keys);
        for name in names.filter(|name| name.starts_with("hugepages-") || name.contains('/')) {
            let asked = amount(resources, name, &format!("{path}.resources"))?.unwrap_or(0);
            of.entry(name.clone()).or_insert_with(|| vec![0; containers.len()])[at] = asked;
        }
    }
    let first_main = containers.len() - spec.containers.len();
    let peak = |asked: Vec<u64>| {
        let (mut sidecars, mut peak) = (0u64, 0u64);
        for (asked, (container, _)) in asked.iter().zip(&containers).take(first_main) {
            let with = sidecars.saturating_add(*asked);
            peak = peak.max(with);
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars = with;
            }
        }
        asked[first_main..].iter().fold(sidecars, |sum, asked| sum.saturating_add(*asked)).max(peak)
    };
    let mut sums: BTreeMap<String, u64> = of.into_iter().map(|(name, asked)| (name, peak(asked))).collect();
    if let Some(own) = &spec.resources {
        let names = [&own.limits, &own.requests].into_iter().flatten().flat_map(BTreeMap::keys);
        for name in names.filter(|name| name.starts_with("hugepages-")) {
            if let Some(asked) = amount(own, name, "spec.resources")? {
                sums.insert(name.clone(), asked);
            }
        }
    }
    Ok(sums)
}

fn of_container(container: &Container, path: &str) -> Result<Resources, RequestError> {
    let Some(resources) = &container.resources else { return Ok((0, 0, 0)) };
    let path = format!("{path}.resources");
    let cpu = amount(resources, "cpu", &path)?.unwrap_or(0);
    let memory = amount(resources, "memory", &path)?.unwrap_or(0);
    let ephemeral = amount(resources, EPHEMERAL, &path)?.unwrap_or(0);
    Ok((cpu, memory, ephemeral))
}

/// The request; a limit without a request is the request, as the API server defaults it.
fn amount(resources: &ResourceRequirements, name: &str, path: &str) -> Result<Option<u64>, RequestError> {
    let requests = match &resources.requests {
        Some(map) => read(map, name, &format!("{path}.requests"))?,
        None => None,
    };
    match (requests, &resources.limits) {
        (Some(value), _) => Ok(Some(value)),
        (None, Some(limits)) => read(limits, name, &format!("{path}.limits")),
        (None, None) => Ok(None),
    }
}

fn read(map: &BTreeMap<String, Quantity>, name: &str, path: &str) -> Result<Option<u64>, RequestError> {
    let Some(Quantity(text)) = map.get(name) else { return Ok(None) };
    let value = if name == "cpu" { quantity::milli(text) } else { quantity::whole(text) };
    value.map(Some).map_err(|source| RequestError { field: format!("{path}.{name}"), source })
}

fn add(a: Resources, b: Resources) -> Resources {
    (a.0.saturating_add(b.0), a.1.saturating_add(b.1), a.2.saturating_add(b.2))
}

fn max(a: Resources, b: Resources) -> Resources {
    (a.0.max(b.0), a.1.max(b.1), a.2.max(b.2))
}

/// An image name as hosts report it: `busybox` is `docker.io/library/busybox:latest`. Names of other transports
/// (`oci-layout:DIR`) stay as they are.
#[must_use]
pub fn canonical_image(name: &str) -> String {
    if name.starts_with("oci-layout:") || name.starts_with("docker-archive:") {
        return name.to_owned();
    }
    let first = name.split('/').next().unwrap_or_default();
    let has_registry = name.contains('/') && (first.contains('.') || first.contains(':') || first == "localhost");
    let full = match (has_registry, name.contains('/')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("docker.io/{name}"),
        (false, false) => format!("docker.io/library/{name}"),
    };
    let last = full.rsplit('/').next().unwrap_or_default();
    if last.contains(':') || last.contains('@') { full } else { format!("{full}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(spec: serde_json::Value) -> Result<Request, RequestError> {
        Request::of(&serde_json::from_value(serde_json::json!({"spec": spec})).unwrap())
    }

    fn c(name: &str, cpu: &str, memory: &str) -> serde_json::Value {
        serde_json::json!({"name": name, "image": "busybox", "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn containers_add_up_and_init_containers_count_by_their_peak() {
        let r = request(serde_json::json!({
            "containers": [c("a", "100m", "64Mi"), c("b", "200m", "64Mi")],
            "initContainers": [c("i", "1", "32Mi")],
        }))
        .unwrap();
        assert_eq!((r.milli_cpu, r.memory_bytes), (1000, 128 << 20));
    }

    #[test]
    fn a_sidecar_counts_beside_the_containers_and_later_init_containers() {
        let mut sidecar = c("s", "300m", "10Mi");
        sidecar["restartPolicy"] = "Always".into();
        let r = request(serde_json::json!({
            "containers": [c("a", "100m", "5Mi")],
            "initContainers": [sidecar, c("i", "200m", "20Mi")],
        }))
        .unwrap();
        assert_eq!((r.milli_cpu, r.memory_bytes), (500, 30 << 20));
    }

    #[test]
    fn a_limit_without_a_request_is_the_request() {
        let r = request(serde_json::json!({
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "2", "memory": "1Gi"}}}],
        }))
        .unwrap();
        assert_eq!((r.milli_cpu, r.memory_bytes), (2000, 1 << 30));
    }

    #[test]
    fn pod_level_requests_and_overhead_count() {
        let r = request(serde_json::json!({
            "containers": [c("a", "100m", "5Mi")],
            "resources": {"requests": {"cpu": "1"}},
            "overhead": {"memory": "64Mi"},
        }))
        .unwrap();
        assert_eq!((r.milli_cpu, r.memory_bytes), (1000, 69 << 20));
    }

    #[test]
    fn huge_pages_and_devices_are_summed_up_like_the_rest() {
        let with = |limits: serde_json::Value| serde_json::json!({"name": "x", "resources": {"limits": limits}});
        let mut sidecar = with(serde_json::json!({"a.com/x": "1"}));
        sidecar["restartPolicy"] = "Always".into();
        let r = request(serde_json::json!({
            "initContainers": [sidecar, with(serde_json::json!({"a.com/x": 4, "hugepages-2Mi": "8Mi"}))],
            "containers": [with(serde_json::json!({"a.com/x": "2"})), with(serde_json::json!({"hugepages-1Gi": "1Gi"}))],
        }))
        .unwrap();
        let expected = [("a.com/x", 5), ("hugepages-1Gi", 1 << 30), ("hugepages-2Mi", 8 << 20)];
        assert_eq!(r.scalars, expected.into_iter().map(|(name, amount)| (name.to_owned(), amount)).collect());
    }

    #[test]
    fn huge_pages_of_the_pod_itself_count_instead_of_its_containers() {
        let r = request(serde_json::json!({
            "resources": {"limits": {"hugepages-2Mi": "8Mi"}},
            "containers": [{"name": "x", "resources": {"limits": {"hugepages-2Mi": "2Mi", "hugepages-1Gi": "1Gi"}}}],
        }))
        .unwrap();
        let expected = [("hugepages-1Gi", 1 << 30), ("hugepages-2Mi", 8 << 20)];
        assert_eq!(r.scalars, expected.into_iter().map(|(name, amount)| (name.to_owned(), amount)).collect());
    }

    #[test]
    fn host_ports_are_those_of_containers_and_sidecars() {
        let with = |port: i32| serde_json::json!({"name": "x", "ports": [{"containerPort": 1, "hostPort": port}]});
        let mut sidecar = with(81);
        sidecar["restartPolicy"] = "Always".into();
        sidecar["ports"][0]["protocol"] = "UDP".into();
        let r = request(serde_json::json!({"initContainers": [sidecar, with(82)], "containers": [with(80), with(0)]}))
            .unwrap();
        let ports: Vec<_> = r.host_ports.iter().map(|p| (p.port, p.protocol.as_str())).collect();
        assert_eq!(ports, [(80, "TCP"), (81, "UDP")]);
    }

    #[test]
    fn a_bad_quantity_names_its_field() {
        let error = request(serde_json::json!({"containers": [c("a", "lots", "5Mi")]})).unwrap_err();
        assert_eq!(error.to_string(), "read spec.containers[0].resources.requests.cpu");
    }

    #[test]
    fn images_are_named_in_full() {
        let rows = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("me/app:1", "docker.io/me/app:1"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("quay.io/a/b@sha256:00", "quay.io/a/b@sha256:00"),
            ("oci-layout:/x", "oci-layout:/x"),
        ];
        for (name, want) in rows {
            assert_eq!(canonical_image(name), want);
        }
    }
}
