//! What appears in the containers' mounts.
//!
//! ```text
//! STATE/pods/UID/                 on disk, 0711
//!   volumes/NAME/                 emptyDir, configMap, downwardAPI
//!   etc/{hosts,hostname,resolv.conf}
//!   containers/NAME/ATTEMPT.message   the termination message file
//!   writable/NAME-ATTEMPT/        the container's own changes
//!   logs/NAME/ATTEMPT.log         CRI log files; stay until the pod is forgotten
//! RUN/secrets/UID/                on tmpfs, 0711
//!   resolved.json                 secret material of the intent, 0600
//!   volumes/NAME/                 secret, projected
//!   memory/NAME/                  emptyDir of medium Memory: a tmpfs of its own, with its size; of medium HugePages: a hugetlbfs
//! ```
//! Content volumes have the kubelet's layout (`..data` is a symbolic link to a directory with a time stamp, swapped in one
//! rename), so that a reader sees either all old or all new files. Parents are 0711 and owned by the agent: no pod can list or
//! rename in them. [`content`] and [`dns`], [`etc_files`] are pure; [`atomic`] and [`disk`] write, `removal`
//! removes.

pub mod atomic;
pub mod content;
pub mod disk;
pub mod dns;
pub mod etc_files;
pub(crate) mod removal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Volume, VolumeMount};
use sandbox::spec::{Layer, Mount};

use super::spec::{Context, SpecError, env, expand::expand};

/// Where a pod's things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDirs {
    /// `STATE/pods/UID`.
    pub disk: PathBuf,
    /// `RUN/secrets/UID`.
    pub tmpfs: PathBuf,
}

impl PodDirs {
    /// For one pod. The UID has been checked to be a plain file name.
    pub fn new(state_dir: &Path, run_dir: &Path, uid: &str) -> Self {
        Self { disk: state_dir.join("pods").join(uid), tmpfs: run_dir.join("secrets").join(uid) }
    }

    /// Where the containers' log directories are.
    pub fn logs(&self) -> PathBuf {
        self.disk.join("logs")
    }

    /// A container attempt's own changes.
    pub fn writable(&self, container: &str, attempt: u32) -> PathBuf {
        self.disk.join("writable").join(format!("{container}-{attempt}"))
    }

    /// The file behind `terminationMessagePath`.
    pub fn message(&self, container: &str, attempt: u32) -> PathBuf {
        self.disk.join("containers").join(container).join(format!("{attempt}.message"))
    }

    /// The secret material of the intent.
    pub fn material(&self) -> PathBuf {
        self.tmpfs.join("resolved.json")
    }

    fn volume(&self, volume: &Volume) -> PathBuf {
        match kind(volume) {
            Some(Kind::Memory | Kind::HugePages) => self.tmpfs.join("memory").join(&volume.name),
            Some(Kind::Secret) => self.tmpfs.join("volumes").join(&volume.name),
            Some(Kind::Disk | Kind::Open) | None => self.disk.join("volumes").join(&volume.name),
        }
    }
}

/// How a volume is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An empty directory on disk.
    Disk,
    /// An empty directory in memory.
    Memory,
    /// An empty directory in huge pages.
    HugePages,
    /// Files that may be on disk.
    Open,
    /// Files that may not.
    Secret,
}

/// How the media begin that are huge pages.
pub(crate) const HUGE_PAGES: &str = "HugePages";

pub(crate) fn kind(volume: &Volume) -> Option<Kind> {
    if let Some(empty) = &volume.empty_dir {
        return Some(match empty.medium.as_deref() {
            Some("Memory") => Kind::Memory,
            Some(medium) if medium.starts_with(HUGE_PAGES) => Kind::HugePages,
            _ => Kind::Disk,
        });
    }
    if volume.config_map.is_some() || volume.downward_api.is_some() {
        return Some(Kind::Open);
    }
    (volume.secret.is_some() || volume.projected.is_some()).then_some(Kind::Secret)
}

