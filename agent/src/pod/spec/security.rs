//! Security settings of a container: pod and container contexts merged, within the host's policy.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSecurityContext, PodSpec, SeccompProfile};
use sandbox::spec::{ALL_CAPABILITIES, DEFAULT_CAPABILITIES, Namespaces, Seccomp, Security, User};

use super::user::{Asked, LARGEST};

/// The first id that not every sandbox has.
const FIRST_HIGH: u32 = 65_536;

/// What Pod Security *baseline* lets a container add.
const BASELINE: [&str; 13] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Harmless where the network namespace belongs to the pod's own user namespace.
const OWN_NETWORK: [&str; 3] = ["CAP_NET_ADMIN", "CAP_NET_BROADCAST", "CAP_NET_RAW"];

fn full_name(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("CAP_") || upper == "ALL" { upper } else { format!("CAP_{upper}") }
}

/// Whether the name is a capability's, or `ALL`.
pub fn is_capability(name: &str) -> bool {
    let name = full_name(name);
    name == "ALL" || ALL_CAPABILITIES.contains(&name.as_str())
}

/// A capability that every host lets a pod of these namespaces add.
pub fn may_add(name: &str, namespaces: &Namespaces) -> bool {
    let name = full_name(name);
    BASELINE.contains(&name.as_str()) || namespaces.user && OWN_NETWORK.contains(&name.as_str())
}

/// A capability with which a container without a user namespace is as good as privileged, whatever else it lacks: it could take
/// over each process of the host's root that joins the pod, as every exec does on its way in.
pub fn gives_the_host_away(name: &str, namespaces: &Namespaces) -> bool {
    !namespaces.user && ["CAP_SYS_PTRACE", "ALL"].contains(&full_name(name).as_str())
}

/// The namespaces that a pod asks for. A user namespace of its own unless it asks for one of the host's, or says
/// `hostUsers: true`.
pub fn namespaces(spec: &PodSpec) -> Namespaces {
    let (host_network, host_pid, host_ipc) =
        (spec.host_network == Some(true), spec.host_pid == Some(true), spec.host_ipc == Some(true));
    let user = !(host_network || host_pid || host_ipc || spec.host_users == Some(true));
    let pod = spec.security_context.as_ref();
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let own = containers.filter_map(|c| c.security_context.as_ref()).flat_map(|c| [c.run_as_user, c.run_as_group]);
    let ids = pod
        .into_iter()
        .flat_map(|p| [p.run_as_user, p.run_as_group, p.fs_group].into_iter().chain(groups(p)))
        .chain(own)
        .flatten()
        .filter_map(|id| u32::try_from(id).ok())
        .filter(|id| user && (FIRST_HIGH..=LARGEST).contains(id));
    Namespaces { user, host_network, host_pid, host_ipc, high_ids: ids.collect() }
}

/// The same, for a pod whose images name users of these ids; without them when they are more than a sandbox can have.
pub fn namespaces_for(spec: &PodSpec, image_ids: &BTreeSet<u32>) -> Namespaces {
    let own = namespaces(spec);
    if !own.user || image_ids.is_empty() {
        return own;
    }
    let mut all = own.clone();
    all.high_ids.extend(image_ids);
    if all.check().is_ok() { all } else { own }
}

/// Ids above 65535 that an image's `User` says in numbers, where it decides.
pub fn image_ids(spec: &PodSpec, container: &Container, image_user: &str) -> BTreeSet<u32> {
    let namespaces = namespaces(spec);
    if !namespaces.user || identity(spec, container).uid.is_some() {
        return BTreeSet::new();
    }
    let digits = |id: &&str| id.bytes().all(|byte| byte.is_ascii_digit());
    let ids = image_user.splitn(2, ':').filter(digits).filter_map(|id| id.parse().ok());
    ids.filter(|id| (FIRST_HIGH..=LARGEST).contains(id)).collect()
}

