//! The allow-list: every field of a PodSpec that this version honours, or that is not a node's business.

use serde_json::Value;

use super::unknown::is_nothing;

/// `[]` is any element; a line that ends in `.*` allows all below it.
const ALLOWED: &[&str] = &[
    // Not a node's business: the scheduler, the API server and controllers act on these.
    "affinity.*",
    "automountServiceAccountToken",
    "nodeName",
    "nodeSelector.*",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "schedulerName",
    "schedulingGates.*",
    "schedulingGroup.*",
    "serviceAccount",
    "serviceAccountName",
    "tolerations.*",
    "topologySpreadConstraints.*",
    "imagePullSecrets.*",
    // The pod.
    "activeDeadlineSeconds",
    "dnsConfig.*",
    "dnsPolicy",
    "enableServiceLinks",
    // Not run and told as a change of a running pod, which they are.
    "ephemeralContainers",
    "hostAliases.*",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "os.*",
    "overhead.*",
    "resources.limits.*",
    "resources.requests.*",
    "restartPolicy",
    "runtimeClassName",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "securityContext.fsGroup",
    "securityContext.fsGroupChangePolicy",
    "securityContext.runAsGroup",
    "securityContext.runAsNonRoot",
    "securityContext.runAsUser",
    "securityContext.seccompProfile.*",
    "securityContext.appArmorProfile.*",
    "securityContext.seLinuxChangePolicy",
    "securityContext.seLinuxOptions.*",
    "securityContext.supplementalGroups.*",
    "securityContext.supplementalGroupsPolicy",
    "securityContext.sysctls.*",
    // Volumes.
    "volumes[].name",
    "volumes[].emptyDir.*",
    "volumes[].configMap.*",
    "volumes[].secret.*",
    "volumes[].downwardAPI.*",
    "volumes[].image.pullPolicy",
    "volumes[].image.reference",
    "volumes[].projected.defaultMode",
    "volumes[].projected.sources[].configMap.*",
    "volumes[].projected.sources[].secret.*",
    "volumes[].projected.sources[].downwardAPI.*",
    "volumes[].projected.sources[].serviceAccountToken.*",
    // Containers (init containers the same).
    "containers[].args.*",
    "containers[].command.*",
    "containers[].env[].name",
    "containers[].env[].value",
    "containers[].env[].valueFrom.configMapKeyRef.*",
    "containers[].env[].valueFrom.fieldRef.*",
    "containers[].env[].valueFrom.resourceFieldRef.*",
    "containers[].env[].valueFrom.secretKeyRef.*",
    "containers[].envFrom.*",
    "containers[].image",
    "containers[].imagePullPolicy",
    "containers[].lifecycle.stopSignal",
    "containers[].name",
    "containers[].ports[].containerPort",
    "containers[].ports[].hostIP",
    "containers[].ports[].hostPort",
    "containers[].ports[].name",
    "containers[].ports[].protocol",
    "containers[].resizePolicy.*",
    "containers[].resources.limits.*",
    "containers[].resources.requests.*",
    "containers[].restartPolicy",
    "containers[].securityContext.allowPrivilegeEscalation",
    "containers[].securityContext.appArmorProfile.*",
    "containers[].securityContext.capabilities.*",
    "containers[].securityContext.privileged",
    "containers[].securityContext.procMount",
    "containers[].securityContext.readOnlyRootFilesystem",
    "containers[].securityContext.runAsGroup",
    "containers[].securityContext.runAsNonRoot",
    "containers[].securityContext.runAsUser",
    "containers[].securityContext.seLinuxOptions.*",
    "containers[].securityContext.seccompProfile.*",
    "containers[].stdin",
    "containers[].stdinOnce",
    "containers[].terminationMessagePath",
    "containers[].terminationMessagePolicy",
    "containers[].tty",
    "containers[].volumeMounts[].mountPath",
    "containers[].volumeMounts[].mountPropagation",
    "containers[].volumeMounts[].name",
    "containers[].volumeMounts[].readOnly",
    "containers[].volumeMounts[].recursiveReadOnly",
    "containers[].volumeMounts[].subPath",
    "containers[].volumeMounts[].subPathExpr",
    "containers[].workingDir",
];

/// Adds the paths of `spec` that are set and not in the list; the deepest part that tells which feature it is.
pub(super) fn walk(spec: &Value, refused: &mut Vec<String>) {
    let Value::Object(map) = spec else { return };
    for (key, value) in map {
        let pattern = if key == "initContainers" { "containers" } else { key.as_str() };
        visit(value, pattern, &format!("spec.{key}"), refused);
    }
}

fn visit(value: &Value, pattern: &str, path: &str, refused: &mut Vec<String>) {
    if is_nothing(value) {
        // An empty object can be a choice all the same: `hostPath: {}` is none, `emptyDir: {}` is one.
        let chosen = value.is_object() && leads_nowhere(pattern);
        if !chosen {
            return;
        }
    }
    if is_allowed(pattern) {
        return;
    }
    if leads_nowhere(pattern) {
        refused.push(path.to_owned());
        return;
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                visit(value, &format!("{pattern}.{key}"), &format!("{path}.{key}"), refused);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                let place = value.get("name").and_then(Value::as_str).map_or(index.to_string(), str::to_owned);
                visit(value, &format!("{pattern}[]"), &format!("{path}[{place}]"), refused);
            }
        }
        _ => refused.push(path.to_owned()),
    }
}

fn is_allowed(pattern: &str) -> bool {
    ALLOWED.iter().any(|line| match line.strip_suffix(".*") {
        Some(prefix) => pattern == prefix,
        None => *line == pattern,
    })
}

/// Nothing below it is allowed: naming the field itself is the clearest.
fn leads_nowhere(pattern: &str) -> bool {
    !ALLOWED
        .iter()
        .any(|line| line.strip_prefix(pattern).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])))
}