/// The pod's volumes.
pub(crate) fn volumes<'a>(context: Context<'a>) -> impl Iterator<Item = &'a Volume> {
    context.spec().into_iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// The mounts of one container: its volumes in order, then what a kubelet adds unless a volume is there already. `images`:
/// the layers of volumes that are images.
pub fn mounts(
    context: Context<'_>,
    container: &Container,
    attempt: u32,
    dirs: &PodDirs,
    images: &BTreeMap<String, Vec<Layer>>,
) -> Result<Vec<Mount>, SpecError> {
    let mut out = Vec::new();
    for wanted in container.volume_mounts.iter().flatten() {
        let volume = volumes(context).find(|v| v.name == wanted.name).ok_or_else(|| SpecError::Mount {
            message: format!("volume mount {:?} names no volume of the pod", wanted.name),
        })?;
        let content = matches!(kind(volume), Some(Kind::Open | Kind::Secret));
        let is_image = volume.image.is_some();
        let layers = match is_image {
            true => images.get(&volume.name).cloned().filter(|layers| !layers.is_empty()).ok_or_else(|| {
                SpecError::Mount { message: format!("the image of volume {:?} is not here", volume.name) }
            })?,
            false => Vec::new(),
        };
        out.push(Mount {
            source: if is_image { PathBuf::new() } else { dirs.volume(volume) },
            sub_path: sub_path(context, container, wanted)?,
            destination: absolute(&wanted.mount_path),
            read_only: content || is_image || wanted.read_only == Some(true),
            // As the API says of images.
            no_exec: is_image,
            idmap: true,
            exclusive: !is_image,
            layers,
        });
    }
    let message_path = container.termination_message_path.as_deref().filter(|p| !p.is_empty());
    let added = [
        ("/etc/hosts", dirs.disk.join("etc/hosts")),
        ("/etc/hostname", dirs.disk.join("etc/hostname")),
        ("/etc/resolv.conf", dirs.disk.join("etc/resolv.conf")),
        (message_path.unwrap_or("/dev/termination-log"), dirs.message(&container.name, attempt)),
    ];
    for (destination, source) in added {
        let destination = absolute(destination);
        if !out.iter().any(|mount| mount.destination == destination) {
            out.push(Mount {
                source,
                sub_path: PathBuf::new(),
                destination,
                read_only: false,
                no_exec: false,
                idmap: true,
                exclusive: true,
                layers: Vec::new(),
            });
        }
    }
    Ok(out)
}

fn absolute(path: &str) -> PathBuf {
    let path = Path::new("/").join(path);
    path.components().collect()
}

fn sub_path(context: Context<'_>, container: &Container, wanted: &VolumeMount) -> Result<PathBuf, SpecError> {
    let text = match (wanted.sub_path.as_deref(), wanted.sub_path_expr.as_deref()) {
        (Some(path), _) if !path.is_empty() => path.to_owned(),
        (_, Some(expression)) if !expression.is_empty() => {
            let env = env::of_container(context, container)?;
            let missing = std::cell::RefCell::new(None);
            let expanded = expand(expression, &|name| {
                let found = env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
                if found.is_none() {
                    *missing.borrow_mut() = Some(name.to_owned());
                }
                found
            });
            if let Some(name) = missing.into_inner() {
                return Err(SpecError::Mount {
                    message: format!("failed to expand subPath {expression:?}: variable {name:?} is not set"),
                });
            }
            expanded
        }
        _ => return Ok(PathBuf::new()),
    };
    let path = Path::new(&text);
    let plain =
        |c: std::path::Component<'_>| matches!(c, std::path::Component::Normal(_) | std::path::Component::CurDir);
    if text.contains('\0') || !path.components().all(plain) {
        return Err(SpecError::Mount { message: format!("subPath {text:?} must be a relative path without \"..\"") });
    }
    Ok(path.components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect())
}

#[cfg(test)]
mod tests {
    use super::super::spec::HostFacts;
    use super::*;
    use crate::resolved::Resolved;
    use k8s_openapi::api::core::v1::Pod;

