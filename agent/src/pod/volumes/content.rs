//! The files of configMap, secret, downwardAPI and projected volumes. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume};

use super::super::spec::{Context, SpecError, env, fields};
use crate::resolved::Data;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// The pod's id that it belongs to; 0 unless the kubelet gives it to the pod's user.
    pub owner: u32,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<{} bytes, {:o}>", self.bytes.len(), self.mode)
    }
}

/// Files by relative path.
pub type Files = BTreeMap<String, File>;

const DEFAULT_MODE: i32 = 0o644;
/// What all files of one volume may hold together.
const SIZE_LIMIT: usize = 16 << 20;

/// The files of a volume; `None` for a volume that is no content volume.
pub fn of_volume(context: Context<'_>, volume: &Volume) -> Result<Option<Files>, SpecError> {
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let optional = source.optional.unwrap_or(false);
        let data = env::config_map(context, &source.name, optional)?;
        let default = source.default_mode.unwrap_or(DEFAULT_MODE);
        keys(context, "ConfigMap", &source.name, data, source.items.as_deref(), default, optional, &mut files)?;
    } else if let Some(source) = &volume.secret {
        let optional = source.optional.unwrap_or(false);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let data = env::secret(context, name, optional)?;
        let default = source.default_mode.unwrap_or(DEFAULT_MODE);
        keys(context, "Secret", name, data, source.items.as_deref(), default, optional, &mut files)?;
    } else if let Some(source) = &volume.downward_api {
        let default = source.default_mode.unwrap_or(DEFAULT_MODE);
        downward(context, source.items.as_deref(), default, &mut files)?;
    } else if let Some(source) = &volume.projected {
        let default = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            if let Some(part) = &part.config_map {
                let optional = part.optional.unwrap_or(false);
                let data = env::config_map(context, &part.name, optional)?;
                keys(context, "ConfigMap", &part.name, data, part.items.as_deref(), default, optional, &mut files)?;
            }
            if let Some(part) = &part.secret {
                let optional = part.optional.unwrap_or(false);
                let data = env::secret(context, &part.name, optional)?;
                keys(context, "Secret", &part.name, data, part.items.as_deref(), default, optional, &mut files)?;
            }
            if let Some(part) = &part.downward_api {
                downward(context, part.items.as_deref(), default, &mut files)?;
            }
            if let Some(part) = &part.service_account_token {
                let token = context.resolved.tokens.iter().find(|t| t.volume == volume.name && t.path == part.path);
                let token = token.ok_or_else(|| SpecError::Mount {
                    message: format!(
                        "service account token {:?} of volume {:?} has not been issued",
                        part.path, volume.name
                    ),
                })?;
                let user = only_user(context);
                // As a kubelet: a token is for the pod's one user, or for its group (which adds its own bits), or for all.
                let mode = if user.is_some() || fs_group(context).is_some() { 0o600 } else { default };
                put(&mut files, &part.path, token.token.clone().into_bytes(), mode)?;
                if let (Some(user), Some(file)) = (user, files.get_mut(&part.path)) {
                    file.owner = user;
                }
            }
        }
    } else {
        return Ok(None);
    }
    if files.values().map(|f| f.bytes.len()).sum::<usize>() > SIZE_LIMIT {
        return Err(SpecError::Mount { message: format!("volume {:?} holds more than 16 MiB", volume.name) });
    }
    Ok(Some(files))
}

