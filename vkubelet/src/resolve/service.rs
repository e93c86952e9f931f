//! The environment by which a pod finds the API server, and the cluster's DNS.

use std::collections::HashMap;
use std::net::IpAddr;

/// What the operator says of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Name servers of ClusterFirst pods.
    pub dns_servers: Vec<IpAddr>,
    /// `cluster.local`.
    pub dns_domain: String,
    /// Host name or address of the API server as pods reach it; empty: not told to pods.
    pub service_host: String,
    /// Its port.
    pub service_port: u16,
}

/// The variables that a kubelet derives from the `kubernetes` Service.
#[must_use]
pub fn service_env(settings: &ClusterSettings) -> HashMap<String, String> {
    if settings.service_host.is_empty() {
        return HashMap::new();
    }
    let (host, port) = (&settings.service_host, settings.service_port);
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let url = format!("tcp://{bracketed}:{port}");
    [
        ("KUBERNETES_SERVICE_HOST".to_owned(), host.clone()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string()),
        ("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), port.to_string()),
        ("KUBERNETES_PORT".to_owned(), url.clone()),
        (format!("KUBERNETES_PORT_{port}_TCP"), url),
        (format!("KUBERNETES_PORT_{port}_TCP_PROTO"), "tcp".to_owned()),
        (format!("KUBERNETES_PORT_{port}_TCP_PORT"), port.to_string()),
        (format!("KUBERNETES_PORT_{port}_TCP_ADDR"), host.clone()),
    ]
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_host_is_bracketed_in_the_url_only() {
        let settings = ClusterSettings { service_host: "::1".into(), service_port: 443, ..Default::default() };
        let env = service_env(&settings);
        assert_eq!(env["KUBERNETES_SERVICE_HOST"], "::1");
        assert_eq!(env["KUBERNETES_PORT_443_TCP"], "tcp://[::1]:443");
    }

    #[test]
    fn without_a_host_nothing_is_set() {
        assert!(service_env(&ClusterSettings::default()).is_empty());
    }
}
