//! Images made on the spot.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use image_snapshot::Digest;
use serde_json::json;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An image as a registry or layout holds it.
#[derive(Clone, Default)]
pub(crate) struct Made {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) manifest: String,
    pub(crate) config: String,
    pub(crate) layers: Vec<String>,
}

pub(crate) struct File<'a>(pub(crate) &'a str, pub(crate) &'a [u8]);

/// An archive of files, in order.
pub(crate) fn tar(files: &[File<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for File(path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, path, *content).expect("append");
    }
    builder.into_inner().expect("tar")
}

pub(crate) fn pack(bytes: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => bytes.to_vec(),
        Packing::Zstd => zstd::encode_all(bytes, 3).expect("zstd"),
        Packing::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).expect("gzip");
            out.finish().expect("gzip")
        }
    }
}

impl Made {
    /// Lowest layer first. `change` may spoil the configuration or the manifest.
    pub(crate) fn new(
        layers: &[(Vec<u8>, Packing)],
        change: impl FnOnce(&mut serde_json::Value, &mut serde_json::Value),
    ) -> Self {
        let mut made = Self::default();
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for (tar, packing) in layers {
            let blob = pack(tar, *packing);
            let kind = match packing {
                Packing::Plain => "application/vnd.oci.image.layer.v1.tar",
                Packing::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
                Packing::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            };
            diff_ids.push(Digest::sha256(tar).to_string());
            let size = blob.len();
            let digest = made.put(blob);
            descriptors.push(json!({"mediaType": kind, "digest": digest, "size": size}));
            made.layers.push(digest);
        }
        let mut config = json!({
            "os": "linux", "architecture": "amd64",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "User": "65534", "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": descriptors,
        });
        change(&mut config, &mut manifest);
        let config = config.to_string().into_bytes();
        let size = config.len();
        made.config = made.put(config);
        if manifest.get("config").is_none() {
            manifest["config"] =
                json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": made.config, "size": size});
        }
        made.manifest = made.put(manifest.to_string().into_bytes());
        made
    }

    pub(crate) fn simple(content: &[u8]) -> Self {
        Self::new(&[(tar(&[File("bin/sh", b"#!"), File("content", content)]), Packing::Gzip)], |_, _| {})
    }

    pub(crate) fn put(&mut self, bytes: Vec<u8>) -> String {
        let digest = Digest::sha256(&bytes).to_string();
        self.blobs.insert(digest.clone(), bytes);
        digest
    }

    /// Writes it as `oci-layout:PATH:tag`.
    pub(crate) fn write_layout(&self, path: &Path, tag: &str) {
        let blobs = path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).expect("mkdir");
        for (digest, bytes) in &self.blobs {
            std::fs::write(blobs.join(&digest["sha256:".len()..]), bytes).expect("write");
        }
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.manifest, "size": self.blobs[&self.manifest].len(),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }]});
        std::fs::write(path.join("index.json"), index.to_string()).expect("write");
    }
}

/// So many bytes that do not compress, others for each (odd) seed.
pub(crate) fn noise(mut seed: u64, length: usize) -> Vec<u8> {
    let random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    };
    std::iter::repeat_with(random).take(length).collect()
}

/// An image of a layer of each packing, three million bytes that do not compress among them.
pub(crate) fn three_layers() -> Made {
    let big = noise(88_172_645_463_325_253, 3_000_000);
    Made::new(
        &[
            (tar(&[File("etc/passwd", b"root:x:0:0"), File("big", &big)]), Packing::Gzip),
            (tar(&[File("etc/group", b"root:x:0:"), File("gone", b"")]), Packing::Zstd),
            (tar(&[File("etc/passwd", b"root:x:0:0:new"), File(".wh.gone", b"")]), Packing::Plain),
        ],
        |_, _| {},
    )
}