fn groups(context: &PodSecurityContext) -> impl Iterator<Item = Option<i64>> + '_ {
    context.supplemental_groups.iter().flatten().copied().map(Some)
}

/// The first of a user's ids that a sandbox of these namespaces does not have.
pub fn unmapped(namespaces: &Namespaces, user: &User) -> Option<u32> {
    let mut ids = [user.uid, user.gid].into_iter().chain(user.additional_gids.iter().copied());
    ids.find(|id| !namespaces.has_id(*id))
}

/// The settings of one container. What the host's operator does not trust pods with was refused at admission.
pub fn of_container(spec: &PodSpec, container: &Container) -> Security {
    let context = container.security_context.as_ref();
    let privileged = context.and_then(|c| c.privileged) == Some(true);
    let mut security = Security {
        capabilities: capabilities(container, privileged),
        no_new_privileges: context.and_then(|c| c.allow_privilege_escalation) == Some(false),
        ..Security::default()
    };
    let unmasked = context.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked");
    if privileged || unmasked {
        security.masked_paths.clear();
        security.readonly_paths.clear();
    }
    security.host_devices = privileged;
    security.writable_kernel = privileged;
    if privileged || seccomp_profile(spec, container).is_some_and(|profile| profile.type_ == "Unconfined") {
        security.seccomp = Seccomp::Unconfined;
    }
    security
}

/// The seccomp profile that counts: the container's, else the pod's.
pub fn seccomp_profile<'a>(spec: &'a PodSpec, container: &'a Container) -> Option<&'a SeccompProfile> {
    let own = container.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref());
    own.or_else(|| spec.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref()))
}

/// The file below the host's profiles that is the container's filter, if it is to have one of those.
pub fn local_seccomp<'a>(spec: &'a PodSpec, container: &'a Container) -> Option<&'a str> {
    let privileged = container.security_context.as_ref().and_then(|c| c.privileged) == Some(true);
    let profile = seccomp_profile(spec, container).filter(|profile| profile.type_ == "Localhost" && !privileged)?;
    profile.localhost_profile.as_deref()
}

