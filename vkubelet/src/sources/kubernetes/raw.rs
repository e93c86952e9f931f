//! A Pod as the API server's own JSON: typed clients drop unknown fields in silence, this one drops none.

use std::borrow::Cow;

use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A Pod with its unparsed JSON. `metadata.managedFields` alone is left out: it is the API server's bookkeeping, often
/// longer than the Pod, and changes with every status write.
#[derive(Debug, Clone)]
pub struct RawPod {
    metadata: ObjectMeta,
    /// The whole object.
    pub json: Bytes,
}

impl<'de> Deserialize<'de> for RawPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = serde_json::Value::deserialize(deserializer)?;
        let object = value.as_object_mut().ok_or_else(|| D::Error::custom("a pod must be a JSON object"))?;
        // Items of a list carry neither; a Pod on its own does.
        object.insert("apiVersion".to_owned(), "v1".into());
        object.insert("kind".to_owned(), "Pod".into());
        let metadata = object.get_mut("metadata").ok_or_else(|| D::Error::missing_field("metadata"))?;
        if let Some(map) = metadata.as_object_mut() {
            map.remove("managedFields");
        }
        let metadata = ObjectMeta::deserialize(&*metadata).map_err(D::Error::custom)?;
        let json = serde_json::to_vec(&value).map_err(D::Error::custom)?;
        Ok(Self { metadata, json: json.into() })
    }
}

impl kube::Resource for RawPod {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        <Pod as kube::Resource>::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        <Pod as kube::Resource>::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        <Pod as kube::Resource>::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        <Pod as kube::Resource>::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_a_later_version_is_kept() {
        let text =
            r#"{"metadata":{"name":"p","uid":"u","managedFields":[{"manager":"x"}]},"spec":{"fromTheFuture":{"a":1}}}"#;
        let pod: RawPod = serde_json::from_str(text).unwrap();
        let back: serde_json::Value = serde_json::from_slice(&pod.json).unwrap();
        assert_eq!(back["spec"]["fromTheFuture"]["a"], 1);
        assert_eq!(back["kind"], "Pod");
        assert!(back["metadata"].get("managedFields").is_none());
        assert_eq!(kube::Resource::meta(&pod).uid.as_deref(), Some("u"));
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        assert!(serde_json::from_str::<RawPod>("[]").is_err());
        assert!(serde_json::from_str::<RawPod>("{}").is_err());
    }
}