    fn of(mounts: serde_json::Value) -> Result<Vec<Mount>, SpecError> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {
                "volumes": [{"name": "e", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}},
                    {"name": "s", "secret": {"secretName": "s"}}, {"name": "c", "configMap": {"name": "c"}},
                    {"name": "i", "image": {"reference": "x:1"}}, {"name": "away", "image": {"reference": "x:2"}}],
                "containers": [{"name": "c", "env": [{"name": "A", "value": "x/../y"}, {"name": "B", "value": "b"}],
                    "volumeMounts": mounts}]}
        }))
        .unwrap();
        let (resolved, host) = (Resolved::default(), HostFacts::default());
        let context = Context { pod: &pod, resolved: &resolved, host: &host, ip: None };
        let dirs = PodDirs::new(Path::new("/state"), Path::new("/run"), "u");
        let layer = Layer { id: "sha256:1".into(), path: "/layers/1".into() };
        let images = BTreeMap::from([("i".to_owned(), vec![layer])]);
        super::mounts(context, &pod.spec.as_ref().unwrap().containers[0], 2, &dirs, &images)
    }

    #[test]
    fn secret_material_is_mounted_from_tmpfs_and_content_is_read_only() {
        let got = of(serde_json::json!([
            {"name": "e", "mountPath": "/e"}, {"name": "m", "mountPath": "/m/"},
            {"name": "s", "mountPath": "/s"}, {"name": "c", "mountPath": "etc/hosts", "subPathExpr": "$(B)/x"}]))
        .unwrap();
        let lines: Vec<String> = got
            .iter()
            .map(|m| {
                let mode = if m.read_only { "ro" } else { "rw" };
                format!("{} [{}] {} {mode}", m.source.display(), m.sub_path.display(), m.destination.display())
            })
            .collect();
        assert_eq!(
            lines,
            [
                "/state/pods/u/volumes/e [] /e rw",
                "/run/secrets/u/memory/m [] /m rw",
                "/run/secrets/u/volumes/s [] /s ro",
                "/state/pods/u/volumes/c [b/x] /etc/hosts ro",
                "/state/pods/u/etc/hostname [] /etc/hostname rw",
                "/state/pods/u/etc/resolv.conf [] /etc/resolv.conf rw",
                "/state/pods/u/containers/c/2.message [] /dev/termination-log rw",
            ]
        );
    }

    #[test]
    fn an_image_is_mounted_by_its_layers_read_only_and_without_programs() {
        let got =
            of(serde_json::json!([{"name": "i", "mountPath": "/i", "subPath": "a/b", "readOnly": false}])).unwrap();
        let Mount { source, sub_path, read_only, no_exec, idmap, exclusive, layers, .. } = &got[0];
        assert_eq!((source.as_os_str().len(), sub_path.to_str(), layers[0].id.as_str()), (0, Some("a/b"), "sha256:1"));
        assert!(*read_only && *no_exec && *idmap && !exclusive);
        assert!(got[1..].iter().all(|mount| mount.layers.is_empty()));
        let error = of(serde_json::json!([{"name": "away", "mountPath": "/i"}])).unwrap_err();
        assert!(error.to_string().contains("away"), "{error}");
    }

    #[test]
    fn a_sub_path_cannot_leave_its_volume() {
        for mount in [
            serde_json::json!({"name": "e", "mountPath": "/e", "subPath": "../x"}),
            serde_json::json!({"name": "e", "mountPath": "/e", "subPath": "/etc"}),
            serde_json::json!({"name": "e", "mountPath": "/e", "subPathExpr": "$(A)"}),
            serde_json::json!({"name": "e", "mountPath": "/e", "subPathExpr": "$(UNSET)"}),
            serde_json::json!({"name": "none", "mountPath": "/e"}),
        ] {
            assert!(of(serde_json::json!([mount])).is_err(), "{mount}");
        }
    }
}
