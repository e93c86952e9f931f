//! `docker-archive:PATH[:name]`: what `docker save` and `skopeo copy … docker-archive:PATH` write. It has no manifest of the usual kind, so we
//! make one; layers are named by their diff ids (or, where the archive is a layout as well, by their blobs' digests).

use std::path::Path;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OnceCell;

use super::{BlobSink, Fetched, Source, SourceError, Top, files::Files};
use crate::{Digest, Limits, Reference, manifest::Descriptor, store::Access};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// An archive on disk.
#[derive(Debug)]
pub(crate) struct DockerArchive {
    files: Files,
    name: Option<String>,
    image: OnceCell<Found>,
}

/// The chosen image: its manifest as we make it, and which member holds which content.
#[derive(Debug)]
struct Found {
    manifest: Vec<u8>,
    members: Vec<(Digest, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: Rootfs,
}

#[derive(Deserialize)]
struct Rootfs {
    diff_ids: Vec<Digest>,
}

impl DockerArchive {
    pub(crate) fn new(path: &Path, name: Option<&str>, limits: &Limits) -> Self {
        Self { files: Files::archive(path, limits), name: name.map(str::to_owned), image: OnceCell::new() }
    }

    async fn image(&self) -> Result<&Found, SourceError> {
        self.image.get_or_try_init(|| self.find()).await
    }

    async fn find(&self) -> Result<Found, SourceError> {
        let (bytes, what) = self.files.read("manifest.json").await?;
        let parse = |source| SourceError::Parse { what: what.clone(), source };
        let listed: Vec<Listed> = serde_json::from_slice(&bytes).map_err(parse)?;
        let have: Vec<String> = listed.iter().flat_map(|l| l.repo_tags.iter().flatten()).cloned().collect();
        let normal = |name: &str| name.parse::<Reference>().map(|r| r.to_string()).ok();
        let mut fitting = listed.into_iter().filter(|l| match &self.name {
            None => true,
            Some(wanted) => l.repo_tags.iter().flatten().any(|tag| normal(tag) == normal(wanted)),
        });
        let Some(listed) = fitting.next() else {
            let detail = format!(": it has no image named {:?}, only: {}", self.name, have.join(", "));
            return Err(SourceError::NotFound { what, detail });
        };
        if self.name.is_none() && fitting.next().is_some() {
            let detail = format!(": it has several images, say which: {}", have.join(", "));
            return Err(SourceError::NotFound { what, detail });
        }
        let (config, config_what) = self.files.read(&listed.config).await?;
        let diff_ids = serde_json::from_slice::<Config>(&config)
            .map_err(|source| SourceError::Parse { what: config_what, source })?
            .rootfs
            .diff_ids;
        if diff_ids.len() != listed.layers.len() {
            return Err(SourceError::Protocol { what, problem: "other layers in the list than in the configuration" });
        }
        let config_digest = Digest::sha256(&config);
        let mut members = vec![(config_digest.clone(), listed.config)];
        let mut layers = Vec::new();
        for (path, diff_id) in listed.layers.into_iter().zip(diff_ids) {
            let as_blob = path.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok());
            let digest = as_blob.unwrap_or(diff_id);
            let size = self.files.open(&path).await?.size();
            layers.push(json!({"mediaType": LAYER, "digest": digest, "size": size}));
            members.push((digest, path));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": config.len()},
            "layers": layers,
        });
        Ok(Found { manifest: manifest.to_string().into_bytes(), members })
    }

    async fn member(&self, digest: &Digest) -> Result<&str, SourceError> {
        let found = self.image().await?.members.iter().find(|(d, _)| d == digest);
        found
            .map(|(_, path)| path.as_str())
            .ok_or_else(|| SourceError::NotFound { what: digest.to_string(), detail: String::new() })
    }
}

#[async_trait]
impl Source for DockerArchive {
    async fn top(&self) -> Result<Top, SourceError> {
        let bytes = self.image().await?.manifest.clone();
        let digest = Digest::sha256(&bytes);
        Ok(Top::Document(Fetched { bytes, content_type: Some(MANIFEST.to_owned()), digest }))
    }

    async fn head(&self) -> Result<Option<Digest>, SourceError> {
        Ok(None)
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Fetched, SourceError> {
        let what = descriptor.digest.to_string();
        Err(SourceError::NotFound { what, detail: ": docker archives have no further manifests".to_owned() })
    }

    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let path = self.member(&descriptor.digest).await?;
        self.files.read_checked(path, &descriptor.digest).await
    }

    async fn blob(&self, descriptor: &Descriptor, _server: usize, sink: BlobSink) -> Result<(), SourceError> {
        let path = self.member(&descriptor.digest).await?;
        self.files.open(path).await?.send(sink).await
    }

    fn access(&self) -> Access {
        // Who may read one file of the host has shown nothing about what else is in the store.
        Access::default()
    }

    fn repository(&self) -> Option<String> {
        None
    }
}
