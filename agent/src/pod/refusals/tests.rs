use super::*;
use crate::intent::Source;
use crate::resolved::Resolved;

fn look(spec: serde_json::Value) -> Found {
    look_within(spec, &Trust::default())
}

fn look_within(spec: serde_json::Value, trust: &Trust) -> Found {
    let mut json = serde_json::json!({"containers": [{"name": "c", "image": "x"}]});
    json.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": json});
    find(&Intent::new("u".into(), 1, pod, Resolved::default(), Source::Kubernetes, None).unwrap(), trust)
}

fn container(own: serde_json::Value) -> Found {
    let mut json = serde_json::json!({"name": "c", "image": "x"});
    json.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    look(serde_json::json!({"containers": [json]}))
}

/// As the API server writes an ordinary pod, with all defaults filled in.
#[test]
fn an_ordinary_pod_is_honoured_in_full() {
    let found = look(serde_json::json!({
        "volumes": [
            {"name": "kube-api-access-x", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}},
            {"name": "e", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        "initContainers": [{"name": "i", "image": "x", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "image": "x", "command": ["a"], "args": ["b"],
            "ports": [{"containerPort": 80, "protocol": "TCP"}],
            "resources": {"limits": {"cpu": "1", "memory": "1Mi"}, "requests": {"cpu": "1", "memory": "1Mi", "ephemeral-storage": "1"}},
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
            "volumeMounts": [{"name": "kube-api-access-x", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "imagePullPolicy": "Always",
            "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "privileged": false,
                "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}}],
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default", "serviceAccount": "default", "nodeName": "n", "hostNetwork": false,
        "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true, "priority": 0,
        "preemptionPolicy": "PreemptLowerPriority",
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
    }));
    assert_eq!(found, Found::default());
}

#[test]
fn what_cannot_be_honoured_is_refused_by_its_path() {
    let pod = |spec: serde_json::Value| look(spec).refused;
    for (spec, path) in [
        (serde_json::json!({"hostNetwork": true}), "spec.hostNetwork (host policy: --allow host-network)"),
        (serde_json::json!({"hostPID": true}), "spec.hostPID (host policy: --allow host-pid)"),
        (serde_json::json!({"hostIPC": true}), "spec.hostIPC (host policy: --allow host-ipc)"),
        (serde_json::json!({"readinessGates": [{"conditionType": "x"}]}), "spec.readinessGates"),
        (serde_json::json!({"resourceClaims": [{"name": "x"}]}), "spec.resourceClaims"),
        (serde_json::json!({"runtimeClassName": "nodeless-vm"}), "spec.runtimeClassName (nodeless-vm)"),
        (serde_json::json!({"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}), "spec.volumes[h].hostPath"),
        (serde_json::json!({"volumes": [{"name": "g", "gitRepo": {"repository": "x"}}]}), "spec.volumes[g].gitRepo"),
        (
            serde_json::json!({"volumes": [{"name": "p", "persistentVolumeClaim": {"claimName": "x"}}]}),
            "spec.volumes[p].persistentVolumeClaim",
        ),
        (serde_json::json!({"volumes": [{"name": "e", "ephemeral": {}}]}), "spec.volumes[e].ephemeral"),
        (
            serde_json::json!({"volumes": [{"name": "p", "projected": {"sources": [{"clusterTrustBundle": {"path": "x"}}]}}]}),
            "spec.volumes[p].projected.sources[0].clusterTrustBundle",
        ),
        (
            serde_json::json!({"volumes": [{"name": "e", "emptyDir": {"medium": "HugePages"}}]}),
            "spec.volumes[e].emptyDir.medium (medium HugePages: hugePages storage requested, but there is no resource request for huge pages)",
        ),
    ] {
        assert!(pod(spec.clone()).iter().any(|p| p == path), "{spec}: {:?}", pod(spec.clone()));
    }
}

#[test]
fn container_fields_are_refused_with_their_containers_name() {
    for (own, path) in [
        (serde_json::json!({"livenessProbe": {"tcpSocket": {"port": 1}}}), "spec.containers[c].livenessProbe"),
        (serde_json::json!({"readinessProbe": {"tcpSocket": {"port": 1}}}), "spec.containers[c].readinessProbe"),
        (serde_json::json!({"startupProbe": {"tcpSocket": {"port": 1}}}), "spec.containers[c].startupProbe"),
        (
            serde_json::json!({"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}),
            "spec.containers[c].lifecycle.preStop",
        ),
        (
            serde_json::json!({"ports": [{"containerPort": 1, "hostPort": 1, "name": "w"}]}),
            "spec.containers[c].ports[w].hostPort",
        ),
        (
            serde_json::json!({"securityContext": {"privileged": true}}),
            "spec.containers[c].securityContext.privileged (host policy: --allow privileged)",
        ),
        (
            serde_json::json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}),
            "spec.containers[c].securityContext.capabilities.add (SYS_ADMIN; host policy: --allow capabilities)",
        ),
        (serde_json::json!({"volumeDevices": [{"name": "d", "devicePath": "/d"}]}), "spec.containers[c].volumeDevices"),
        (
            serde_json::json!({"resources": {"limits": {"nvidia.com/gpu": "1"}}}),
            "spec.containers[c].resources.limits[nvidia.com/gpu]",
        ),
        (serde_json::json!({"resources": {"claims": [{"name": "x"}]}}), "spec.containers[c].resources.claims"),
        (serde_json::json!({"restartPolicyRules": [{"action": "Restart"}]}), "spec.containers[c].restartPolicyRules"),
        (
            serde_json::json!({"env": [{"name": "E", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "k"}}}]}),
            "spec.containers[c].env[E].valueFrom.fileKeyRef",
        ),
        (
            serde_json::json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]}),
            "spec.containers[c].volumeMounts[v].mountPropagation (Bidirectional)",
        ),
    ] {
        let got = container(own.clone()).refused;
        assert!(got.iter().any(|p| p == path), "{own}: {got:?}");
    }
}

#[test]
fn unknown_fields_are_reported_and_not_refused() {
    let found = look(serde_json::json!({
        "teleport": {"to": "moon"}, "nothing": {}, "containers": [{"name": "c", "image": "x", "futureKnob": 3}]
    }));
    assert_eq!(found.unknown, ["spec.containers[c].futureKnob", "spec.teleport"]);
    assert!(found.refused.is_empty());
}

#[test]
fn huge_pages_are_honoured_and_what_the_api_server_would_refuse_of_them_is_not() {
    let limits = serde_json::json!({"limits": {"memory": "64Mi", "hugepages-2Mi": "4Mi"}});
    let found = look(serde_json::json!({
        "volumes": [{"name": "e", "emptyDir": {"medium": "HugePages"}}],
        "containers": [{"name": "c", "image": "x", "resources": limits}]
    }));
    assert_eq!(found, Found::default());
    for (resources, path) in [
        (
            serde_json::json!({"limits": {"hugepages-2Mi": "4Mi"}}),
            "spec.containers[c].resources (HugePages require cpu or memory)",
        ),
        (
            serde_json::json!({"limits": {"cpu": "1", "hugepages-2Mi": "3Mi"}}),
            "spec.containers[c].resources.limits[hugepages-2Mi] (3Mi is not positive integer multiple of hugepages-2Mi)",
        ),
    ] {
        assert_eq!(container(serde_json::json!({"resources": resources})).refused, [path]);
    }
    let pod = serde_json::json!({"resources": {"limits": {"hugepages-2Mi": "2Mi"}}});
    assert_eq!(look(pod).refused, ["spec.resources (HugePages require cpu or memory)"]);
    let pod = serde_json::json!({"resources": {"limits": {"memory": "64Mi", "hugepages-2Mi": "2Mi"}}});
    assert_eq!(look(pod), Found::default());
    let pod = serde_json::json!({"resources": {"limits": {"memory": "64Mi", "a.com/x": "2"}}});
    assert!(look(pod).refused[0].starts_with("spec.resources.limits[a.com/x] (Unsupported value"));
}

#[test]
fn limits_on_disk_are_honoured() {
    let found = look(serde_json::json!({"volumes": [{"name": "e", "emptyDir": {"sizeLimit": "1Mi"}}]}));
    assert!(found.refused.is_empty(), "{found:?}");
    let found = container(serde_json::json!({"resources": {"limits": {"ephemeral-storage": "1"}}}));
    assert!(found.refused.is_empty(), "{found:?}");
}

/// Each thing of the host's that a pod may ask for, with the flag that gives it.
#[test]
fn what_takes_more_of_the_host_needs_its_operators_word() {
    use crate::trust::Allow;
    let own =
        |context: serde_json::Value| serde_json::json!({"containers": [{"name": "c", "securityContext": context}]});
    let cases = [
        (serde_json::json!({"hostNetwork": true}), Allow::HostNetwork),
        (serde_json::json!({"hostPID": true}), Allow::HostPid),
        (serde_json::json!({"hostIPC": true}), Allow::HostIpc),
        (serde_json::json!({"hostUsers": true}), Allow::HostUsers),
        (own(serde_json::json!({"privileged": true, "capabilities": {"add": ["SYS_ADMIN"]}})), Allow::Privileged),
        (own(serde_json::json!({"capabilities": {"add": ["ALL"]}})), Allow::Capabilities),
        (own(serde_json::json!({"seccompProfile": {"type": "Unconfined"}})), Allow::SeccompUnconfined),
        (serde_json::json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}), Allow::SeccompUnconfined),
        (own(serde_json::json!({"appArmorProfile": {"type": "Unconfined"}})), Allow::ApparmorUnconfined),
    ];
    for (spec, allow) in cases {
        let trust = |allowed: &[Allow]| Trust {
            allowed: allowed.iter().copied().collect(),
            apparmor: true,
            ..Trust::default()
        };
        let refused = look_within(spec.clone(), &trust(&[])).refused;
        let flag = format!("host policy: --allow {})", allow.name());
        assert!(refused.len() == 1 && refused[0].ends_with(&flag), "{spec}: {refused:?}");
        assert_eq!(look_within(spec.clone(), &trust(&[allow])), Found::default(), "{spec}");
    }
}

/// It traces what joins the pod with the host's power; the operator has to give that away by name.
#[test]
fn tracing_without_a_user_namespace_needs_the_word_that_privileged_needs() {
    use crate::trust::Allow;
    let pod = |host_users: bool, name: &str| {
        serde_json::json!({"hostUsers": host_users,
            "containers": [{"name": "c", "securityContext": {"capabilities": {"add": [name]}}}]})
    };
    let trust = |allowed: &[Allow]| Trust { allowed: allowed.iter().copied().collect(), ..Trust::default() };
    let some = trust(&[Allow::HostUsers, Allow::Capabilities]);
    for name in ["SYS_PTRACE", "CAP_SYS_PTRACE", "ALL"] {
        let path =
            format!("spec.containers[c].securityContext.capabilities.add ({name}; host policy: --allow privileged)");
        assert_eq!(look_within(pod(true, name), &some).refused, [path]);
        assert_eq!(look_within(pod(false, name), &some), Found::default(), "in a user namespace of its own");
        let all = trust(&[Allow::HostUsers, Allow::Capabilities, Allow::Privileged]);
        assert_eq!(look_within(pod(true, name), &all), Found::default());
    }
    assert_eq!(look_within(pod(true, "SYS_TIME"), &some), Found::default());
}

#[test]
fn what_contradicts_itself_is_refused_whatever_the_host_allows() {
    use clap::ValueEnum as _;
    let trust = Trust { allowed: crate::trust::Allow::value_variants().iter().copied().collect(), ..Trust::default() };
    let own =
        |context: serde_json::Value| serde_json::json!({"containers": [{"name": "c", "securityContext": context}]});
    let host_port = serde_json::json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
    for (spec, path) in [
        (serde_json::json!({"hostPID": true, "hostUsers": false}), "spec.hostPID (not with hostUsers: false)"),
        (
            serde_json::json!({"hostPID": true, "shareProcessNamespace": true}),
            "spec.shareProcessNamespace (not with hostPID)",
        ),
        (
            own(serde_json::json!({"privileged": true, "allowPrivilegeEscalation": false})),
            "spec.containers[c].securityContext.allowPrivilegeEscalation (cannot set `allowPrivilegeEscalation` to false and `privileged` to true)",
        ),
        (
            own(serde_json::json!({"allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_SYS_ADMIN"]}})),
            "spec.containers[c].securityContext.allowPrivilegeEscalation (cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN)",
        ),
        (
            own(serde_json::json!({"capabilities": {"add": ["NOSUCH"]}})),
            "spec.containers[c].securityContext.capabilities.add (NOSUCH; there is no such capability)",
        ),
        (
            own(serde_json::json!({"seccompProfile": {"type": "Localhost"}})),
            "spec.containers[c].securityContext.seccompProfile (localhostProfile must be set if seccompProfile type is Localhost)",
        ),
        (
            own(serde_json::json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a/../../b"}})),
            "spec.containers[c].securityContext.seccompProfile.localhostProfile (a/../../b: not a path below the profiles' directory)",
        ),
        (
            own(serde_json::json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "/etc/x.json"}})),
            "spec.containers[c].securityContext.seccompProfile.localhostProfile (/etc/x.json: not a path below the profiles' directory)",
        ),
        (
            serde_json::json!({"hostUsers": true, "containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]}),
            "spec.containers[c].securityContext.procMount (Unmasked; only in a user namespace)",
        ),
        (
            serde_json::json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
            "spec.securityContext.windowsOptions",
        ),
        (serde_json::json!({"containers": host_port}), "spec.containers[c].ports[80].hostPort"),
    ] {
        assert_eq!(look_within(spec.clone(), &trust).refused, [path], "{spec}");
    }
    let many: Vec<u32> = (1..=9).map(|n| n * 100_000).collect();
    let found = look(serde_json::json!({"securityContext": {"supplementalGroups": many}}));
    assert!(found.refused[0].starts_with("spec.securityContext (ids above 65535 lie too far apart"), "{found:?}");
}

