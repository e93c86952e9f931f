//! The references of a pod. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, KeyToPath, Pod, Volume};

use crate::ports::ReferenceKind;

/// The API server's smallest and default token lifetimes in seconds.
const TOKEN_DEFAULT_SECONDS: i64 = 3600;

/// Everything that a pod refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// ConfigMaps and Secrets by name.
    pub objects: BTreeMap<(ReferenceKind, String), Need>,
    /// Names of Secrets with registry credentials. Absent ones are skipped, as a kubelet does.
    pub pull_secrets: Vec<String>,
    /// Projected service-account tokens.
    pub tokens: Vec<TokenNeed>,
}

/// How one object is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// At least one use is not optional.
    pub mandatory: bool,
    /// At least one volume cannot be set up without it, and with it no container of the pod; otherwise those containers wait
    /// whose environment it is for, and only they.
    pub mounted: bool,
    /// Keys that containers' environments must find there.
    pub keys: BTreeSet<String>,
    /// Keys that volumes must find there.
    pub mounted_keys: BTreeSet<String>,
    /// Used for a container's environment: without it the container cannot be created.
    pub env: bool,
    /// All its keys become environment variables, with these prefixes.
    pub env_from_prefixes: Vec<String>,
    /// The first field that uses it, such as `spec.containers{app}.env{DB}`.
    pub field: String,
}

/// One projected token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenNeed {
    /// The volume.
    pub volume: String,
    /// Path below the volume.
    pub path: String,
    /// Empty: the API server's own.
    pub audience: String,
    /// Seconds.
    pub expiration_seconds: i64,
}

impl Needs {
    /// Lists a pod's references.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let mut needs = Self::default();
        let Some(spec) = &pod.spec else { return needs };
        let plain = spec.init_containers.iter().flatten().chain(&spec.containers);
        let plain = plain.map(|c| ("containers", &c.name, &c.env, &c.env_from));
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let ephemeral = ephemeral.map(|c| ("ephemeralContainers", &c.name, &c.env, &c.env_from));
        for (list, name, env, sources) in plain.chain(ephemeral) {
            let path = format!("spec.{list}{{{name}}}");
            for env in env.iter().flatten() {
                needs.env(env, &path);
            }
            for source in sources.iter().flatten() {
                needs.env_from(source, &path);
            }
        }
        for volume in spec.volumes.iter().flatten() {
            needs.volume(volume);
        }
        for secret in spec.image_pull_secrets.iter().flatten() {
            if !secret.name.is_empty() && !needs.pull_secrets.contains(&secret.name) {
                needs.pull_secrets.push(secret.name.clone());
            }
        }
        needs
    }

    /// True when nothing has to be asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.pull_secrets.is_empty() && self.tokens.is_empty()
    }

    /// True when a change of this object concerns the pod.
    #[must_use]
    pub fn concerns(&self, kind: ReferenceKind, name: &str) -> bool {
        self.objects.contains_key(&(kind, name.to_owned()))
            || (kind == ReferenceKind::Secret && self.pull_secrets.iter().any(|s| s == name))
    }

    fn need(&mut self, kind: ReferenceKind, name: &str, optional: Option<bool>, field: String) -> &mut Need {
        let need = self.objects.entry((kind, name.to_owned())).or_default();
        if need.field.is_empty() {
            need.field = field;
        }
        need.mandatory |= !optional.unwrap_or(false);
        need
    }

    fn env(&mut self, env: &EnvVar, path: &str) {
        let Some(from) = &env.value_from else { return };
        let field = format!("{path}.env{{{}}}", env.name);
        let (kind, name, key, optional) = if let Some(r) = &from.config_map_key_ref {
            (ReferenceKind::ConfigMap, &r.name, &r.key, r.optional)
        } else if let Some(r) = &from.secret_key_ref {
            (ReferenceKind::Secret, &r.name, &r.key, r.optional)
        } else {
            return;
        };
        let need = self.need(kind, name, optional, field);
        need.env = true;
        if !optional.unwrap_or(false) {
            need.keys.insert(key.clone());
        }
    }

    fn env_from(&mut self, source: &EnvFromSource, path: &str) {
        let field = format!("{path}.envFrom");
        let need = if let Some(r) = &source.config_map_ref {
            self.need(ReferenceKind::ConfigMap, &r.name, r.optional, field)
        } else if let Some(r) = &source.secret_ref {
            self.need(ReferenceKind::Secret, &r.name, r.optional, field)
        } else {
            return;
        };
        need.env = true;
        need.env_from_prefixes.push(source.prefix.clone().unwrap_or_default());
    }

    fn volume(&mut self, volume: &Volume) {
        let field = format!("spec.volumes{{{}}}", volume.name);
        if let Some(source) = &volume.config_map {
            let need = self.need(ReferenceKind::ConfigMap, &source.name, source.optional, field);
            want_keys(need, source.items.as_ref(), source.optional);
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let need = self.need(ReferenceKind::Secret, name, source.optional, field);
            want_keys(need, source.items.as_ref(), source.optional);
        } else if let Some(projected) = &volume.projected {
            for source in projected.sources.iter().flatten() {
                if let Some(r) = &source.config_map {
                    let need = self.need(ReferenceKind::ConfigMap, &r.name, r.optional, field.clone());
                    want_keys(need, r.items.as_ref(), r.optional);
                }
                if let Some(r) = &source.secret {
                    let need = self.need(ReferenceKind::Secret, &r.name, r.optional, field.clone());
                    want_keys(need, r.items.as_ref(), r.optional);
                }
                if let Some(token) = &source.service_account_token {
                    self.tokens.push(TokenNeed {
                        volume: volume.name.clone(),
                        path: token.path.clone(),
                        audience: token.audience.clone().unwrap_or_default(),
                        expiration_seconds: token.expiration_seconds.unwrap_or(TOKEN_DEFAULT_SECONDS),
                    });
                }
            }
        }
    }
}

