//! The Node object as a pure function of settings and hosts.

use std::collections::BTreeMap;

use agent_api::proto::HostStatus;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
    NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

/// The kubelet API version that this node behaves like; clients compare it with the control plane's.
pub const KUBELET_VERSION: &str = "v1.36.0-nodeless";

/// Images listed in a Node's status at most (the kubelet's default, `--node-status-max-images`).
const MAX_IMAGES: usize = 50;

/// What an operator decides about the node.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Name of the Node object.
    pub name: String,
    /// Address at which the API server reaches the kubelet API.
    pub address: String,
    /// Port of the kubelet API.
    pub kubelet_port: u16,
    /// Labels beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Taints that the node is registered with.
    pub taints: Vec<Taint>,
}

/// The labels of the node: the well-known ones, then the operator's.
pub fn labels(settings: &NodeSettings, hosts: &[HostStatus]) -> BTreeMap<String, String> {
    let arch = architecture(hosts);
    let mut labels = BTreeMap::from([
        ("type".to_owned(), "virtual-kubelet".to_owned()),
        ("kubernetes.io/hostname".to_owned(), settings.name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), arch.to_owned()),
        ("node.kubernetes.io/instance-type".to_owned(), "nodeless".to_owned()),
    ]);
    labels.extend(settings.labels.clone());
    labels
}

/// The hosts' architecture; this build's own while there is no host.
fn architecture(hosts: &[HostStatus]) -> &str {
    match hosts.first() {
        Some(host) if !host.architecture.is_empty() => &host.architecture,
        _ if cfg!(target_arch = "aarch64") => "arm64",
        _ => "amd64",
    }
}

/// The Node as it is to be registered.
pub fn node(settings: &NodeSettings, hosts: &[HostStatus], now: Time) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(settings.name.clone()),
            labels: Some(labels(settings, hosts)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!settings.taints.is_empty()).then(|| settings.taints.clone()),
            provider_id: Some(format!("nodeless://{}", settings.name)),
            ..NodeSpec::default()
        }),
        status: Some(status(settings, hosts, None, now)),
    }
}

/// The node's status. `previous` keeps the transition times of conditions that did not change.
pub fn status(settings: &NodeSettings, hosts: &[HostStatus], previous: Option<&NodeStatus>, now: Time) -> NodeStatus {
    let known = |of: fn(&NodeStatus) -> &Option<BTreeMap<String, Quantity>>| previous.and_then(|p| of(p).as_ref());
    NodeStatus {
        addresses: Some(vec![
            NodeAddress { type_: "InternalIP".to_owned(), address: settings.address.clone() },
            NodeAddress { type_: "Hostname".to_owned(), address: settings.name.clone() },
        ]),
        allocatable: Some(without_losses(allocatable(hosts), known(|p| &p.allocatable))),
        capacity: Some(without_losses(capacity(hosts), known(|p| &p.capacity))),
        conditions: Some(conditions(hosts, previous, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(settings.kubelet_port) }),
        }),
        images: Some(images(hosts)),
        node_info: Some(node_info(settings, hosts)),
        ..NodeStatus::default()
    }
}

/// The sum of the hosts' capacities, under Kubernetes' resource names.
pub fn capacity(hosts: &[HostStatus]) -> BTreeMap<String, Quantity> {
    let sum = |f: fn(&HostStatus) -> u64| hosts.iter().map(f).sum::<u64>();
    let milli = sum(|h| h.capacity_milli_cpu);
    let cpu = if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") };
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpu)),
        ("memory".to_owned(), Quantity(format!("{}Ki", sum(|h| h.capacity_memory_bytes) / 1024))),
        ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", sum(|h| h.capacity_ephemeral_bytes) / 1024))),
        ("pods".to_owned(), Quantity(sum(|h| u64::from(h.capacity_pods)).to_string())),
    ]);
    let mut scalars: BTreeMap<&String, u64> = BTreeMap::new();
    for (name, amount) in hosts.iter().flat_map(|host| &host.capacity_scalars) {
        let sum = scalars.entry(name).or_default();
        *sum = sum.saturating_add(*amount);
    }
    capacity.extend(scalars.into_iter().map(|(name, amount)| (name.clone(), scalar(name, amount))));
    capacity
}

/// What pods may request of it: huge pages are taken off the memory.
pub fn allocatable(hosts: &[HostStatus]) -> BTreeMap<String, Quantity> {
    let memory = |host: &HostStatus| host.allocatable_memory_bytes.unwrap_or(host.capacity_memory_bytes);
    let mut allocatable = capacity(hosts);
    let sum = hosts.iter().map(memory).sum::<u64>();
    allocatable.insert("memory".to_owned(), Quantity(format!("{}Ki", sum / 1024)));
    allocatable
}

