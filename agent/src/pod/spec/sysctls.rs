//! Sysctls of a pod: which are safe, which belong to which namespace, and the words for those that may not be set. Pure.

use k8s_openapi::api::core::v1::PodSpec;

use crate::trust::Trust;

/// Sysctls that are namespaced and harmless, as Kubernetes lists them. The youngest asks for Linux 4.15, which every host that
/// an agent runs on has.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The namespace that a sysctl belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// IPC.
    Ipc,
    /// Network.
    Network,
}

/// The namespace of a sysctl, by its dotted name; `None` for one of the host's.
pub fn space(name: &str) -> Option<Space> {
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name == "kernel.sem" || ipc.iter().any(|prefix| name.starts_with(prefix)) {
        Some(Space::Ipc)
    } else {
        name.starts_with("net.").then_some(Space::Network)
    }
}

/// Whether every pod may set it.
pub fn is_safe(name: &str) -> bool {
    SAFE.contains(&name)
}

/// Whether a pattern of `--allowed-unsafe-sysctls` names it.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// Whether a pattern can be allowed at all: it must name sysctls that a pod has of its own.
pub fn is_pattern(pattern: &str) -> bool {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !name.contains("..") && name.chars().all(plain) && (space(name).is_some() || name == "net.")
}

/// Dotted: Kubernetes takes slashes for dots as sysctl(8) does. Where a slash comes first the dots are of a name's part.
pub fn dotted(name: &str) -> String {
    match (name.find('.'), name.find('/')) {
        (Some(dot), Some(slash)) if slash < dot => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        (None, Some(_)) => name.replace('/', "."),
        _ => name.to_owned(),
    }
}

/// Why a pod may not set its sysctls, in a kubelet's words.
pub fn forbidden(spec: &PodSpec, trust: &Trust) -> Option<String> {
    let context = spec.security_context.as_ref()?;
    context.sysctls.iter().flatten().find_map(|sysctl| {
        let (name, shown) = (dotted(&sysctl.name), &sysctl.name);
        let plain = |c: char| c.is_ascii_alphanumeric() || " \t.-_,".contains(c);
        if !trust.allows_sysctl(&name) || space(&name).is_none() {
            return Some(format!("forbidden sysctl: \"{shown}\" not allowlisted"));
        }
        if space(&name) == Some(Space::Network) && spec.host_network == Some(true) {
            return Some(format!("forbidden sysctl: \"{shown}\" not allowed with host net enabled"));
        }
        if space(&name) == Some(Space::Ipc) && spec.host_ipc == Some(true) {
            return Some(format!("forbidden sysctl: \"{shown}\" not allowed with host ipc enabled"));
        }
        // A value is written as it is: nothing in it may begin another one.
        (!sysctl.value.chars().all(plain)).then(|| format!("forbidden sysctl: \"{shown}\" has a value that is none"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(own: serde_json::Value, name: &str, value: &str, trust: &Trust) -> Option<String> {
        let mut json = serde_json::json!({
            "containers": [], "securityContext": {"sysctls": [{"name": name, "value": value}]}
        });
        json.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        forbidden(&serde_json::from_value(json).unwrap(), trust)
    }

    #[test]
    fn a_pod_may_set_safe_ones_of_its_own_namespaces_only_and_is_told_in_a_kubelets_words() {
        let none = Trust::default();
        let wide = Trust { unsafe_sysctls: vec!["kernel.*".into(), "net.*".into()], ..Trust::default() };
        let plain = || serde_json::json!({});
        assert_eq!(pod(plain(), "net.ipv4.tcp_syncookies", "1", &none), None);
        assert_eq!(pod(plain(), "net/ipv4/tcp_syncookies", "1", &none), None);
        let text = |name: &str, why: &str| Some(format!("forbidden sysctl: \"{name}\" {why}"));
        assert_eq!(pod(plain(), "kernel.msgmax", "1", &none), text("kernel.msgmax", "not allowlisted"));
        assert_eq!(pod(plain(), "kernel.msgmax", "1", &wide), None);
        // A pattern may say what it wants: the host's own stay the host's.
        assert_eq!(pod(plain(), "kernel.core_pattern", "1", &wide), text("kernel.core_pattern", "not allowlisted"));
        let net = serde_json::json!({"hostNetwork": true});
        let why = "not allowed with host net enabled";
        assert_eq!(pod(net, "net.ipv4.tcp_rmem", "1", &none), text("net.ipv4.tcp_rmem", why));
        let ipc = serde_json::json!({"hostIPC": true});
        let why = "not allowed with host ipc enabled";
        assert_eq!(pod(ipc, "kernel.shm_rmid_forced", "1", &none), text("kernel.shm_rmid_forced", why));
        assert!(pod(plain(), "net.ipv4.tcp_rmem", "1+x", &none).unwrap().contains("value"));
    }

    #[test]
    fn names_are_read_as_kubernetes_reads_them() {
        assert_eq!(dotted("net.ipv4.conf.eth0/1.rp_filter"), "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(dotted("net/ipv4/conf/eth0.1/rp_filter"), "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(dotted("kernel/sem"), "kernel.sem");
        for (name, of) in [("kernel.sem", Some(Space::Ipc)), ("kernel.semx", None), ("net.x", Some(Space::Network))] {
            assert_eq!(space(name), of, "{name}");
        }
    }

    #[test]
    fn a_pattern_names_a_pods_own_sysctls() {
        for good in ["net.*", "net.core.somaxconn", "kernel.msg*", "kernel.shmmax", "fs.mqueue.*", "kernel.sem"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in ["*", "kernel.*", "vm.swappiness", "net.*.x", "net..x", "", "kernel.core_pattern", "fs.*", "net.a+b"]
        {
            assert!(!is_pattern(bad), "{bad}");
        }
    }
}
