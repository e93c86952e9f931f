//! `/etc/resolv.conf`: dnsPolicy and dnsConfig over the cluster's DNS or the host's. Pure.

use k8s_openapi::api::core::v1::PodSpec;

use crate::resolved::ClusterDns;

const MOST_SERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;
const LONGEST_SEARCHES: usize = 2048;

/// A resolver's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, `name` or `name:value`.
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads a `resolv.conf`. Lines that mean nothing to it are left out; the last `search` counts.
    pub fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => {
                    out.searches = words.filter(|w| *w != ".").map(|w| w.trim_end_matches('.').to_owned()).collect();
                }
                Some("options") => out.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        out
    }

    /// A pod cannot reach a resolver on its host's loopback address.
    pub fn is_loopback_only(&self) -> bool {
        let loopback = |s: &String| s.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        !self.servers.is_empty() && self.servers.iter().all(loopback)
    }

    fn write(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// The pod's `resolv.conf`.
pub fn resolv_conf(spec: &PodSpec, namespace: &str, cluster: &ClusterDns, host: &Resolver) -> String {
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let mut out = match policy {
        "None" => Resolver::default(),
        "Default" => host.clone(),
        // As a kubelet: only `ClusterFirstWithHostNet` means the cluster's for a pod in its host's network.
        "ClusterFirst" if spec.host_network == Some(true) => host.clone(),
        // Without a cluster DNS that we know of, the host's resolver is the best that there is.
        _ if cluster.servers.is_empty() => host.clone(),
        _ => cluster_first(namespace, cluster, host),
    };
    if let Some(config) = &spec.dns_config {
        out.servers.extend(config.nameservers.iter().flatten().cloned());
        out.searches.extend(config.searches.iter().flatten().map(|s| s.trim_end_matches('.').to_owned()));
        for option in config.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            out.options.retain(|o| o.split(':').next() != Some(name));
            out.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            });
        }
    }
    limit(&mut out);
    out.write()
}

fn cluster_first(namespace: &str, cluster: &ClusterDns, host: &Resolver) -> Resolver {
    let domain = cluster.domain.trim_end_matches('.');
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches.extend([format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()]);
    }
    searches.extend(host.searches.iter().cloned());
    Resolver { servers: cluster.servers.clone(), searches, options: vec!["ndots:5".to_owned()] }
}

fn limit(out: &mut Resolver) {
    let safe = |text: &String| !text.is_empty() && !text.contains(char::is_whitespace);
    let unique = |list: &mut Vec<String>| {
        let mut seen = std::collections::BTreeSet::new();
        list.retain(|text| safe(text) && seen.insert(text.clone()));
    };
    unique(&mut out.servers);
    unique(&mut out.searches);
    out.options.retain(safe);
    out.servers.truncate(MOST_SERVERS);
    out.searches.truncate(MOST_SEARCHES);
    while out.searches.iter().map(|s| s.len() + 1).sum::<usize>() > LONGEST_SEARCHES {
        out.searches.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(spec: serde_json::Value, servers: &[&str]) -> String {
        let mut json = serde_json::json!({"containers": []});
        json.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let spec: PodSpec = serde_json::from_value(json).unwrap();
        let cluster = ClusterDns {
            servers: servers.iter().map(|s| (*s).to_owned()).collect(),
            domain: "cluster.local".to_owned(),
        };
        let host = Resolver::parse("# c\nnameserver 192.0.2.53\nsearch example.com .\noptions timeout:1 edns0\n");
        resolv_conf(&spec, "ns", &cluster, &host)
    }

    #[test]
    fn each_policy_gives_what_kubernetes_documents() {
        assert_eq!(
            conf(serde_json::json!({}), &["10.96.0.10"]),
            "search ns.svc.cluster.local svc.cluster.local cluster.local example.com\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        let host = "search example.com\nnameserver 192.0.2.53\noptions timeout:1 edns0\n";
        assert_eq!(conf(serde_json::json!({}), &[]), host);
        assert_eq!(conf(serde_json::json!({"dnsPolicy": "Default"}), &["10.96.0.10"]), host);
        assert_eq!(
            conf(
                serde_json::json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a."],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                &["10.96.0.10"]
            ),
            "search a\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"
        );
        assert_eq!(
            conf(serde_json::json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}), &["10.96.0.10"]),
            "search ns.svc.cluster.local svc.cluster.local cluster.local example.com\nnameserver 10.96.0.10\noptions ndots:1\n"
        );
    }

    #[test]
    fn limits_hold_and_no_value_breaks_out_of_its_line() {
        let text = conf(
            serde_json::json!({"dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["1.1.1.1", "1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4", "x\nnameserver 6.6.6.6"]}}),
            &[],
        );
        assert_eq!(text, "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n");
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_read(text in "(?s).{0,200}") {
            let _ = Resolver::parse(&text);
        }
    }
}
