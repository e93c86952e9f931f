//! The downward API: what a pod may learn of itself and its resources.

use std::collections::BTreeMap;

use super::{Context, SpecError, resources};
use crate::quantity::{milli, whole};

/// The value of `fieldRef.fieldPath`.
pub fn field(context: Context<'_>, path: &str) -> Result<String, SpecError> {
    let meta = &context.pod.metadata;
    let spec = context.spec();
    let none = || SpecError::NoField { path: path.to_owned() };
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(none()),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let ip = || context.ip.map(|ip| ip.to_string()).unwrap_or_default();
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => listing(meta.labels.as_ref()),
        "metadata.annotations" => listing(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => context.host.ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => context.host.ips.join(","),
        "status.podIP" | "status.podIPs" => ip(),
        _ => return Err(none()),
    })
}

/// `metadata.labels['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// `key="value"` lines, sorted, values quoted as Go quotes them.
fn listing(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

fn quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of `resourceFieldRef`, rounded up to the divisor.
pub fn resource(
    context: Context<'_>,
    own_container: Option<&str>,
    container: Option<&str>,
    resource: &str,
    divisor: Option<&str>,
) -> Result<String, SpecError> {
    let none = || SpecError::NoField { path: format!("resourceFieldRef {resource}") };
    let name = container.filter(|c| !c.is_empty()).or(own_container).ok_or_else(none)?;
    let found = context.container(name).ok_or_else(none)?;
    let malformed = |source| SpecError::Quantity { container: name.to_owned(), source };
    let value = resources::field(&found, resource, context.host.capacity).ok_or_else(none)?.map_err(malformed)?;
    let is_cpu = resource.ends_with(".cpu");
    let divisor = divisor.filter(|d| !d.is_empty() && *d != "0").unwrap_or("1");
    let divisor = if is_cpu { milli(divisor) } else { whole(divisor) }.map_err(malformed)?;
    Ok(value.div_ceil(divisor.max(1)).to_string())
}

#[cfg(test)]
mod tests {
    use super::super::HostFacts;
    use super::super::resources::Amounts;
    use super::*;
    use crate::resolved::Resolved;
    use k8s_openapi::api::core::v1::Pod;

    fn check(path: &str) -> Result<String, SpecError> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "x\"y\nz"}},
            "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "100Mi", "hugepages-2Mi": "4Mi"}}}]}
        }))
        .unwrap();
        let host = HostFacts {
            ips: vec!["192.0.2.1".into(), "2001:db8::1".into()],
            capacity: Amounts { milli_cpu: 4000, memory: 1 << 30, ephemeral: 0 },
            hostname: "host".to_owned(),
            ..HostFacts::default()
        };
        let context =
            Context { pod: &pod, resolved: &Resolved::default(), host: &host, ip: Some([10, 0, 0, 1].into()) };
        match path.split_once('/') {
            Some((name, divisor)) => resource(context, Some("c"), None, name, Some(divisor)),
            None => field(context, path),
        }
    }

    #[test]
    fn fields_have_the_values_of_the_pod_and_its_host() {
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['missing']", ""),
            ("metadata.labels", "a=\"x\\\"y\\nz\"\nb=\"2\""),
            ("spec.nodeName", "node"),
            ("status.hostIP", "192.0.2.1"),
            ("status.hostIPs", "192.0.2.1,2001:db8::1"),
            ("status.podIP", "10.0.0.1"),
            ("limits.cpu/", "2"),
            ("limits.cpu/1m", "1500"),
            ("limits.memory/1Mi", "100"),
            ("limits.memory/0", "104857600"),
            ("requests.cpu/1m", "1500"),
            ("limits.ephemeral-storage/1", "0"),
            ("limits.hugepages-2Mi/1Mi", "4"),
            ("requests.hugepages-2Mi/1", "4194304"),
            ("limits.hugepages-1Gi/1", "0"),
        ] {
            assert_eq!(check(path).as_deref(), Ok(expected), "{path}");
        }
        for path in ["status.phase", "spec.foo", "metadata.labels[b]", "limits.gpu/1"] {
            assert!(check(path).is_err(), "{path}");
        }
    }
}
