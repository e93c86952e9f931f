use super::*;
use crate::intent::Source;
use crate::resolved::Resolved;

fn look(spec: serde_json::Value) -> Found {
    let mut json = serde_json::json!({"containers": [{"name": "c", "image": "x"}]});
    json.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": json});
    find(&Intent::new("u".into(), 1, pod, Resolved::default(), Source::Kubernetes, None).unwrap())
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
        (serde_json::json!({"hostNetwork": true}), "spec.hostNetwork"),
        (serde_json::json!({"hostPID": true}), "spec.hostPID"),
        (serde_json::json!({"hostIPC": true}), "spec.hostIPC"),
        (serde_json::json!({"readinessGates": [{"conditionType": "x"}]}), "spec.readinessGates"),
        (serde_json::json!({"resourceClaims": [{"name": "x"}]}), "spec.resourceClaims"),
        (serde_json::json!({"ephemeralContainers": [{"name": "x"}]}), "spec.ephemeralContainers"),
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
            "spec.volumes[e].emptyDir.medium (HugePages)",
        ),
        (
            serde_json::json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
            "spec.securityContext.sysctls[kernel.msgmax]",
        ),
        (
            serde_json::json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1+x"}]}}),
            "spec.securityContext.sysctls[net.ipv4.tcp_rmem]",
        ),
        (
            serde_json::json!({"securityContext": {"seLinuxOptions": {"level": "x"}}}),
            "spec.securityContext.seLinuxOptions",
        ),
        (
            serde_json::json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "x"}}}),
            "spec.securityContext.seccompProfile.localhostProfile",
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
        (serde_json::json!({"securityContext": {"privileged": true}}), "spec.containers[c].securityContext.privileged"),
        (
            serde_json::json!({"securityContext": {"procMount": "Unmasked"}}),
            "spec.containers[c].securityContext.procMount (Unmasked)",
        ),
        (
            serde_json::json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}),
            "spec.containers[c].securityContext.capabilities.add (SYS_ADMIN)",
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
fn what_is_only_not_enforced_is_reported() {
    let found = look(serde_json::json!({"volumes": [{"name": "e", "emptyDir": {"sizeLimit": "1Mi"}}]}));
    assert_eq!(found.unenforced, ["spec.volumes[e].emptyDir.sizeLimit"]);
    let found = container(serde_json::json!({"resources": {"limits": {"ephemeral-storage": "1"}}}));
    assert_eq!(found.unenforced, ["spec.containers[c].resources.limits[ephemeral-storage]"]);
}