/// All for a privileged container; otherwise the default ones, fewer by what is dropped, more by what is added. As in
/// containerd, `ALL` counts first and single names after it, and what is added counts over what is dropped.
fn capabilities(container: &Container, privileged: bool) -> Vec<String> {
    let owned = |list: &[&str]| list.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
    if privileged {
        return owned(&ALL_CAPABILITIES);
    }
    let change = container.security_context.as_ref().and_then(|c| c.capabilities.as_ref());
    let names = |list: Option<&Vec<String>>| list.into_iter().flatten().map(|n| full_name(n)).collect::<Vec<_>>();
    let (added, dropped) = (names(change.and_then(|c| c.add.as_ref())), names(change.and_then(|c| c.drop.as_ref())));
    let all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let mut capabilities = match (all(&added), all(&dropped)) {
        (true, _) => owned(&ALL_CAPABILITIES),
        (false, true) => Vec::new(),
        (false, false) => owned(&DEFAULT_CAPABILITIES),
    };
    capabilities.retain(|name| !dropped.contains(name));
    for name in added.into_iter().filter(|name| name != "ALL") {
        if !capabilities.contains(&name) {
            capabilities.push(name);
        }
    }
    capabilities
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

    fn capabilities(change: serde_json::Value) -> Vec<String> {
        let spec = spec(serde_json::json!({}), serde_json::json!({"capabilities": change}));
        of_container(&spec, &spec.containers[0]).capabilities
    }

    #[test]
    fn capabilities_are_dropped_then_added() {
        let all = serde_json::json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "CAP_NET_RAW"]});
        assert_eq!(capabilities(all), ["CAP_NET_BIND_SERVICE", "CAP_NET_RAW"]);
        let some = capabilities(serde_json::json!({"drop": ["kill"]}));
        assert!(!some.contains(&"CAP_KILL".to_owned()) && some.len() == DEFAULT_CAPABILITIES.len() - 1);
        let most = capabilities(serde_json::json!({"add": ["ALL"], "drop": ["SYS_ADMIN", "KILL"]}));
        assert!(!most.contains(&"CAP_SYS_ADMIN".to_owned()) && most.len() == ALL_CAPABILITIES.len() - 2);
        assert_eq!(capabilities(serde_json::json!({"add": ["ALL"], "drop": ["ALL"]})).len(), ALL_CAPABILITIES.len());
    }

    #[test]
    fn what_may_be_added_is_baseline_and_in_a_user_namespace_ones_own_network() {
        let own = Namespaces::default();
        let hosts = Namespaces { user: false, ..Namespaces::default() };
        for name in ["CHOWN", "CAP_MKNOD", "net_bind_service", "SYS_CHROOT"] {
            assert!(may_add(name, &own) && may_add(name, &hosts), "{name}");
        }
        for name in ["NET_ADMIN", "NET_RAW", "NET_BROADCAST"] {
            assert!(may_add(name, &own) && !may_add(name, &hosts), "{name}");
        }
        for name in ["SYS_ADMIN", "ALL", "CAP_SYS_PTRACE", "NOSUCH", "BPF", "SYS_MODULE"] {
            assert!(!may_add(name, &own), "{name}");
        }
        assert!(is_capability("sys_admin") && is_capability("all") && !is_capability("NOSUCH"));
    }

    #[test]
    fn an_images_user_gets_its_ids_where_it_decides_and_there_is_room() {
        let pod = |json: serde_json::Value| -> PodSpec {
            let mut spec = serde_json::json!({"containers": [{"name": "c"}]});
            spec.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
            serde_json::from_value(spec).unwrap()
        };
        let plain = pod(serde_json::json!({}));
        let ids = |spec: &PodSpec, user: &str| image_ids(spec, &spec.containers[0], user);
        assert_eq!(ids(&plain, "70000:80000"), [70_000, 80_000].into());
        assert_eq!(ids(&plain, "70000"), [70_000].into());
        for user in ["", "app", "1000", "65535:0", "2147483648", "4294967295", "-70000", "+80000", "70000:80000:90000"]
        {
            assert!(ids(&plain, user).is_subset(&[70_000].into()), "{user}");
        }
        assert!(ids(&pod(serde_json::json!({"securityContext": {"runAsUser": 1}})), "70000").is_empty());
        assert!(ids(&pod(serde_json::json!({"hostUsers": true})), "70000").is_empty());
        assert!(namespaces_for(&plain, &[70_000].into()).has_id(70_000));
        let named: Vec<u32> = (1..=8).map(|n| n * 100_000).collect();
        let full = pod(serde_json::json!({"securityContext": {"supplementalGroups": named}}));
        assert_eq!(namespaces_for(&full, &[2_000_000_000].into()), namespaces(&full), "no window is left");
    }

    #[test]
    fn a_pod_has_a_user_namespace_unless_it_asks_for_something_of_the_hosts() {
        let of = |json: serde_json::Value| {
            let mut spec = serde_json::json!({"containers": [{"name": "c"}]});
            spec.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
            namespaces(&serde_json::from_value(spec).unwrap())
        };
        assert_eq!(of(serde_json::json!({})), Namespaces::default());
        assert_eq!(of(serde_json::json!({"hostUsers": false})), Namespaces::default());
        let off = Namespaces { user: false, ..Namespaces::default() };
        assert_eq!(of(serde_json::json!({"hostUsers": true})), off);
        assert_eq!(of(serde_json::json!({"hostNetwork": true})), Namespaces { host_network: true, ..off.clone() });
        assert_eq!(of(serde_json::json!({"hostPID": true})), Namespaces { host_pid: true, ..off.clone() });
        assert_eq!(of(serde_json::json!({"hostIPC": true})), Namespaces { host_ipc: true, ..off });
    }

    #[test]
    fn every_high_id_that_a_pod_names_is_the_sandboxs() {
        let pod = serde_json::json!({"runAsUser": 1000, "fsGroup": 70000, "supplementalGroups": [80000, 5]});
        let own = serde_json::json!({"runAsUser": 1_000_650_000_u32, "runAsGroup": 90000});
        let high = namespaces(&spec(pod, own.clone()));
        assert_eq!(high.high_ids, [70_000, 80_000, 90_000, 1_000_650_000].into());
        let user = |uid, gid| User { uid, gid, additional_gids: vec![gid] };
        assert_eq!(unmapped(&high, &user(1_000_650_000, 0)), None);
        assert_eq!(unmapped(&high, &user(1000, 200_000)), Some(200_000));
        assert_eq!(unmapped(&Namespaces::default(), &user(65_536, 0)), Some(65_536));
        let mut shared = spec(serde_json::json!({}), own);
        shared.host_pid = Some(true);
        assert!(namespaces(&shared).high_ids.is_empty(), "without a user namespace every id is there");
        assert_eq!(unmapped(&namespaces(&shared), &user(1_000_650_000, 0)), None);
    }

    #[test]
    fn privileged_and_unmasked_containers_see_what_they_ask_for() {
        let of = |own| {
            let spec = spec(serde_json::json!({"seccompProfile": {"type": "RuntimeDefault"}}), own);
            of_container(&spec, &spec.containers[0])
        };
        let usual = of(serde_json::json!({}));
        assert_eq!(usual, Security::default());
        let unmasked = of(serde_json::json!({"procMount": "Unmasked"}));
        assert!(unmasked.masked_paths.is_empty() && unmasked.readonly_paths.is_empty());
        assert_eq!((unmasked.seccomp, unmasked.capabilities), (Seccomp::RuntimeDefault, usual.capabilities));
        let privileged = of(serde_json::json!({"privileged": true, "capabilities": {"drop": ["ALL"]}}));
        assert_eq!(privileged.capabilities, ALL_CAPABILITIES);
        assert!(privileged.host_devices && privileged.writable_kernel && privileged.masked_paths.is_empty());
        assert_eq!(privileged.seccomp, Seccomp::Unconfined);
        let free = of(serde_json::json!({"seccompProfile": {"type": "Unconfined"}}));
        assert_eq!((free.seccomp, free.masked_paths), (Seccomp::Unconfined, usual.masked_paths));
    }

    #[test]
    fn a_containers_seccomp_profile_counts_over_its_pods() {
        let local = |name: &str| serde_json::json!({"type": "Localhost", "localhostProfile": name});
        let of = |pods: serde_json::Value, own: serde_json::Value| {
            let spec = spec(serde_json::json!({"seccompProfile": pods}), own);
            local_seccomp(&spec, &spec.containers[0]).map(str::to_owned)
        };
        let default = || serde_json::json!({"type": "RuntimeDefault"});
        assert_eq!(of(local("a.json"), serde_json::json!({})), Some("a.json".into()));
        assert_eq!(of(local("a.json"), serde_json::json!({"seccompProfile": local("b.json")})), Some("b.json".into()));
        assert_eq!(of(local("a.json"), serde_json::json!({"seccompProfile": default()})), None);
        assert_eq!(of(default(), serde_json::json!({"seccompProfile": local("b.json")})), Some("b.json".into()));
        assert_eq!(of(local("a.json"), serde_json::json!({"privileged": true})), None, "privileged is unconfined");
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
        let of = |own| {
            let spec = spec(serde_json::json!({}), own);
            of_container(&spec, &spec.containers[0]).no_new_privileges
        };
        assert!(of(serde_json::json!({"allowPrivilegeEscalation": false})));
        assert!(!of(serde_json::json!({"allowPrivilegeEscalation": true})));
        assert!(!of(serde_json::json!({})));
    }
}
