//! What it costs in memory to make a snapshot of a long layer: the process that converts, and the one that fetches and feeds it. A test program
//! of its own: the peaks of whole processes are what is looked at.
#![allow(clippy::unwrap_used)] // A test program throughout.

mod support;

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use image_snapshot::{Converter, Digest, Images};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use support::{config, pull};

/// Of the archive, unpacked.
const BYTES: u64 = 432 << 20;
const FILE: u64 = 9 << 20;
/// Of either process, in KiB.
const MOST: i64 = 64 << 10;

/// Passes on what is written, and knows its digest and its length.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(self.hash.clone().finalize()))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Bytes that compress to about half, like programs do.
fn fill(piece: &mut [u8], state: &mut u64) {
    for word in piece.chunks_mut(8) {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bytes = (*state >> 32).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// An archive of many files, never held as a whole.
fn archive(mut out: impl Write) {
    let (mut piece, mut state) = (vec![0; 1 << 16], 1);
    for i in 0..BYTES / FILE {
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("usr/lib/long/file-{i}")).unwrap();
        header.set_mode(0o644);
        header.set_size(FILE);
        header.set_cksum();
        out.write_all(header.as_bytes()).unwrap();
        for _ in 0..FILE / piece.len() as u64 {
            fill(&mut piece, &mut state);
            out.write_all(&piece).unwrap();
        }
    }
    out.write_all(&[0; 1024]).unwrap();
    out.flush().unwrap();
}

/// An image of that one layer as `oci-layout:`.
fn layout(dir: &Path, compression: &str) -> String {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let mut blob = Hashed::new(File::create(dir.join("blob")).unwrap());
    let diff_id = if compression == "zstd" {
        let mut tar = Hashed::new(zstd::Encoder::new(&mut blob, 1).unwrap());
        archive(&mut tar);
        let diff_id = tar.digest();
        tar.inner.finish().unwrap();
        diff_id
    } else {
        let mut tar = Hashed::new(flate2::write::GzEncoder::new(&mut blob, flate2::Compression::fast()));
        archive(&mut tar);
        let diff_id = tar.digest();
        tar.inner.finish().unwrap();
        diff_id
    };
    let named = |digest: &str| blobs.join(&digest["sha256:".len()..]);
    let (layer, size) = (blob.digest(), blob.bytes);
    std::fs::rename(dir.join("blob"), named(&layer)).unwrap();
    let put = |kind: &str, value: serde_json::Value| {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::sha256(&bytes).to_string();
        std::fs::write(named(&digest), &bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}.v1+json"), "digest": digest, "size": bytes.len()})
    };
    let architecture = image_snapshot::Platform::host().architecture;
    let config = put(
        "config",
        json!({"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}),
    );
    let kind = format!("application/vnd.oci.image.layer.v1.tar+{compression}");
    let layers = json!([{"mediaType": kind, "digest": layer, "size": size}]);
    let manifest = put("manifest", json!({"schemaVersion": 2, "config": config, "layers": layers}));
    std::fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    format!("oci-layout:{}", dir.display())
}

/// The most that this process ever held, in KiB. (What `getrusage` says of it begins with what started it.)
fn own_peak() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_layer_of_432_mib_is_converted_in_64_mib_by_a_process_and_fed_to_it_in_64() {
    let converter = std::env::current_exe().unwrap();
    let converter = converter.parent().and_then(Path::parent).unwrap().join("examples/layer-converter");
    assert!(converter.exists(), "{converter:?} is missing: a run of all of this package's tests builds it");
    for compression in ["gzip", "zstd"] {
        let (source, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = layout(source.path(), compression);
        let mut config = config(store.path());
        // The disk is not what is measured.
        config.timeouts.progress = std::time::Duration::from_secs(600);
        config.converter = Converter::Program { program: converter.clone(), args: Vec::new() };
        let image = pull(&Images::open(config).unwrap(), &name).await.unwrap();
        assert!(image.size >= BYTES, "{} bytes", image.size);
        let (own, converters) = (own_peak(), getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss());
        println!("{compression}: {converters} KiB converting, {own} KiB fetching and feeding");
        assert!(own > 0 && own < MOST, "{own} KiB to feed the converter, {compression}");
        // Counted from before its own program began, so never less than the feeder's.
        assert!(converters > 0 && converters < MOST, "{converters} KiB to convert, {compression}");
    }
}
