//! Indexes, manifests and configurations: parsing, and choosing what is ours. Pure.
//!
//! Only fields listed here are ever read. URLs of foreign layers are among those that are not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, ImageConfig, Platform};

/// Media types that we ask for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const LAYERS: [&str; 10] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// What a manifest or configuration may not say.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the right shape.
    #[error("could not parse the {what}")]
    Parse {
        /// Which document.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A document that is index and manifest at once, or contradicts its own media type.
    #[error("document is ambiguous: {0}")]
    Ambiguous(&'static str),
    /// No entry of the index is for us.
    #[error("no image for platform {want} (there are: {have})")]
    Platform {
        /// Ours.
        want: String,
        /// Theirs.
        have: String,
    },
    /// The image is for another platform.
    #[error("image is for platform {have}, this host is {want}")]
    WrongPlatform {
        /// Ours.
        want: String,
        /// Its.
        have: String,
    },
    /// A media type that we do not take.
    #[error("media type {0:?} is not supported")]
    MediaType(String),
    /// Indexes within indexes.
    #[error("indexes are nested more than {0} deep")]
    TooDeep(usize),
    /// Too many layers.
    #[error("{have} layers, more than {limit}")]
    TooManyLayers {
        /// In the manifest.
        have: usize,
        /// Allowed.
        limit: usize,
    },
    /// A blob is bigger than anything that we would take in.
    #[error("{what} has {size} bytes, more than {limit}")]
    TooLarge {
        /// Which blob.
        what: &'static str,
        /// As the manifest says.
        size: u64,
        /// Allowed.
        limit: u64,
    },
    /// Manifest and configuration disagree.
    #[error("manifest has {layers} layers, configuration has {diff_ids} diff ids")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// An image without content.
    #[error("image has no layers")]
    NoLayers,
    /// A local layout has no image by that name.
    #[error("no image named {name:?} (there are: {have})")]
    NoSuchName {
        /// What was asked for.
        name: String,
        /// What is there.
        have: String,
    },
}

/// Points to content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// In an index: for whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
    /// In a layout's index: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// The platform of an index entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorPlatform {
    /// As in [`Platform`].
    #[serde(default)]
    pub os: String,
    /// As in [`Platform`].
    #[serde(default)]
    pub architecture: String,
    /// As in [`Platform`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A document that a name may lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Several manifests.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Points to the configuration.
    pub config: Descriptor,
    /// Points to the layers, lowest first.
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    /// Schema 1; only to notice it.
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a document. `content_type` is what its source called it, if anything.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Parse { what: "manifest", source })?;
        let content_type = content_type.map(|t| t.split(';').next().unwrap_or(t).trim());
        let known = |t: &&str| INDEXES.contains(t) || MANIFESTS.contains(t);
        let outer = content_type.filter(known);
        if let Some(inner) = &raw.media_type
            && let Some(outer) = outer
            && inner != outer
        {
            return Err(ManifestError::Ambiguous("its media type is not the one it was sent with"));
        }
        let media_type = raw.media_type.as_deref().or(outer);
        if let Some(unknown) = media_type.filter(|t| !known(t)) {
            return Err(ManifestError::MediaType(unknown.to_owned()));
        }
        let says = |list: [&str; 2]| media_type.is_none_or(|t| list.contains(&t));
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) if says(INDEXES) => Ok(Self::Index(manifests)),
            (None, Some(config), Some(layers)) if says(MANIFESTS) => Ok(Self::Manifest(Manifest { config, layers })),
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                Err(ManifestError::Ambiguous("it is an index and a manifest at once"))
            }
            (None, None, None) if raw.fs_layers.is_some() => {
                Err(ManifestError::MediaType("application/vnd.docker.distribution.manifest.v1+json".to_owned()))
            }
            _ => Err(ManifestError::Ambiguous("it is neither an index nor a manifest")),
        }
    }
}

impl Manifest {
    /// Checks what can be checked before anything is fetched.
    pub fn check(&self, limits: &crate::Limits) -> Result<(), ManifestError> {
        if self.layers.is_empty() {
            return Err(ManifestError::NoLayers);
        }
        if self.layers.len() > limits.layers {
            return Err(ManifestError::TooManyLayers { have: self.layers.len(), limit: limits.layers });
        }
        let too_large = |what, size, limit| Err(ManifestError::TooLarge { what, size, limit });
        if self.config.size > limits.document_bytes {
            return too_large("configuration", self.config.size, limits.document_bytes);
        }
        for layer in &self.layers {
            if !LAYERS.contains(&layer.media_type.as_str()) {
                return Err(ManifestError::MediaType(layer.media_type.clone()));
            }
            if layer.size > limits.layer_bytes {
                return too_large("layer", layer.size, limits.layer_bytes);
            }
        }
        Ok(())
    }
}