/// The pod's fsGroup.
pub fn fs_group(context: Context<'_>) -> Option<u32> {
    let security = context.spec()?.security_context.as_ref()?;
    security.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// The user whom every container of the pod is told to run as, if there is one.
fn only_user(context: Context<'_>) -> Option<u32> {
    let spec = context.spec()?;
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|container| container.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

#[allow(clippy::too_many_arguments)]
fn keys(
    context: Context<'_>,
    kind: &'static str,
    name: &str,
    data: Option<&Data>,
    items: Option<&[KeyToPath]>,
    default: i32,
    optional: bool,
    files: &mut Files,
) -> Result<(), SpecError> {
    let Some(data) = data else { return Ok(()) };
    let items = items.unwrap_or_default();
    if items.is_empty() {
        for (key, value) in data {
            put(files, key, value.0.clone(), default)?;
        }
        return Ok(());
    }
    for item in items {
        match data.get(&item.key) {
            Some(value) => put(files, &item.path, value.0.clone(), item.mode.unwrap_or(default))?,
            None if optional => {}
            None => {
                return Err(SpecError::NoKey {
                    kind,
                    namespace: context.namespace().to_owned(),
                    name: name.to_owned(),
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(())
}

fn downward(
    context: Context<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    default: i32,
    files: &mut Files,
) -> Result<(), SpecError> {
    for item in items.unwrap_or_default() {
        let text = if let Some(reference) = &item.field_ref {
            fields::field(context, &reference.field_path)?
        } else if let Some(reference) = &item.resource_field_ref {
            let divisor = reference.divisor.as_ref().map(|d| d.0.as_str());
            fields::resource(context, None, reference.container_name.as_deref(), &reference.resource, divisor)?
        } else {
            continue;
        };
        put(files, &item.path, text.into_bytes(), item.mode.unwrap_or(default))?;
    }
    Ok(())
}

fn put(files: &mut Files, path: &str, bytes: Vec<u8>, mode: i32) -> Result<(), SpecError> {
    let fine = !path.is_empty()
        && path.len() <= 4096
        && !path.starts_with("..")
        && !path.contains('\0')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255);
    if !fine {
        return Err(SpecError::Mount { message: format!("path {path:?} is not allowed in a volume") });
    }
    let nested = |outer: &str, inner: &str| {
        inner.len() > outer.len() && inner.starts_with(outer) && inner.as_bytes()[outer.len()] == b'/'
    };
    if let Some(other) = files.keys().find(|other| nested(other, path) || nested(path, other)) {
        return Err(SpecError::Mount { message: format!("path {path:?} conflicts with path {other:?}") });
    }
    let mode = u32::try_from(mode).unwrap_or(0) & 0o777;
    files.insert(path.to_owned(), File { bytes, mode, owner: 0 });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::spec::HostFacts;
    use super::*;
    use crate::resolved::{Bytes, Resolved, Token};
    use k8s_openapi::api::core::v1::Pod;

    fn files(volume: serde_json::Value) -> Result<Vec<String>, SpecError> {
        let mut json = serde_json::json!({"name": "v"});
        json.as_object_mut().unwrap().extend(volume.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}},
            "spec": {"containers": [], "volumes": [json]}
        }))
        .unwrap();
        let data: Data = [("k".to_owned(), Bytes(b"1".to_vec())), ("l".to_owned(), Bytes(b"2".to_vec()))].into();
        let resolved = Resolved {
            config_maps: [("cm".to_owned(), data.clone())].into(),
            secrets: [("s".to_owned(), data)].into(),
            tokens: vec![Token { volume: "v".into(), path: "token".into(), token: "t".into(), expires_unix: 0 }],
            ..Resolved::default()
        };
        let host = HostFacts::default();
        let context = Context { pod: &pod, resolved: &resolved, host: &host, ip: None };
        let volume = &pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
        Ok(of_volume(context, volume)?
            .unwrap_or_default()
            .into_iter()
            .map(|(path, f)| format!("{path}={} {:o}", String::from_utf8_lossy(&f.bytes), f.mode))
            .collect())
    }

    #[test]
    fn items_choose_keys_paths_and_modes() {
        let all = files(serde_json::json!({"configMap": {"name": "cm"}})).unwrap();
        assert_eq!(all, ["k=1 644", "l=2 644"]);
        let some = files(serde_json::json!({"secret": {"secretName": "s", "defaultMode": 0o400,
            "items": [{"key": "k", "path": "a/b", "mode": 0o440}, {"key": "l", "path": "c"}]}}))
        .unwrap();
        assert_eq!(some, ["a/b=1 440", "c=2 400"]);
    }

    #[test]
    fn the_kube_api_access_volume_comes_together() {
        let got = files(serde_json::json!({"projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "cm", "items": [{"key": "k", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}))
        .unwrap();
        assert_eq!(got, ["ca.crt=1 644", "namespace=n 644", "token=t 644"]);
    }

    #[test]
    fn a_token_is_for_the_pods_one_user_or_its_group_as_a_kubelet_has_it() {
        let token = |spec: serde_json::Value| {
            let volume =
                serde_json::json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}});
            let mut json = serde_json::json!({"volumes": [volume]});
            json.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let pod: Pod =
                serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": json})).unwrap();
            let tokens = vec![Token { volume: "v".into(), path: "t".into(), token: "t".into(), expires_unix: 0 }];
            let (resolved, host) = (Resolved { tokens, ..Resolved::default() }, HostFacts::default());
            let context = Context { pod: &pod, resolved: &resolved, host: &host, ip: None };
            let files = of_volume(context, &pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0]).unwrap().unwrap();
            (files["t"].owner, files["t"].mode)
        };
        let user = |id: u32| serde_json::json!({"name": "c", "securityContext": {"runAsUser": id}});
        let plain = serde_json::json!({"name": "c"});
        assert_eq!(token(serde_json::json!({"containers": [plain]})), (0, 0o644));
        assert_eq!(token(serde_json::json!({"containers": [user(7), user(7)]})), (7, 0o600));
        assert_eq!(token(serde_json::json!({"containers": [user(7), user(8)]})), (0, 0o644));
        assert_eq!(token(serde_json::json!({"containers": [user(7), plain]})), (0, 0o644));
        assert_eq!(token(serde_json::json!({"initContainers": [user(8)], "containers": [user(7)]})), (0, 0o644));
        let of_pod = serde_json::json!({"securityContext": {"runAsUser": 9}, "containers": [plain, user(9)]});
        assert_eq!(token(of_pod), (9, 0o600));
        let group = serde_json::json!({"securityContext": {"fsGroup": 5}, "containers": [plain]});
        assert_eq!(token(group), (0, 0o600), "the group's bits come with the group");
    }

    #[test]
    fn missing_things_fail_unless_optional() {
        assert!(files(serde_json::json!({"configMap": {"name": "no"}})).is_err());
        assert!(files(serde_json::json!({"configMap": {"name": "no", "optional": true}})).unwrap().is_empty());
        let key = |optional: bool| {
            files(
                serde_json::json!({"configMap": {"name": "cm", "optional": optional, "items": [{"key": "no", "path": "x"}]}}),
            )
        };
        assert!(key(false).is_err());
        assert!(key(true).unwrap().is_empty());
        assert!(
            files(serde_json::json!({"projected": {"sources": [{"serviceAccountToken": {"path": "other"}}]}})).is_err()
        );
    }

    #[test]
    fn no_path_leaves_the_volume_or_hides_another() {
        for path in ["../x", "/x", "a/../b", "..data", "", "a//b", "./a", "a/."] {
            let got = files(serde_json::json!({"configMap": {"name": "cm", "items": [{"key": "k", "path": path}]}}));
            assert!(got.is_err(), "{path}");
        }
        let items = serde_json::json!([{"key": "k", "path": "a"}, {"key": "l", "path": "a/b"}]);
        assert!(files(serde_json::json!({"configMap": {"name": "cm", "items": items}})).is_err());
    }
}
