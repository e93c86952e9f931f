//! The host's ports that pods claim, and which claims shut each other out: as the scheduler and a kubelet count them. Pure.

use k8s_openapi::api::core::v1::{Container, PodSpec};

/// One port of the host that a pod claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// The host's address; `0.0.0.0` is all of them.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// 1 to 65535.
    pub port: i32,
}

const ANY: &str = "0.0.0.0";

impl HostPort {
    fn shuts_out(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// What a pod claims for as long as it lives: its containers' and sidecars' host ports. In the host's network each port that
/// a container names is the host's, also where nobody wrote it twice as the API server would.
pub fn claimed(spec: &PodSpec) -> Vec<HostPort> {
    let in_hosts_network = spec.host_network == Some(true);
    let given = |text: &Option<String>, otherwise: &str| {
        text.as_deref().filter(|text| !text.is_empty()).unwrap_or(otherwise).to_owned()
    };
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(sidecar);
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .map(|port| HostPort {
            ip: given(&port.host_ip, ANY),
            protocol: given(&port.protocol, "TCP"),
            port: match port.host_port.unwrap_or_default() {
                0 if in_hosts_network => port.container_port,
                number => number,
            },
        })
        .filter(|claim| claim.port > 0)
        .collect()
}

/// Whether somebody who is there keeps one of the wanted ports.
pub fn taken<'p>(wanted: &[HostPort], mut there: impl Iterator<Item = &'p HostPort>) -> bool {
    there.any(|theirs| wanted.iter().any(|claim| claim.shuts_out(theirs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: serde_json::Value) -> Vec<HostPort> {
        claimed(&serde_json::from_value(spec).unwrap())
    }

    fn one(ip: &str, protocol: &str, port: i32) -> Vec<HostPort> {
        of(serde_json::json!({"containers": [
            {"name": "c", "ports": [{"containerPort": 1, "hostPort": port, "hostIP": ip, "protocol": protocol}]}
        ]}))
    }

    #[test]
    fn claims_shut_out_their_like_on_the_same_address_or_on_all() {
        for (a, b, conflict) in [
            (one("", "", 80), one("0.0.0.0", "TCP", 80), true),
            (one("10.0.0.1", "TCP", 80), one("", "TCP", 80), true),
            (one("", "TCP", 80), one("10.0.0.1", "TCP", 80), true),
            (one("10.0.0.1", "TCP", 80), one("10.0.0.1", "TCP", 80), true),
            (one("10.0.0.1", "TCP", 80), one("10.0.0.2", "TCP", 80), false),
            (one("", "UDP", 80), one("", "TCP", 80), false),
            (one("", "TCP", 81), one("", "TCP", 80), false),
            (one("", "TCP", 0), one("", "TCP", 0), false),
        ] {
            assert_eq!(taken(&a, b.iter()), conflict, "{a:?} beside {b:?}");
        }
    }

    #[test]
    fn containers_and_sidecars_claim_and_the_hosts_network_claims_every_port() {
        let ports = |port: i32| serde_json::json!([{"containerPort": port}]);
        let spec = |host_network: bool| {
            serde_json::json!({"hostNetwork": host_network, "containers": [{"name": "c", "ports": ports(1)}],
                "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": ports(2)},
                    {"name": "i", "ports": ports(3)}]})
        };
        let numbers: Vec<i32> = of(spec(true)).iter().map(|claim| claim.port).collect();
        assert_eq!(numbers, [1, 2]);
        assert_eq!(of(spec(false)), []);
    }
}
