//! One manifest file to one object. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde::Deserialize;
use serde_json::Value;

use super::defaults;
use crate::ports::{ReferenceKind, ReferencedObject};

/// Larger files are refused.
pub(super) const MAX_BYTES: u64 = 3 << 20;

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Manifest {
    /// A Pod with its defaults, without UID.
    Pod(Value),
    /// A ConfigMap or Secret.
    Object { kind: ReferenceKind, namespace: String, name: String, object: ReferencedObject },
}

/// Why a file is not taken. Each message names the field and says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParseError {
    #[error("not valid YAML or JSON: {0}")]
    Syntax(String),
    #[error("holds {0} documents: put each object into a file of its own")]
    ManyDocuments(usize),
    #[error("is empty: write a Pod into it or delete it")]
    Empty,
    #[error(
        "kind {kind:?} of apiVersion {api_version:?} is not supported here: use a Pod, ConfigMap or Secret of apiVersion v1"
    )]
    Kind { kind: String, api_version: String },
    #[error("{0}")]
    Type(String),
    #[error("unknown field {0}: correct or remove it")]
    UnknownField(String),
    #[error("{field}: {problem}")]
    Field { field: String, problem: String },
}

impl ParseError {
    fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }
}

/// Parses a file's text.
pub(super) fn parse(text: &str, node_name: &str) -> Result<Manifest, ParseError> {
    // JSON is a subset of YAML; one parser serves both, and its errors name the path and the line.
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document).map_err(|e| ParseError::Syntax(e.to_string()))?;
        if !value.is_null() {
            documents.push(value);
        }
    }
    let value = match documents.len() {
        0 => return Err(ParseError::Empty),
        1 => documents.remove(0),
        n => return Err(ParseError::ManyDocuments(n)),
    };
    let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    match (word("kind").as_str(), word("apiVersion").as_str()) {
        ("Pod", "v1") => pod(text, value, node_name).map(Manifest::Pod),
        ("ConfigMap", "v1") => config_map(text),
        ("Secret", "v1") => secret(text),
        (kind, api_version) => Err(ParseError::Kind { kind: kind.to_owned(), api_version: api_version.to_owned() }),
    }
}

fn typed<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, ParseError> {
    serde_yaml_ng::from_str(text).map_err(|e| ParseError::Type(e.to_string()))
}

/// Checks a Pod and adds its defaults. `text` is only for messages with line numbers.
pub(super) fn pod(text: &str, mut value: Value, node_name: &str) -> Result<Value, ParseError> {
    let parsed: Pod = typed(text)?;
    let back = serde_json::to_value(&parsed).map_err(|e| ParseError::Type(e.to_string()))?;
    if let Some(path) = unknown_field(&value, &back, "") {
        return Err(ParseError::UnknownField(path));
    }
    check(&parsed, node_name)?;
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
    }
    defaults::apply(&mut value, node_name);
    Ok(value)
}

fn check(pod: &Pod, node_name: &str) -> Result<(), ParseError> {
    let meta = &pod.metadata;
    if meta.generate_name.is_some() && meta.name.is_none() {
        return Err(ParseError::field(
            "metadata.generateName",
            "a manifest's pod needs a name of its own: set metadata.name",
        ));
    }
    subdomain("metadata.name", meta.name.as_deref().unwrap_or_default())?;
    if let Some(namespace) = &meta.namespace {
        label("metadata.namespace", namespace)?;
    }
    for (field, set) in
        [("metadata.uid", meta.uid.is_some()), ("metadata.deletionTimestamp", meta.deletion_timestamp.is_some())]
    {
        if set {
            return Err(ParseError::field(field, "is given by the node: remove it"));
        }
    }
    let Some(spec) = &pod.spec else { return Err(ParseError::field("spec", "is missing")) };
    if let Some(named) = spec.node_name.as_deref().filter(|n| !n.is_empty() && *n != node_name) {
        return Err(ParseError::field("spec.nodeName", format!("is {named}, and this node is {node_name}: remove it")));
    }
    if spec.containers.is_empty() {
        return Err(ParseError::field("spec.containers", "needs at least one container"));
    }
    let mut seen: BTreeMap<&str, String> = BTreeMap::new();
    let init = spec.init_containers.iter().flatten().enumerate().map(|(i, c)| (format!("spec.initContainers[{i}]"), c));
    let main = spec.containers.iter().enumerate().map(|(i, c)| (format!("spec.containers[{i}]"), c));
    for (path, container) in init.chain(main) {
        label(&format!("{path}.name"), &container.name)?;
        if let Some(first) = seen.insert(&container.name, path.clone()) {
            return Err(ParseError::field(
                format!("{path}.name"),
                format!("{} is the name of {first} too", container.name),
            ));
        }
        if container.image.as_deref().unwrap_or_default().trim().is_empty() {
            return Err(ParseError::field(format!("{path}.image"), "is missing"));
        }
    }
    one_of("spec.restartPolicy", spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"])?;
    one_of(
        "spec.dnsPolicy",
        spec.dns_policy.as_deref(),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    )?;
    if spec.termination_grace_period_seconds.is_some_and(|s| s < 0) {
        return Err(ParseError::field("spec.terminationGracePeriodSeconds", "must be 0 or more"));
    }
    crate::placement::Request::of(pod).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        ParseError::Type(format!("{error}: {cause}"))
    })?;
    Ok(())
}

