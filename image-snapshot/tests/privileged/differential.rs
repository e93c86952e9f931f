//! Random stacks: our layers under an overlay against GNU tar, layer by layer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use super::{layers, mounts::Overlay, obstacle, tree};

const STACKS: u64 = 150;

/// A small generator of its own, so that a seed in a failure message is all that is needed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn path(&mut self) -> String {
        let parts: Vec<&str> = (0..=self.below(3)).map(|_| ["a", "b", "c", "d"][self.below(4) as usize]).collect();
        parts.join("/")
    }
}

/// An archive, and the names that it whites out (directly, or everything in them).
struct Layer {
    tar: Vec<u8>,
    whiteouts: Vec<String>,
    opaque: Vec<String>,
    links: Vec<String>,
}

fn header(path: &str, kind: u8, size: usize, random: &mut Random) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).unwrap();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode([0o644, 0o755, 0o700, 0o4755][random.below(4) as usize]);
    header.set_uid(random.below(3) * 1000);
    header.set_gid(random.below(3) * 1000);
    header.set_mtime(1_000_000 + random.below(1_000_000));
    header.set_size(size as u64);
    header
}

fn layer(random: &mut Random) -> Layer {
    let mut builder = tar::Builder::new(Vec::new());
    let mut out = Layer { tar: Vec::new(), whiteouts: Vec::new(), opaque: Vec::new(), links: Vec::new() };
    for _ in 0..random.below(9) {
        let (path, kind) = (random.path(), random.below(15));
        // Of a file or a directory.
        if kind < 7 && random.below(4) == 0 {
            let name = ["SCHILY.xattr.user.a", "SCHILY.xattr.user.b"][random.below(2) as usize];
            let value = ["", "one", "two\0more"][random.below(3) as usize];
            builder.append_pax_extensions([(name, value.as_bytes())]).unwrap();
        }
        if kind == 13 {
            builder.append_pax_extensions(sparse(&path).iter().map(|(key, value)| (*key, &**value))).unwrap();
        }
        let mut append = |mut header: tar::Header, content: &[u8]| {
            header.set_cksum();
            builder.append(&header, content).unwrap();
        };
        match kind {
            0..4 => {
                let content = vec![b'x'; [0, 5, 4096, 7000][random.below(4) as usize]];
                append(header(&path, b'0', content.len(), random), &content);
            }
            4..7 => append(header(&format!("{path}/"), b'5', 0, random), b""),
            7 => {
                let mut h = header(&path, b'2', 0, random);
                h.set_link_name(random.path()).unwrap();
                append(h, b"");
                out.links.push(path);
            }
            8 => {
                let mut h = header(&path, b'1', 0, random);
                h.set_link_name(random.path()).unwrap();
                append(h, b"");
            }
            9 => append(header(&path, b'6', 0, random), b""),
            10 => {
                let (parent, name) = path.rsplit_once('/').map_or(("", &*path), |(p, n)| (p, n));
                let slash = if parent.is_empty() { "" } else { "/" };
                append(header(&format!("{parent}{slash}.wh.{name}"), b'0', 0, random), b"");
                out.whiteouts.push(path);
            }
            11 => {
                append(header(&format!("{path}/.wh..wh..opq"), b'0', 0, random), b"");
                out.opaque.push(path);
            }
            12 => {
                let mut h = header(&path, [b'3', b'4'][random.below(2) as usize], 0, random);
                // Among character devices 0:0 is overlayfs's whiteout; a minor number of more than eight bits is kept otherwise.
                h.set_device_major(1 + random.below(200) as u32).unwrap();
                h.set_device_minor(random.below(600) as u32).unwrap();
                append(h, b"");
            }
            13 => {
                let content = sparse_content(random.below(6000) as usize);
                append(header("GNUSparseFile.0/x", b'0', content.len(), random), &content);
            }
            // As deep as no header's field has room for.
            _ => {
                let name = format!("{path}/{}", "long/".repeat(1 + random.below(60) as usize));
                builder.append_pax_extensions([("path", name.as_bytes())]).unwrap();
                let mut h = header("short", b'5', 0, random);
                h.set_cksum();
                builder.append(&h, &b""[..]).unwrap();
            }
        }
    }
    out.tar = builder.into_inner().unwrap();
    out
}

/// Where the data of a sparse file begins, and how long the file is.
const HOLE: usize = 8192;
const REAL: usize = 20_000;