/// As the API server writes a pod in its host's network: with host ports.
#[test]
fn pods_that_need_no_word_of_the_operator_are_honoured() {
    let trust = Trust { allowed: [crate::trust::Allow::HostNetwork].into(), ..Trust::default() };
    let ports = serde_json::json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
    let spec = serde_json::json!({"hostNetwork": true, "containers": ports});
    assert_eq!(look_within(spec, &trust), Found::default());
    for own in [
        serde_json::json!({"procMount": "Unmasked"}),
        serde_json::json!({"appArmorProfile": {"type": "Unconfined"}}),
        serde_json::json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}}),
        serde_json::json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}}),
        serde_json::json!({"runAsUser": 1_000_650_000, "runAsGroup": 0}),
    ] {
        assert_eq!(container(serde_json::json!({"securityContext": own})), Found::default());
    }
    assert_eq!(look(serde_json::json!({"hostUsers": false})), Found::default());
    let selinux = look(serde_json::json!({"securityContext": {"seLinuxOptions": {"level": "s0:c1"}}}));
    assert_eq!(
        (selinux.refused.len(), selinux.unenforced),
        (0, vec!["spec.securityContext.seLinuxOptions".to_owned()])
    );
}

#[test]
fn a_kubelets_own_refusals_keep_its_words() {
    let sysctl = look(serde_json::json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}));
    let words = "forbidden sysctl: \"kernel.msgmax\" not allowlisted".to_owned();
    assert_eq!((sysctl.refused.len(), sysctl.verdict), (0, Some(("SysctlForbidden", words))));
    let profile = look(serde_json::json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}));
    let words = "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned();
    assert_eq!((profile.refused.len(), profile.verdict), (0, Some(("AppArmor", words))));
}