fn one_of(field: &str, value: Option<&str>, allowed: &[&str]) -> Result<(), ParseError> {
    match value {
        Some(value) if !allowed.contains(&value) => {
            Err(ParseError::field(field, format!("{value:?} is not one of {}", allowed.join(", "))))
        }
        _ => Ok(()),
    }
}

fn label(field: &str, name: &str) -> Result<(), ParseError> {
    let good = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    Err(ParseError::field(
        field,
        format!("{name:?} must be 1 to 63 of a-z, 0-9 and -, and begin and end with a letter or digit"),
    ))
}

fn subdomain(field: &str, name: &str) -> Result<(), ParseError> {
    if name.is_empty() {
        return Err(ParseError::field(field, "is missing"));
    }
    if name.len() > 253 {
        return Err(ParseError::field(field, "is longer than 253"));
    }
    name.split('.').try_for_each(|part| label(field, part))
}

/// The first field of `given` that `known` has lost.
fn unknown_field(given: &Value, known: &Value, path: &str) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match known.get(key) {
                Some(kept) => unknown_field(value, kept, &path),
                None if value.is_null() => None,
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(known)) => given
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(i, (value, kept))| unknown_field(value, kept, &format!("{path}[{i}]"))),
        _ => None,
    }
}

fn config_map(text: &str) -> Result<Manifest, ParseError> {
    let parsed: ConfigMap = typed(text)?;
    let mut data: BTreeMap<String, Vec<u8>> =
        parsed.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect();
    data.extend(parsed.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)));
    object(ReferenceKind::ConfigMap, parsed.metadata, ReferencedObject { type_: String::new(), data })
}

fn secret(text: &str) -> Result<Manifest, ParseError> {
    // Not typed(): its messages could quote a value.
    let broken = |e: serde_yaml_ng::Error| {
        let place = e.location().map(|l| format!(" near line {}, column {}", l.line(), l.column())).unwrap_or_default();
        ParseError::Type(format!("not a valid Secret{place}: data needs base64, stringData plain text"))
    };
    let parsed: Secret = serde_yaml_ng::from_str(text).map_err(broken)?;
    let mut data: BTreeMap<String, Vec<u8>> = parsed.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
    data.extend(parsed.string_data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())));
    let type_ = parsed.type_.unwrap_or_else(|| "Opaque".to_owned());
    object(ReferenceKind::Secret, parsed.metadata, ReferencedObject { type_, data })
}

fn object(
    kind: ReferenceKind,
    meta: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    object: ReferencedObject,
) -> Result<Manifest, ParseError> {
    let name = meta.name.unwrap_or_default();
    subdomain("metadata.name", &name)?;
    let namespace = meta.namespace.unwrap_or_else(|| "default".to_owned());
    label("metadata.namespace", &namespace)?;
    Ok(Manifest::Object { kind, namespace, name, object })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: busybox}]}\n";

    fn error(text: &str) -> String {
        parse(text, "node").unwrap_err().to_string()
    }

    #[test]
    fn yaml_and_json_give_the_same_pod_with_defaults() {
        let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"containers":[{"name":"a","image":"busybox"}]}}"#;
        let Manifest::Pod(pod) = parse(POD, "node").unwrap() else { panic!() };
        assert_eq!(parse(json, "node").unwrap(), Manifest::Pod(pod.clone()));
        assert_eq!(pod["metadata"]["namespace"], "default");
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 30);
        assert_eq!(pod["spec"]["nodeName"], "node");
    }

    #[test]
    fn errors_name_the_field_and_what_to_do() {
        let rows = [
            (POD.replace("image: busybox", "image: [1]"), "spec.containers[0].image"),
            (POD.replace("image:", "imagee:"), "unknown field spec.containers[0].imagee"),
            (POD.replace("name: a", "name: A_b"), "spec.containers[0].name: \"A_b\" must be"),
            (POD.replace("name: web", "uid: x, name: web"), "metadata.uid: is given by the node"),
            (POD.replace("{name: web}", "{}"), "metadata.name: is missing"),
            (POD.replace("kind: Pod", "kind: Deployment"), "kind \"Deployment\""),
            (format!("{POD}---\n{POD}"), "holds 2 documents"),
            (String::new(), "is empty"),
            ("a: [".to_owned(), "not valid YAML"),
            (POD.replace("spec: {", "spec: {nodeName: other, "), "spec.nodeName: is other"),
            (POD.replace("spec: {", "spec: {restartPolicy: Sometimes, "), "not one of Always, OnFailure, Never"),
            (
                POD.replace("image: busybox", "image: b, resources: {limits: {cpu: lots}}"),
                "spec.containers[0].resources.limits.cpu",
            ),
        ];
        for (text, want) in rows {
            let got = error(&text);
            assert!(got.contains(want), "{want:?} is not in {got:?}");
        }
    }

    #[test]
    fn a_broken_secret_is_not_quoted() {
        let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {k: 'hunter2!'}\n";
        assert!(!error(text).contains("hunter2"), "{}", error(text));
    }

    #[test]
    fn config_maps_and_secrets_are_decoded() {
        let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {k: dg==}\nstringData: {p: q}\n";
        let Manifest::Object { kind, namespace, object, .. } = parse(text, "node").unwrap() else { panic!() };
        assert_eq!((kind, namespace.as_str()), (ReferenceKind::Secret, "default"));
        assert_eq!(object.data["k"], b"v");
        assert_eq!(object.data["p"], b"q");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = parse(&text, "node");
        }
    }
}
