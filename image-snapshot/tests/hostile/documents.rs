//! Manifests, configurations and indexes that are bad in one way.

use std::{collections::BTreeMap, path::Path};

use image_snapshot::Digest;
use serde_json::{Value, json};

use super::{
    archives::links,
    random::Random,
    support::images::{File, Packing, pack, tar},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image in the making.
pub(crate) struct Parts {
    blobs: BTreeMap<String, Vec<u8>>,
    config: Value,
    manifest: Value,
    /// Instead of the manifest's own JSON.
    manifest_bytes: Option<Vec<u8>>,
    /// Instead of the index' own JSON.
    index_bytes: Option<Vec<u8>>,
    /// Indexes around the manifest.
    depth: usize,
    /// Changes content behind the back of its digest.
    spoil: Option<fn(&mut Vec<u8>)>,
    spoilt: Spoilt,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spoilt {
    Layer,
    Config,
    Manifest,
}

impl Parts {
    /// An image with that archive on top; sometimes with a sound layer below.
    pub(crate) fn of_archive(archive: Vec<u8>, random: &mut Random) -> Self {
        let packing = random.of(&[Packing::Plain, Packing::Gzip, Packing::Zstd]);
        let mut parts = Self::of_blob(pack(&archive, packing), &archive);
        if random.below(10) == 0 {
            let below = tar(&[File("below", &random.bytes(2000))]);
            parts.below(&below);
        }
        parts
    }

    /// An image of one blob, whose archive is said to be `archive`.
    pub(crate) fn of_blob(blob: Vec<u8>, archive: &[u8]) -> Self {
        let mut parts = Self {
            blobs: BTreeMap::new(),
            config: json!({
                "os": "linux", "architecture": "amd64", "config": {},
                "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(archive).to_string()]},
            }),
            manifest: json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": []}),
            manifest_bytes: None,
            index_bytes: None,
            depth: 0,
            spoil: None,
            spoilt: Spoilt::Layer,
        };
        let layer = parts.put(blob, "application/vnd.oci.image.layer.v1.tar");
        parts.manifest["layers"] = json!([layer]);
        parts
    }

    fn below(&mut self, archive: &[u8]) {
        let layer = self.put(archive.to_vec(), "application/vnd.oci.image.layer.v1.tar");
        let id = json!(Digest::sha256(archive).to_string());
        self.layers().insert(0, layer);
        self.diff_ids().insert(0, id);
    }

    fn above(&mut self, archive: &[u8]) {
        let layer = self.put(archive.to_vec(), "application/vnd.oci.image.layer.v1.tar");
        self.layers().push(layer);
        self.diff_ids().push(json!(Digest::sha256(archive).to_string()));
    }

    fn layers(&mut self) -> &mut Vec<Value> {
        self.manifest["layers"].as_array_mut().unwrap()
    }

    fn diff_ids(&mut self) -> &mut Vec<Value> {
        self.config["rootfs"]["diff_ids"].as_array_mut().unwrap()
    }

    /// Keeps a blob; its descriptor.
    fn put(&mut self, bytes: Vec<u8>, kind: &str) -> Value {
        let digest = Digest::sha256(&bytes).to_string();
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }

    /// Writes the layout.
    pub(crate) fn write(mut self, dir: &Path) {
        let top = self.layers().last().map(|layer| layer["digest"].as_str().unwrap().to_owned());
        let config = self.config.to_string().into_bytes();
        let config = self.put(config, "application/vnd.oci.image.config.v1+json");
        if self.manifest.get("config").is_none() {
            self.manifest["config"] = config.clone();
        }
        let manifest = self.manifest_bytes.take().unwrap_or_else(|| self.manifest.to_string().into_bytes());
        let mut entry = self.put(manifest, MANIFEST);
        let manifest = entry["digest"].clone();
        for _ in 0..self.depth {
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
            entry = self.put(index.to_string().into_bytes(), INDEX);
        }
        if let Some(spoil) = self.spoil {
            let victim = match self.spoilt {
                Spoilt::Layer => top.unwrap(),
                Spoilt::Config => config["digest"].as_str().unwrap().to_owned(),
                Spoilt::Manifest => manifest.as_str().unwrap().to_owned(),
            };
            spoil(self.blobs.get_mut(&victim).unwrap());
        }
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for (digest, bytes) in &self.blobs {
            std::fs::write(blobs.join(&digest["sha256:".len()..]), bytes).unwrap();
        }
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
        std::fs::write(dir.join("index.json"), self.index_bytes.unwrap_or(index)).unwrap();
    }
}

pub(crate) type Document = fn(&mut Parts, &mut Random);

fn spoil(parts: &mut Parts, which: Spoilt, how: fn(&mut Vec<u8>)) {
    (parts.spoil, parts.spoilt) = (Some(how), which);
}

fn any(random: &mut Random) -> Spoilt {
    random.of(&[Spoilt::Layer, Spoilt::Config, Spoilt::Manifest])
}

pub(crate) const DOCUMENTS: [(&str, Document); 25] = [
    ("links to more below than a layer may hold", |p, r| {
        // Each of the layers is well within its bounds by itself.
        let big = vec![b'b'; (9 << 18) + r.below(1 << 16)];
        for name in ["big/a", "big/b"] {
            p.below(&tar(&[File(name, &big)]));
        }
        let archive = links(&["big/a", "big/b"], r);
        p.above(&archive);
    }),
    ("content has another digest", |p, r| spoil(p, any(r), |bytes| bytes[0] ^= 1)),
    ("content is short", |p, r| spoil(p, any(r), |bytes| bytes.truncate(bytes.len() - 1))),
    ("content is long", |p, r| spoil(p, any(r), |bytes| bytes.push(b'\n'))),
    ("content is empty", |p, r| spoil(p, any(r), Vec::clear)),
    ("layer is missing", |p, r| {
        let digest = Digest::sha256(&r.bytes(9)).to_string();
        p.layers()[0]["digest"] = json!(digest);
        p.blobs.retain(|have, _| *have != digest);
    }),
    ("layer has another size", |p, r| {
        let layer = &mut p.layers()[0];
        let size = layer["size"].as_u64().unwrap();
        layer["size"] = json!(if r.below(2) == 0 { size + 1 } else { size - 1 });
    }),
    ("layer is said to be huge", |p, r| p.layers()[0]["size"] = json!(r.of(&[5_u64 << 20, 1 << 50, u64::MAX]))),
    ("layer's size is no number", |p, r| {
        p.layers()[0]["size"] = r.of(&[&json!(-1), &json!("5"), &json!(1.5), &json!(null)]).clone();
    }),
    ("layer's digest is none", |p, r| {
        p.layers()[0]["digest"] =
            json!(r.of(&["", "sha256:", "sha256:zz", "md5:d41d8cd98f00b204e9800998ecf8427e", "../../etc/passwd"]));
    }),
    ("layer is of a kind that we do not take", |p, r| {
        p.layers()[0]["mediaType"] = json!(r.of(&[
            "application/vnd.erofs.layer.v1",
            "application/vnd.oci.image.layer.v1.erofs",
            "application/vnd.oci.image.layer.v1.tar+encrypted",
            "application/octet-stream",
            "application/vnd.oci.image.config.v1+json",
            "",
        ]));
    }),
    ("too many layers", |p, r| {
        for _ in 0..13 + r.below(9) {
            let layer = p.layers()[0].clone();
            let id = p.diff_ids()[0].clone();
            p.layers().push(layer);
            p.diff_ids().push(id);
        }
    }),
    ("no layers", |p, _| {
        p.layers().clear();
        p.diff_ids().clear();
    }),
    ("fewer archives than layers", |p, _| p.diff_ids().clear()),
    ("more archives than layers", |p, r| {
        for _ in 0..=r.below(5) {
            let id = p.diff_ids()[0].clone();
            p.diff_ids().push(id);
        }
    }),
    ("archive's digest is none", |p, r| {
        p.diff_ids()[0] = json!(r.of(&["", "sha256:", "sha256:00", "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709"]));
    }),
    ("for another machine", |p, r| {
        let (key, value) =
            r.of(&[("os", "windows"), ("os", "plan9"), ("architecture", "s390x"), ("architecture", "riscv64")]);
        p.config[key] = json!(value);
    }),
    ("manifest is no JSON", |p, r| p.manifest_bytes = Some([b"{\"config\":".to_vec(), r.bytes(300)].concat())),
    ("manifest is of another shape", |p, r| {
        p.manifest_bytes = Some(
            r.of(&["[]", "null", "7", "{}", "{\"layers\": []}", "{\"config\": {}, \"layers\": {}}", "\"x\""]).into(),
        );
    }),
    ("manifest is deep", |p, r| {
        let deep = 200 + r.below(5000);
        p.manifest_bytes =
            Some(["{\"config\":".to_owned(), "[".repeat(deep), "]".repeat(deep), "}".to_owned()].concat().into());
    }),
    ("document is huge", |p, r| {
        let filler = json!({"filler": "x".repeat((33 << 10) + r.below(100))});
        if r.below(2) == 0 { p.manifest["annotations"] = filler } else { p.config["history"] = filler }
    }),
    ("manifest of another kind", |p, r| {
        p.manifest["mediaType"] = json!(r.of(&[
            INDEX,
            "application/vnd.docker.distribution.manifest.v1+json",
            "application/vnd.oci.artifact.manifest.v1+json",
            "text/html",
        ]));
    }),
    ("manifest and index at once", |p, _| {
        p.manifest["manifests"] = json!([]);
    }),
    ("indexes too deep", |p, r| p.depth = 5 + r.below(9)),
    ("index is bad", |p, r| {
        let other = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": MANIFEST, "digest": Digest::sha256(b"x").to_string(), "size": 1,
            "platform": {"os": "windows", "architecture": "amd64"},
        }]});
        let endless = json!({"schemaVersion": 2, "manifests": vec![json!({"size": 1}); 1 + r.below(500)]});
        p.index_bytes = Some(match r.below(5) {
            0 => other.to_string().into(),
            1 => endless.to_string().into(),
            2 => b"{\"manifests\": []}".to_vec(),
            3 => b"no".to_vec(),
            _ => vec![b' '; 40 << 10],
        });
    }),
];