/// The entry of an index that fits `platform` best.
pub fn choose<'a>(entries: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor, ManifestError> {
    let usable = |d: &&Descriptor| {
        d.media_type.is_empty()
            || INDEXES.contains(&d.media_type.as_str())
            || MANIFESTS.contains(&d.media_type.as_str())
    };
    let score = |d: &Descriptor| match &d.platform {
        // Not said: the configuration will tell.
        None => Some(0),
        Some(p) if p.os == platform.os && p.architecture == platform.architecture => {
            variant_score(&platform.architecture, p.variant.as_deref().unwrap_or(""), &platform.variant)
        }
        Some(_) => None,
    };
    // Of equals the first wins, as everywhere else.
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in entries.iter().filter(usable) {
        if let Some(score) = score(entry)
            && best.is_none_or(|(b, _)| score > b)
        {
            best = Some((score, entry));
        }
    }
    best.map(|(_, entry)| entry).ok_or_else(|| ManifestError::Platform {
        want: show(&platform.os, &platform.architecture, &platform.variant),
        have: entries
            .iter()
            .filter_map(|d| d.platform.as_ref())
            .map(|p| show(&p.os, &p.architecture, p.variant.as_deref().unwrap_or("")))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// How well a variant serves ours: exact, or for 32-bit ARM any older one. Higher is better.
fn variant_score(architecture: &str, theirs: &str, ours: &str) -> Option<u32> {
    let normal = |v: &str| match (architecture, v) {
        ("arm64", "") => "v8".to_owned(),
        ("amd64", "") => "v1".to_owned(),
        ("arm", "") => "v7".to_owned(),
        (_, v) => v.to_owned(),
    };
    let (theirs, ours) = (normal(theirs), normal(ours));
    if theirs == ours {
        return Some(1000);
    }
    let level = |v: &str| v.strip_prefix('v').and_then(|n| n.parse::<u32>().ok());
    match (architecture, level(&theirs), level(&ours)) {
        ("arm" | "amd64" | "arm64", Some(theirs), Some(ours)) if theirs < ours => Some(theirs),
        _ => None,
    }
}

fn show(os: &str, architecture: &str, variant: &str) -> String {
    if variant.is_empty() { format!("{os}/{architecture}") } else { format!("{os}/{architecture}/{variant}") }
}

/// An image's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How to run it.
    pub run: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

impl Config {
    /// Reads a configuration that belongs to `manifest`.
    pub fn parse(bytes: &[u8], manifest: &Manifest, platform: &Platform) -> Result<Self, ManifestError> {
        let raw: RawConfig =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Parse { what: "configuration", source })?;
        let fits = (raw.os.is_empty() || raw.os == platform.os)
            && (raw.architecture.is_empty() || raw.architecture == platform.architecture);
        if !fits {
            return Err(ManifestError::WrongPlatform {
                want: show(&platform.os, &platform.architecture, &platform.variant),
                have: show(&raw.os, &raw.architecture, raw.variant.as_deref().unwrap_or("")),
            });
        }
        Self::of(raw, manifest)
    }

    /// The same for one that passed before and was kept.
    pub(crate) fn parse_stored(bytes: &[u8], manifest: &Manifest) -> Result<Self, ManifestError> {
        let raw: RawConfig =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Parse { what: "configuration", source })?;
        Self::of(raw, manifest)
    }

    fn of(raw: RawConfig, manifest: &Manifest) -> Result<Self, ManifestError> {
        let diff_ids = raw.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(ManifestError::LayerCount { layers: manifest.layers.len(), diff_ids: diff_ids.len() });
        }
        let run = raw.config.unwrap_or_default();
        Ok(Self {
            run: ImageConfig {
                entrypoint: run.entrypoint.unwrap_or_default(),
                cmd: run.cmd.unwrap_or_default(),
                env: run.env.unwrap_or_default(),
                working_dir: run.working_dir.unwrap_or_default(),
                user: run.user.unwrap_or_default(),
                volumes: run.volumes.unwrap_or_default().into_keys().collect(),
                exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
                stop_signal: run.stop_signal.filter(|s| !s.is_empty()),
                labels: run.labels.unwrap_or_default(),
            },
            diff_ids,
        })
    }

    /// Chain ids, lowest first.
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut out: Vec<Digest> = Vec::with_capacity(self.diff_ids.len());
        for diff_id in &self.diff_ids {
            out.push(Digest::chain(out.last(), diff_id));
        }
        out
    }
}

#[cfg(test)]
mod tests;