/// Huge pages in the largest unit that leaves no rest, devices as a number.
fn scalar(name: &str, amount: u64) -> Quantity {
    let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let unit = units.iter().find(|(_, bits)| amount > 0 && amount.trailing_zeros() >= *bits);
    Quantity(match unit.filter(|_| name.starts_with("hugepages-")) {
        Some((unit, bits)) => format!("{}{unit}", amount >> bits),
        None => amount.to_string(),
    })
}

/// With nothing of what was there before and is not any more: a status is merged by the API server, which keeps what is not
/// named.
fn without_losses(
    mut now: BTreeMap<String, Quantity>,
    previous: Option<&BTreeMap<String, Quantity>>,
) -> BTreeMap<String, Quantity> {
    for name in previous.into_iter().flat_map(BTreeMap::keys) {
        now.entry(name.clone()).or_insert_with(|| Quantity("0".to_owned()));
    }
    now
}

/// Conditions: pressure when every host is under it (one host with room can still take a pod), ready when a host is there.
fn conditions(hosts: &[HostStatus], previous: Option<&NodeStatus>, now: Time) -> Vec<NodeCondition> {
    let pressed = |name: &str| {
        !hosts.is_empty() && hosts.iter().all(|h| h.conditions.iter().any(|c| c.r#type == name && c.status))
    };
    let ready = !hosts.is_empty();
    let rows = [
        ("MemoryPressure", pressed("MemoryPressure"), "HostsHaveSufficientMemory", "HostsHaveInsufficientMemory"),
        ("DiskPressure", pressed("DiskPressure"), "HostsHaveNoDiskPressure", "HostsHaveDiskPressure"),
        ("PIDPressure", pressed("PIDPressure"), "HostsHaveSufficientPID", "HostsHaveInsufficientPID"),
        ("Ready", ready, "NoHostConnected", "HostsReady"),
    ];
    rows.into_iter()
        .map(|(type_, is, reason_false, reason_true)| {
            let message = match (type_, is) {
                ("Ready", true) => format!("{} host(s) connected", hosts.len()),
                ("Ready", false) => {
                    "no agent is connected to this virtual node; join one with `nodeless-agent join`".to_owned()
                }
                (_, true) => "every host reports it".to_owned(),
                (_, false) => "a host without it is connected, or none is".to_owned(),
            };
            let status = if is { "True" } else { "False" }.to_owned();
            let unchanged = previous
                .and_then(|p| p.conditions.as_ref())
                .and_then(|list| list.iter().find(|c| c.type_ == type_ && c.status == status));
            NodeCondition {
                type_: type_.to_owned(),
                reason: Some(if is { reason_true } else { reason_false }.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: unchanged
                    .and_then(|c| c.last_transition_time.clone())
                    .or_else(|| Some(now.clone())),
                status,
            }
        })
        .collect()
}

/// The largest images of all hosts, each once.
fn images(hosts: &[HostStatus]) -> Vec<ContainerImage> {
    let mut seen: BTreeMap<Vec<String>, u64> = BTreeMap::new();
    for image in hosts.iter().flat_map(|h| &h.images) {
        seen.insert(image.names.clone(), image.size_bytes);
    }
    let mut list: Vec<_> = seen.into_iter().collect();
    list.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    list.truncate(MAX_IMAGES);
    list.into_iter()
        .map(|(names, size)| ContainerImage {
            names: Some(names),
            size_bytes: Some(i64::try_from(size).unwrap_or(i64::MAX)),
        })
        .collect()
}

/// What `kubectl describe node` shows of the system. A virtual node has no machine of its own: ids are made from its
/// name, kernel and OS are the first host's.
fn node_info(settings: &NodeSettings, hosts: &[HostStatus]) -> NodeSystemInfo {
    let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_DNS, settings.name.as_bytes()).to_string();
    let first = |f: fn(&HostStatus) -> &str| hosts.first().map(f).unwrap_or_default().to_owned();
    NodeSystemInfo {
        architecture: architecture(hosts).to_owned(),
        boot_id: id.clone(),
        container_runtime_version: format!("nodeless://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: first(|h| &h.kernel_version),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: id.replace('-', ""),
        operating_system: "linux".to_owned(),
        os_image: first(|h| &h.os_image),
        system_uuid: id,
        ..NodeSystemInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_api::proto::{Condition, HostImage};

    fn settings() -> NodeSettings {
        NodeSettings {
            name: "virtual".into(),
            address: "127.0.0.1".into(),
            kubelet_port: 10250,
            labels: BTreeMap::from([("zone".into(), "a".into())]),
            taints: vec![],
        }
    }

    fn host(milli: u64) -> HostStatus {
        HostStatus {
            capacity_milli_cpu: milli,
            capacity_memory_bytes: 1 << 30,
            capacity_ephemeral_bytes: 1 << 34,
            capacity_pods: 110,
            architecture: "amd64".into(),
            kernel_version: "6.18.0".into(),
            os_image: "Debian".into(),
            ..HostStatus::default()
        }
    }

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).expect("a valid second"))
    }

    fn condition<'a>(status: &'a NodeStatus, name: &str) -> &'a NodeCondition {
        status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == name).unwrap()
    }

    #[test]
    fn capacity_is_the_sum_of_the_hosts() {
        let sum = capacity(&[host(2000), host(1500)]);
        assert_eq!(sum["cpu"].0, "3500m");
        assert_eq!(sum["memory"].0, "2097152Ki");
        assert_eq!(sum["pods"].0, "220");
    }

    #[test]
    fn huge_pages_and_devices_are_counted_and_huge_pages_are_no_memory_to_request() {
        let mut one = host(1000);
        one.capacity_scalars = [("hugepages-2Mi".into(), 512 << 20), ("example.com/fuse".into(), 2048)].into();
        one.allocatable_memory_bytes = Some(512 << 20);
        let two = HostStatus { capacity_scalars: [("hugepages-1Gi".into(), 0)].into(), ..host(1000) };
        let first = status(&settings(), &[one.clone(), two.clone()], None, at(1));
        let told = |status: &NodeStatus, name: &str| {
            let of =
                |map: &Option<BTreeMap<String, Quantity>>| map.as_ref().and_then(|m| m.get(name)).map(|q| q.0.clone());
            (of(&status.capacity), of(&status.allocatable))
        };
        let both = |text: &str| (Some(text.to_owned()), Some(text.to_owned()));
        assert_eq!(told(&first, "hugepages-2Mi"), both("512Mi"));
        assert_eq!(told(&first, "hugepages-1Gi"), both("0"));
        assert_eq!(told(&first, "example.com/fuse"), both("2048"));
        assert_eq!(told(&first, "memory"), (Some("2097152Ki".into()), Some("1572864Ki".into())));
        // What went with its host is told to be nothing, for ever.
        let second = status(&settings(), std::slice::from_ref(&two), Some(&first), at(2));
        let third = status(&settings(), &[two], Some(&second), at(3));
        assert_eq!(told(&third, "example.com/fuse"), both("0"));
        assert_eq!(told(&third, "memory"), both("1048576Ki"));
    }

    #[test]
    fn a_node_without_hosts_is_not_ready_and_has_no_capacity() {
        let status = status(&settings(), &[], None, at(1));
        assert_eq!(condition(&status, "Ready").status, "False");
        assert_eq!(status.capacity.unwrap()["cpu"].0, "0");
    }

    #[test]
    fn transition_times_change_only_with_the_status() {
        let before = status(&settings(), &[host(1000)], None, at(1));
        let same = status(&settings(), &[host(1000)], Some(&before), at(2));
        assert_eq!(condition(&same, "Ready").last_transition_time, Some(at(1)));
        assert_eq!(condition(&same, "Ready").last_heartbeat_time, Some(at(2)));
        let lost = status(&settings(), &[], Some(&same), at(3));
        assert_eq!(condition(&lost, "Ready").last_transition_time, Some(at(3)));
    }

    #[test]
    fn pressure_on_one_of_two_hosts_is_not_pressure_on_the_node() {
        let mut full = host(1000);
        full.conditions.push(Condition { r#type: "DiskPressure".into(), status: true, ..Condition::default() });
        let one = status(&settings(), &[full.clone(), host(1000)], None, at(1));
        assert_eq!(condition(&one, "DiskPressure").status, "False");
        let all = status(&settings(), &[full.clone(), full], None, at(1));
        assert_eq!(condition(&all, "DiskPressure").status, "True");
    }

    #[test]
    fn images_are_listed_once_and_the_largest_first() {
        let image = |name: &str, size| HostImage { names: vec![name.into()], size_bytes: size };
        let (mut a, mut b) = (host(1), host(1));
        a.images = vec![image("small", 1), image("large", 9)];
        b.images = vec![image("large", 9)];
        let names: Vec<_> = images(&[a, b]).into_iter().map(|i| i.names.unwrap().remove(0)).collect();
        assert_eq!(names, ["large", "small"]);
    }

    #[test]
    fn the_operators_labels_are_added_to_the_well_known_ones() {
        let labels = labels(&settings(), &[]);
        assert_eq!(labels["type"], "virtual-kubelet");
        assert_eq!(labels["zone"], "a");
    }
}