fn want_keys(need: &mut Need, items: Option<&Vec<KeyToPath>>, optional: Option<bool>) {
    if !optional.unwrap_or(false) {
        need.mounted = true;
        need.mounted_keys.extend(items.into_iter().flatten().map(|item| item.key.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn needs(spec: serde_json::Value) -> Needs {
        Needs::of(&serde_json::from_value(json!({"spec": spec})).unwrap())
    }

    #[test]
    fn one_mandatory_use_makes_an_object_mandatory() {
        let n = needs(json!({
            "containers": [{"name": "a", "env": [
                {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "x", "optional": true}}},
                {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "y"}}},
            ]}],
        }));
        let need = &n.objects[&(ReferenceKind::ConfigMap, "m".to_owned())];
        assert!(need.mandatory && need.env && !need.mounted);
        assert_eq!(need.keys.iter().collect::<Vec<_>>(), ["y"]);
        assert_eq!(need.field, "spec.containers{a}.env{X}");
    }

    #[test]
    fn the_token_volume_of_every_pod_is_understood() {
        let n = needs(json!({
            "containers": [{"name": "a"}],
            "volumes": [{"name": "kube-api-access-x", "projected": {"sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": []}},
            ]}}],
        }));
        assert_eq!(n.tokens[0].expiration_seconds, 3607);
        assert_eq!(n.tokens[0].volume, "kube-api-access-x");
        assert!(n.objects[&(ReferenceKind::ConfigMap, "kube-root-ca.crt".to_owned())].mounted_keys.contains("ca.crt"));
    }

    #[test]
    fn every_place_of_a_reference_is_found() {
        let n = needs(json!({
            "initContainers": [{"name": "i", "envFrom": [{"prefix": "P_", "secretRef": {"name": "s1"}}]}],
            "containers": [{"name": "a", "envFrom": [{"configMapRef": {"name": "m1", "optional": true}}]}],
            "volumes": [
                {"name": "v", "secret": {"secretName": "s2"}},
                {"name": "w", "configMap": {"name": "m2"}},
                {"name": "x", "projected": {"sources": [{"secret": {"name": "s3"}}]}},
            ],
            "imagePullSecrets": [{"name": "pull"}],
        }));
        let names: Vec<&str> = n.objects.keys().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["m1", "m2", "s1", "s2", "s3"]);
        assert_eq!(n.objects[&(ReferenceKind::Secret, "s1".to_owned())].env_from_prefixes, ["P_"]);
        assert!(!n.objects[&(ReferenceKind::ConfigMap, "m1".to_owned())].mandatory);
        assert!(n.concerns(ReferenceKind::Secret, "pull") && !n.concerns(ReferenceKind::ConfigMap, "pull"));
    }
}