/// Of a sparse file, in the format 1.0 of GNU tar's manual.
fn sparse(path: &str) -> [(&'static str, Vec<u8>); 4] {
    [
        ("GNU.sparse.major", b"1".to_vec()),
        ("GNU.sparse.minor", b"0".to_vec()),
        ("GNU.sparse.name", path.as_bytes().to_vec()),
        ("GNU.sparse.realsize", REAL.to_string().into_bytes()),
    ]
}

/// Its map, and so many bytes.
fn sparse_content(length: usize) -> Vec<u8> {
    let mut content = format!("2\n{HOLE}\n{length}\n{REAL}\n0\n").into_bytes();
    content.resize(512, 0);
    content.resize(512 + length, b's');
    content
}

/// What the image specification says a layer does, with GNU tar: first what it hides (of the layers below only), then what it brings.
/// `None`: tar found fault with it, so that it cannot be a judge.
fn apply(root: &Path, archive: &Path, layer: &Layer) -> Option<()> {
    // What a marker means below a link of its own layer depends on their order; tar knows no markers, so it cannot say.
    let below_link = |path: &String| layer.links.iter().any(|l| path == l || path.starts_with(&format!("{l}/")));
    if layer.opaque.iter().chain(&layer.whiteouts).any(below_link) {
        return None;
    }
    for path in &layer.opaque {
        let dir = root.join(path);
        if dir.is_dir() {
            for entry in std::fs::read_dir(&dir).ok()? {
                remove(&entry.ok()?.path());
            }
        }
    }
    for path in &layer.whiteouts {
        remove(&root.join(path));
    }
    // tar would make the directories for the markers.
    let parent = |path: &String| root.join(path).parent().map(Path::to_owned);
    let dirs = layer.opaque.iter().map(|p| Some(root.join(p))).chain(layer.whiteouts.iter().map(parent));
    for dir in dirs {
        std::fs::create_dir_all(dir?).ok()?;
    }
    let output = Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["--numeric-owner", "--exclude=.wh.*", "--xattrs", "--xattrs-include=*", "-xpPf"])
        .arg(archive)
        .output()
        .unwrap();
    output.status.success().then_some(())
}

fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// How often the rarer things were compared.
#[derive(Debug, Default)]
struct Met {
    attributes: usize,
    devices: usize,
    sparse: usize,
    deep: usize,
}

#[test]
fn privileged_random_stacks_show_what_gnu_tar_shows() {
    if let Some(reason) = obstacle() {
        eprintln!("SKIPPED privileged_random_stacks_show_what_gnu_tar_shows: {reason}");
        return;
    }
    let (mut compared, mut refused, mut met) = (0, 0, Met::default());
    for seed in 1..=STACKS {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let dir = tempfile::tempdir().unwrap();
        let mut want = dir.path().join("want");
        std::fs::create_dir(&want).unwrap();
        let mut archives: Vec<PathBuf> = Vec::new();
        for i in 0..=random.below(5) {
            let layer = layer(&mut random);
            let archive = dir.path().join(format!("{i}.tar"));
            std::fs::write(&archive, &layer.tar).unwrap();
            // On a copy, since a layer that tar finds fault with leaves parts behind.
            let next = dir.path().join(format!("want{i}"));
            super::run(Command::new("cp").arg("-a").arg(&want).arg(&next));
            if apply(&next, &archive, &layer).is_some() {
                archives.push(archive);
                want = next;
            }
        }
        if archives.is_empty() {
            continue;
        }
        let Ok(layers) = layers(dir.path(), &archives) else {
            refused += 1;
            continue;
        };
        let overlay = Overlay::mount(dir.path(), &layers);
        let mut have = tree::facts(overlay.path());
        let mut want = tree::facts(&want);
        // The root was made by the test.
        for map in [&mut have, &mut want] {
            map.remove(Path::new(""));
        }
        for (path, facts) in &want {
            met.attributes += usize::from(facts.has_attributes());
            met.devices += usize::from(facts.is_device());
            met.sparse += usize::from(facts.length == REAL as u64);
            met.deep += usize::from(path.as_os_str().len() > 100);
        }
        let result = std::panic::catch_unwind(|| tree::compare(&have, &want, tree::DirTimes::Ignored));
        assert!(result.is_ok(), "seed {seed}: {}", listing(&archives));
        compared += 1;
    }
    let Met { attributes, devices, sparse, deep } = met;
    assert!([attributes, devices, sparse, deep].into_iter().all(|count| count > 10), "{met:?}");
    assert!(compared > STACKS / 4, "only {compared} stacks could be compared");
    assert!(refused < compared / 10, "{refused} stacks that tar takes were refused");
}

fn listing(archives: &[PathBuf]) -> String {
    let mut out = BTreeMap::new();
    for archive in archives {
        let output = Command::new("tar").arg("-tvPf").arg(archive).output().unwrap();
        out.insert(archive.clone(), String::from_utf8_lossy(&output.stdout).into_owned());
    }
    out.into_iter().map(|(path, text)| format!("\n{}\n{text}", path.display())).collect()
}
