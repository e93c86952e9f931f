//! AppArmor profiles of containers, as a kubelet chooses and refuses them. Pure.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::trust::Trust;

/// The annotation that named a profile before there were fields; the container's name follows.
const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A container's profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// The runtime's own.
    RuntimeDefault,
    /// One that the host's operator has loaded.
    Localhost(String),
    /// None.
    Unconfined,
}

/// The profile that a container asks for: its own field, else the annotation, else the pod's field.
pub fn profile(pod: &Pod, container: &Container) -> Result<Option<Profile>, String> {
    let own = container.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    let annotations = pod.metadata.annotations.as_ref();
    let annotated = annotations.and_then(|map| map.get(&format!("{ANNOTATION}{}", container.name)));
    let pods = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.app_armor_profile.as_ref());
    let field = match (own, annotated) {
        (Some(own), _) => own,
        (None, Some(text)) => return annotation(text).map(Some),
        (None, None) => match pods {
            Some(profile) => profile,
            None => return Ok(None),
        },
    };
    match (field.type_.as_str(), field.localhost_profile.as_deref()) {
        ("RuntimeDefault", _) => Ok(Some(Profile::RuntimeDefault)),
        ("Unconfined", _) => Ok(Some(Profile::Unconfined)),
        ("Localhost", Some(name)) if !name.is_empty() => Ok(Some(Profile::Localhost(name.to_owned()))),
        ("Localhost", _) => Err("localhostProfile must be set if appArmorProfile type is Localhost".to_owned()),
        (other, _) => Err(format!("invalid AppArmor profile type: {other:?}")),
    }
}

fn annotation(text: &str) -> Result<Profile, String> {
    match text.strip_prefix("localhost/") {
        Some(name) if !name.is_empty() => Ok(Profile::Localhost(name.to_owned())),
        _ => match text {
            "" | "runtime/default" => Ok(Profile::RuntimeDefault),
            "unconfined" => Ok(Profile::Unconfined),
            _ => Err(format!("invalid AppArmor profile name: {text:?}")),
        },
    }
}

/// Why the pod cannot run here, in a kubelet's words.
pub fn refusal(pod: &Pod, trust: &Trust) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let profiles: Result<Vec<_>, String> = containers.map(|container| profile(pod, container)).collect();
    let problem = match profiles {
        Err(problem) => Some(problem),
        Ok(profiles) => {
            let asked = || profiles.iter().flatten();
            if asked().any(|profile| *profile != Profile::Unconfined) && !trust.apparmor {
                Some("AppArmor is not enabled on the host".to_owned())
            } else if asked().any(|profile| *profile == Profile::RuntimeDefault) && trust.apparmor_default.is_none() {
                Some("the host has no default profile (--apparmor-default-profile)".to_owned())
            } else {
                None
            }
        }
    };
    problem.map(|problem| format!("Cannot enforce AppArmor: {problem}"))
}

/// What the kernel is told for an admitted container; `None` leaves it as the agent is.
pub fn enforced(pod: &Pod, container: &Container, trust: &Trust) -> Option<String> {
    let privileged = container.security_context.as_ref().and_then(|c| c.privileged) == Some(true);
    if !trust.apparmor || privileged {
        return None;
    }
    match profile(pod, container).ok().flatten() {
        None | Some(Profile::RuntimeDefault) => trust.apparmor_default.clone(),
        Some(Profile::Localhost(name)) => Some(name),
        Some(Profile::Unconfined) => Some("unconfined".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(pods: Option<&str>, own: serde_json::Value, annotated: Option<&str>) -> Pod {
        let annotations = annotated.map(|text| serde_json::json!({format!("{ANNOTATION}c"): text}));
        serde_json::from_value(serde_json::json!({
            "metadata": {"annotations": annotations},
            "spec": {
                "securityContext": {"appArmorProfile": pods.map(|kind| serde_json::json!({"type": kind}))},
                "containers": [{"name": "c", "securityContext": {"appArmorProfile": own}}],
            }
        }))
        .unwrap()
    }

    fn chosen(pod: &Pod) -> Result<Option<Profile>, String> {
        profile(pod, &pod.spec.as_ref().unwrap().containers[0])
    }

    #[test]
    fn the_containers_field_counts_then_the_annotation_then_the_pods() {
        let null = serde_json::Value::Null;
        let local = serde_json::json!({"type": "Localhost", "localhostProfile": "mine"});
        assert_eq!(chosen(&pod(None, null.clone(), None)), Ok(None));
        assert_eq!(chosen(&pod(Some("RuntimeDefault"), null.clone(), None)), Ok(Some(Profile::RuntimeDefault)));
        let annotated = pod(Some("RuntimeDefault"), null.clone(), Some("unconfined"));
        assert_eq!(chosen(&annotated), Ok(Some(Profile::Unconfined)));
        let own = pod(Some("RuntimeDefault"), local, Some("unconfined"));
        assert_eq!(chosen(&own), Ok(Some(Profile::Localhost("mine".into()))));
        let annotated = pod(None, null.clone(), Some("localhost/a b"));
        assert_eq!(chosen(&annotated), Ok(Some(Profile::Localhost("a b".into()))));
        assert!(chosen(&pod(None, null.clone(), Some("localhost/"))).is_err());
        assert!(chosen(&pod(None, serde_json::json!({"type": "Localhost"}), None)).is_err());
    }

    #[test]
    fn without_apparmor_only_unconfined_runs() {
        let null = serde_json::Value::Null;
        let (without, with) = (Trust::default(), Trust { apparmor: true, ..Trust::default() });
        let full = Trust { apparmor_default: Some("pods".into()), ..with.clone() };
        let words = Some("Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned());
        let default = pod(Some("RuntimeDefault"), null.clone(), None);
        assert_eq!(refusal(&default, &without), words);
        assert!(refusal(&default, &with).unwrap().contains("--apparmor-default-profile"));
        assert_eq!(refusal(&default, &full), None);
        assert_eq!(refusal(&pod(Some("RuntimeDefault"), null.clone(), Some("unconfined")), &without), None);
        assert_eq!(refusal(&pod(None, null.clone(), None), &without), None);
        assert_eq!(refusal(&pod(None, null.clone(), Some("localhost/mine")), &without), words);
        assert!(refusal(&pod(None, null, Some("nonsense")), &full).unwrap().contains("nonsense"));
    }

    #[test]
    fn the_kernel_is_told_the_profile_that_counts() {
        let told = |pod: Pod, trust: &Trust| enforced(&pod, &pod.spec.as_ref().unwrap().containers[0], trust);
        let null = || serde_json::Value::Null;
        let full = Trust { apparmor: true, apparmor_default: Some("pods".into()), ..Trust::default() };
        let bare = Trust { apparmor_default: None, ..full.clone() };
        assert_eq!(told(pod(None, null(), None), &full), Some("pods".into()));
        assert_eq!(told(pod(None, null(), None), &bare), None);
        assert_eq!(told(pod(Some("RuntimeDefault"), null(), None), &full), Some("pods".into()));
        assert_eq!(told(pod(None, null(), Some("localhost/mine")), &full), Some("mine".into()));
        assert_eq!(told(pod(Some("Unconfined"), null(), None), &full), Some("unconfined".into()));
        assert_eq!(told(pod(Some("RuntimeDefault"), null(), None), &Trust { apparmor: false, ..full.clone() }), None);
        let mut privileged = pod(None, null(), None);
        privileged.spec.as_mut().unwrap().containers[0].security_context.as_mut().unwrap().privileged = Some(true);
        assert_eq!(told(privileged, &full), None);
    }
}
