//! `/etc/hosts` as a kubelet writes it. Pure.

use std::net::IpAddr;

use super::super::spec::{Context, hostname};

/// The text of `/etc/hosts`.
pub fn hosts(context: Context<'_>, ip: Option<IpAddr>) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         fe00::\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let (name, domain) = hostname(context);
    if let Some(ip) = ip {
        text.push_str(&match domain {
            Some(domain) => format!("{ip}\t{name}.{domain}\t{name}\n"),
            None => format!("{ip}\t{name}\n"),
        });
    }
    let aliases: Vec<_> = context.spec().into_iter().flat_map(|s| s.host_aliases.iter().flatten()).collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::super::spec::HostFacts;
    use super::*;
    use crate::resolved::Resolved;
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn the_hosts_file_is_the_kubelets() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "subdomain": "sub", "hostname": "web",
                "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}
        }))
        .unwrap();
        let (resolved, host) = (Resolved::default(), HostFacts::default());
        let context = Context { pod: &pod, resolved: &resolved, host: &host, ip: None };
        insta::assert_snapshot!(hosts(context, Some([10, 88, 0, 5].into())));
    }
}
