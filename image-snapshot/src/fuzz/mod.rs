//! What the fuzzer calls with any bytes at all. Each of these must come back, soon and within its memory; each also looks at what came out, and
//! panics when that is not what the bytes could have meant. Unit tests call them with the [`seeds`].

mod erofs;
mod seeds;

use std::{fs::File, io, sync::Arc};

use crate::{
    Credential, Limits, Platform, Reference,
    convert::{ConvertError, Converted, convert, open_below},
    manifest::{Config, Document, choose},
};

pub use erofs::{reader as erofs_reader, writer as erofs_writer};
pub use seeds::seeds;

/// Block of an archive.
const BLOCK: usize = 512;

/// An entry point.
pub type Target = fn(&[u8]);

/// Targets by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("tar", tar),
    ("erofs_reader", erofs_reader),
    ("erofs_writer", erofs_writer),
    ("manifest", manifest),
    ("reference", reference),
    ("credential", credential),
];

/// Small enough that every limit is met.
fn limits() -> Limits {
    Limits {
        layer_bytes: 1 << 20,
        entries: 200,
        path_bytes: 600,
        all_path_bytes: 20_000,
        depth: 40,
        xattr_bytes: 4096,
        header_bytes: 64 << 10,
        ..Limits::default()
    }
}

/// A file in memory.
fn memory() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

fn converted(archive: &[u8], below: &[Arc<File>]) -> Result<(Converted, Arc<File>), ConvertError> {
    let out = memory().map_err(ConvertError::Write)?;
    let done = convert(archive, below, out.try_clone().map_err(ConvertError::Write)?, &limits())?;
    Ok((done, Arc::new(out)))
}

/// Two layers' archives: the first byte says how many blocks the lower one has. What is accepted can be read from end to end, and comes out the
/// same once more.
pub fn tar(data: &[u8]) {
    let Some((&split, archive)) = data.split_first() else { return };
    let (lower, upper) = archive.split_at((usize::from(split) * BLOCK).min(archive.len()));
    let mut stack = Vec::new();
    for archive in [lower, upper] {
        let Ok((done, layer)) = converted(archive, &stack) else { continue };
        let size = layer.metadata().map(|meta| meta.len()).unwrap_or_default();
        assert_eq!(done.bytes, size, "the layer's size is another than was told");
        let again = converted(archive, &stack).map(|(_, again)| erofs::bytes(&again));
        assert_eq!(again.ok(), Some(erofs::bytes(&layer)), "the same archive gave other bytes");
        stack.push(layer);
        erofs::walk_all(&stack);
    }
}

/// A manifest, an index or a configuration.
pub fn manifest(data: &[u8]) {
    let limits = Limits::default();
    let platform = Platform::host();
    for content_type in [None, Some("application/vnd.oci.image.index.v1+json")] {
        match Document::parse(data, content_type) {
            Ok(Document::Index(entries)) => {
                if let Ok(chosen) = choose(&entries, &platform) {
                    assert!(entries.contains(chosen), "chose what was not there");
                }
            }
            Ok(Document::Manifest(manifest)) => {
                if manifest.check(&limits).is_ok() {
                    assert!((1..=limits.layers).contains(&manifest.layers.len()));
                    assert!(manifest.layers.iter().all(|layer| layer.size <= limits.layer_bytes));
                }
            }
            Err(_) => {}
        }
    }
    // As a configuration, of a manifest with as many layers as fit.
    let Ok(Document::Manifest(mut manifest)) = Document::parse(seeds::MANIFEST.as_bytes(), None) else {
        panic!("the seed is a manifest");
    };
    for count in 0..3 {
        if let Some(layer) = manifest.layers.first().cloned().filter(|_| count > 0) {
            manifest.layers = vec![layer; count];
        }
        if let Ok(config) = Config::parse(data, &manifest, &platform) {
            assert_eq!(config.chain_ids().len(), manifest.layers.len());
        }
    }
}

/// A name. Its normal form means the same, and is its own normal form.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(name) = text.parse::<Reference>() else { return };
    let normal = name.to_string();
    let Ok(again) = normal.parse::<Reference>() else {
        panic!("{text:?} has the normal form {normal:?}, which is no name");
    };
    assert_eq!(again, name, "{text:?} and {normal:?} differ");
    assert_eq!(again.to_string(), normal, "the normal form of {normal:?} is another");
    if let Reference::Registry(image) = &name {
        let parts = [image.registry(), image.repository()];
        assert!(parts.iter().all(|part| !part.is_empty()), "{text:?} has an empty part");
        let clean = |part: &&str| {
            !part.split('/').any(|c| c == ".." || c == ".") && !part.contains(['?', '#', '%', '\\', '@', ' '])
        };
        assert!(parts.iter().all(clean), "{text:?} would make another URL");
    }
}

/// A docker config file, or the old form of one.
pub fn credential(data: &[u8]) {
    for read in [Credential::from_docker_config_json, Credential::from_dockercfg] {
        for credential in read(data).unwrap_or_default() {
            if let Ok(Reference::Registry(image)) = "registry.example/some/image:1".parse::<Reference>() {
                let _ = credential.matches(&image);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_taken_by_its_target() {
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            assert!(seeds.len() >= 5, "{name} has {} seeds", seeds.len());
            for seed in &seeds {
                target(seed);
            }
        }
    }

    #[test]
    fn seeds_with_bytes_changed_cut_and_doubled_are_taken_too() {
        // A small fuzzer without coverage, the same each time.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n.max(1)
        };
        for (name, target) in TARGETS {
            for seed in seeds(name) {
                for _ in 0..12 {
                    let mut bytes = seed.clone();
                    for _ in 0..=below(4) {
                        let at = below(bytes.len());
                        match below(4) {
                            0 if !bytes.is_empty() => bytes[at] ^= 1 << below(8),
                            1 if !bytes.is_empty() => bytes[at] = [0, 0xff, b'0', b'7', b'/', b'.', b'"'][below(7)],
                            2 => bytes.truncate(at),
                            _ => bytes.extend_from_within(at.min(bytes.len())..),
                        }
                    }
                    target(&bytes);
                }
            }
        }
    }

    #[test]
    fn what_seeds_mean_is_accepted() {
        let archives = seeds("tar");
        let accepted = archives.iter().filter(|seed| converted(&seed[1..], &[]).is_ok()).count();
        assert!(accepted * 2 >= archives.len(), "{accepted} of {} archives", archives.len());
        assert!(seeds("reference").iter().all(|name| std::str::from_utf8(name).unwrap().parse::<Reference>().is_ok()));
    }
}
