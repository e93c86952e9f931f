//! Security settings of a container: pod and container contexts merged, within the host's policy.

use k8s_openapi::api::core::v1::{Container, PodSpec};
use sandbox::spec::{DEFAULT_CAPABILITIES, Seccomp, Security};

use super::SpecError;
use super::user::Asked;

/// What may be added: Pod Security *baseline*, and what is harmless because the network namespace belongs to the pod's user namespace.
pub const ADDABLE: [&str; 16] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

fn full_name(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("CAP_") || upper == "ALL" { upper } else { format!("CAP_{upper}") }
}

/// A capability that this host lets a pod add.
pub fn may_add(name: &str) -> bool {
    ADDABLE.contains(&full_name(name).as_str())
}

/// The settings of one container.
pub fn of_container(container: &Container) -> Result<Security, SpecError> {
    let context = container.security_context.as_ref();
    let mut capabilities: Vec<String> = DEFAULT_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect();
    if let Some(change) = context.and_then(|c| c.capabilities.as_ref()) {
        for name in change.drop.iter().flatten() {
            let name = full_name(name);
            if name == "ALL" {
                capabilities.clear();
            } else {
                capabilities.retain(|c| *c != name);
            }
        }
        for name in change.add.iter().flatten() {
            if !may_add(name) {
                return Err(SpecError::Capability { name: name.clone() });
            }
            let name = full_name(name);
            if !capabilities.contains(&name) {
                capabilities.push(name);
            }
        }
    }
    Ok(Security {
        capabilities,
        no_new_privileges: context.and_then(|c| c.allow_privilege_escalation) == Some(false),
        seccomp: Seccomp::RuntimeDefault,
        ..Security::default()
    })
}

/// Who is asked for.
pub fn identity(spec: &PodSpec, container: &Container) -> Asked {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let groups = pod.and_then(|p| p.supplemental_groups.clone()).unwrap_or_default();
    Asked {
        uid: own.and_then(|c| c.run_as_user).or_else(|| pod.and_then(|p| p.run_as_user)),
        gid: own.and_then(|c| c.run_as_group).or_else(|| pod.and_then(|p| p.run_as_group)),
        groups: groups.into_iter().chain(pod.and_then(|p| p.fs_group)).collect(),
        strict: pod.and_then(|p| p.supplemental_groups_policy.as_deref()) == Some("Strict"),
    }
}

/// Checks `runAsNonRoot`; the message is a kubelet's.
pub fn check_non_root(spec: &PodSpec, container: &Container, image_user: &str) -> Result<(), String> {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let required = own.and_then(|c| c.run_as_non_root).or_else(|| pod.and_then(|p| p.run_as_non_root));
    if required != Some(true) {
        return Ok(());
    }
    if let Some(uid) = identity(spec, container).uid {
        return if uid == 0 { Err("container's runAsUser breaks non-root policy".to_owned()) } else { Ok(()) };
    }
    let name = image_user.split(':').next().unwrap_or_default();
    match name.parse::<i64>() {
        Ok(0) => Err("container has runAsNonRoot and image will run as root".to_owned()),
        Ok(_) => Ok(()),
        Err(_) if name.is_empty() => Err("container has runAsNonRoot and image will run as root".to_owned()),
        Err(_) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(pod: serde_json::Value, own: serde_json::Value) -> PodSpec {
        serde_json::from_value(serde_json::json!({
            "securityContext": pod, "containers": [{"name": "c", "securityContext": own}]
        }))
        .unwrap()
    }

    fn capabilities(change: serde_json::Value) -> Result<Vec<String>, SpecError> {
        let spec = spec(serde_json::json!({}), serde_json::json!({"capabilities": change}));
        of_container(&spec.containers[0]).map(|s| s.capabilities)
    }

    #[test]
    fn capabilities_are_dropped_then_added_within_policy() {
        let all = serde_json::json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "CAP_NET_RAW"]});
        assert_eq!(capabilities(all).unwrap(), ["CAP_NET_BIND_SERVICE", "CAP_NET_RAW"]);
        let some = capabilities(serde_json::json!({"drop": ["kill"]})).unwrap();
        assert!(!some.contains(&"CAP_KILL".to_owned()) && some.len() == DEFAULT_CAPABILITIES.len() - 1);
        for bad in ["SYS_ADMIN", "ALL", "CAP_SYS_PTRACE", "NOSUCH"] {
            assert!(capabilities(serde_json::json!({"add": [bad]})).is_err(), "{bad}");
        }
    }

    #[test]
    fn non_root_is_checked_against_the_pod_and_the_image() {
        let check = |pod, own, user: &str| {
            let spec = spec(pod, own);
            check_non_root(&spec, &spec.containers[0], user)
        };
        let yes = || serde_json::json!({"runAsNonRoot": true});
        let no = || serde_json::json!({});
        assert!(check(no(), no(), "").is_ok());
        assert!(check(yes(), no(), "1000:0").is_ok());
        assert!(check(yes(), serde_json::json!({"runAsNonRoot": false}), "").is_ok());
        assert!(check(yes(), serde_json::json!({"runAsUser": 5}), "root").is_ok());
        for user in ["", "0", "0:0", "00", "app"] {
            assert!(check(yes(), no(), user).is_err(), "{user}");
        }
        assert!(check(yes(), serde_json::json!({"runAsUser": 0}), "5").is_err());
    }

    #[test]
    fn no_new_privileges_only_when_escalation_is_forbidden() {
        let of = |own| of_container(&spec(serde_json::json!({}), own).containers[0]).unwrap().no_new_privileges;
        assert!(of(serde_json::json!({"allowPrivilegeEscalation": false})));
        assert!(!of(serde_json::json!({"allowPrivilegeEscalation": true})));
        assert!(!of(serde_json::json!({})));
    }
}
