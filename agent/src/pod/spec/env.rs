//! A container's environment, in a kubelet's order: envFrom, then env (which may refer back), then service variables.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVarSource};

use super::expand::expand;
use super::{Context, SpecError, fields};
use crate::resolved::{Bytes, Data};

/// Name and value pairs in order, without duplicates: what the pod says, without the image's.
pub fn of_container(context: Context<'_>, container: &Container) -> Result<Vec<(String, String)>, SpecError> {
    let service = &context.resolved.service_env;
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut put = |known: &mut BTreeMap<String, String>, name: String, value: String| {
        if !known.contains_key(&name) {
            order.push(name.clone());
        }
        known.insert(name, value);
    };
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, data) = if let Some(reference) = &source.config_map_ref {
            let optional = reference.optional.unwrap_or(false);
            ("ConfigMap", &reference.name, config_map(context, &reference.name, optional)?)
        } else if let Some(reference) = &source.secret_ref {
            let optional = reference.optional.unwrap_or(false);
            ("Secret", &reference.name, secret(context, &reference.name, optional)?)
        } else {
            continue;
        };
        for (key, value) in data.into_iter().flatten() {
            let variable = format!("{prefix}{key}");
            if is_valid_name(&variable) {
                put(&mut known, variable, text(kind, name, key, value)?);
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => {
                expand(value, &|name| known.get(name).or_else(|| service.get(name)).map(String::as_str))
            }
            (_, Some(source)) => match from_source(context, container, source)? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        put(&mut known, variable.name.clone(), value);
    }
    let mut out: Vec<(String, String)> = Vec::with_capacity(order.len() + service.len());
    for name in order {
        if let Some(value) = known.get(&name) {
            out.push((name.clone(), value.clone()));
        }
    }
    out.extend(service.iter().filter(|(name, _)| !known.contains_key(*name)).map(|(n, v)| (n.clone(), v.clone())));
    Ok(out)
}

fn from_source(
    context: Context<'_>,
    container: &Container,
    source: &EnvVarSource,
) -> Result<Option<String>, SpecError> {
    if let Some(reference) = &source.field_ref {
        return fields::field(context, &reference.field_path).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        let divisor = reference.divisor.as_ref().map(|d| d.0.as_str());
        let named = reference.container_name.as_deref();
        return fields::resource(context, Some(&container.name), named, &reference.resource, divisor).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let data = config_map(context, &reference.name, optional)?;
        return pick(context, "ConfigMap", &reference.name, &reference.key, optional, data);
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let data = secret(context, &reference.name, optional)?;
        return pick(context, "Secret", &reference.name, &reference.key, optional, data);
    }
    Ok(Some(String::new()))
}

fn pick(
    context: Context<'_>,
    kind: &'static str,
    name: &str,
    key: &str,
    optional: bool,
    data: Option<&Data>,
) -> Result<Option<String>, SpecError> {
    let Some(data) = data else { return Ok(None) };
    match data.get(key) {
        Some(value) => text(kind, name, key, value).map(Some),
        None if optional => Ok(None),
        None => Err(SpecError::NoKey {
            kind,
            namespace: context.namespace().to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
        }),
    }
}

/// A ConfigMap's data; `None` when it is absent and optional.
pub fn config_map<'a>(context: Context<'a>, name: &str, optional: bool) -> Result<Option<&'a Data>, SpecError> {
    match context.resolved.config_maps.get(name) {
        None if !optional => Err(SpecError::NoConfigMap { name: name.to_owned() }),
        found => Ok(found),
    }
}

/// A Secret's data; `None` when it is absent and optional.
pub fn secret<'a>(context: Context<'a>, name: &str, optional: bool) -> Result<Option<&'a Data>, SpecError> {
    match context.resolved.secrets.get(name) {
        None if !optional => Err(SpecError::NoSecret { name: name.to_owned() }),
        found => Ok(found),
    }
}

fn text(kind: &'static str, name: &str, key: &str, value: &Bytes) -> Result<String, SpecError> {
    let not_text = || SpecError::NotText { kind, name: name.to_owned(), key: key.to_owned() };
    let text = String::from_utf8(value.0.clone()).map_err(|_| not_text())?;
    // A NUL would end the variable early.
    if text.contains('\0') { Err(not_text()) } else { Ok(text) }
}

/// Printable ASCII without `=`, as the API server has it since 1.30.
fn is_valid_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

#[cfg(test)]
mod tests {
    use super::super::HostFacts;
    use super::*;
    use crate::resolved::Resolved;
    use k8s_openapi::api::core::v1::Pod;

    fn env(container: serde_json::Value) -> Result<Vec<(String, String)>, SpecError> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [container]}
        }))
        .unwrap();
        let data = |pairs: &[(&str, &[u8])]| -> Data {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), Bytes(v.to_vec()))).collect()
        };
        let resolved = Resolved {
            config_maps: [("cm".to_owned(), data(&[("A", b"1"), ("bad=name", b"x"), ("B", b"2")]))].into(),
            secrets: [("s".to_owned(), data(&[("P", b"hunter2"), ("BIN", b"\xff")]))].into(),
            service_env: [("KUBERNETES_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned())].into(),
            ..Resolved::default()
        };
        let host = HostFacts::default();
        let context = Context { pod: &pod, resolved: &resolved, host: &host, ip: None };
        of_container(context, &pod.spec.as_ref().unwrap().containers[0])
    }

    fn flat(env: Vec<(String, String)>) -> String {
        env.into_iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn later_sources_win_and_may_refer_back() {
        let got = env(serde_json::json!({"name": "c",
            "envFrom": [{"configMapRef": {"name": "cm"}}, {"prefix": "S_", "configMapRef": {"name": "cm"}}],
            "env": [
                {"name": "B", "value": "two"},
                {"name": "C", "value": "$(A)-$(B)-$(KUBERNETES_SERVICE_HOST)-$(NO)"},
                {"name": "E"},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "P"}}},
                {"name": "O", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "P", "optional": true}}}]
        }));
        assert_eq!(
            flat(got.unwrap()),
            "A=1 B=two S_A=1 S_B=2 C=1-two-10.0.0.1-$(NO) E= N=p P=hunter2 KUBERNETES_SERVICE_HOST=10.0.0.1"
        );
    }

    #[test]
    fn what_is_missing_is_told_as_a_kubelet_tells_it() {
        for (source, message) in [
            (serde_json::json!({"secretKeyRef": {"name": "no", "key": "k"}}), "secret \"no\" not found"),
            (serde_json::json!({"configMapKeyRef": {"name": "no", "key": "k"}}), "configmap \"no\" not found"),
            (serde_json::json!({"secretKeyRef": {"name": "s", "key": "k"}}), "couldn't find key k in Secret n/s"),
            (
                serde_json::json!({"secretKeyRef": {"name": "s", "key": "BIN"}}),
                "key BIN in Secret s is not valid UTF-8, so it cannot be an environment variable",
            ),
        ] {
            let error = env(serde_json::json!({"name": "c", "env": [{"name": "X", "valueFrom": source}]})).unwrap_err();
            assert_eq!(error.to_string(), message);
            assert_eq!(error.reason(), "CreateContainerConfigError");
        }
    }
}
