//! `/etc/hosts` as a kubelet writes it. Pure.

use std::net::IpAddr;

use super::super::spec::{Context, hostname};

/// The text of `/etc/hosts`. `hosts`: the host's own file, for a pod in its network.
pub fn hosts(context: Context<'_>, ip: Option<IpAddr>, hosts: &str) -> String {
    if context.has_host_network() {
        let mut text = format!("# Kubernetes-managed hosts file (host network).\n{hosts}");
        if !text.ends_with('\n') {
            text.push('\n');
        }
        aliases(context, &mut text);
        return text;
    }
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
    aliases(context, &mut text);
    text
}

fn aliases(context: Context<'_>, text: &mut String) {
    let aliases: Vec<_> = context.spec().into_iter().flat_map(|s| s.host_aliases.iter().flatten()).collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
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
        insta::assert_snapshot!(hosts(context, Some([10, 88, 0, 5].into()), "of the host"));
        let mut sharing = pod.clone();
        sharing.spec.as_mut().unwrap().host_network = Some(true);
        let shared = Context { pod: &sharing, ..context };
        let text = hosts(shared, Some([192, 0, 2, 1].into()), "192.0.2.1 host");
        assert_eq!(
            text,
            "# Kubernetes-managed hosts file (host network).\n192.0.2.1 host\n\n\
             # Entries added by HostAliases.\n192.0.2.9\ta\tb\n"
        );
    }
}
