//! Go's `archive/tar`, which every other runtime reads layers with, as a judge of our reader: what we take it takes too, and reads the same.

use std::{collections::BTreeMap, path::Path, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{Entry, Kind, TarStream};
use crate::{Digest, convert::ConvertError, convert::Limits, testing::Tar};

const ARCHIVES: u64 = 4000;

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Seen {
    kind: String,
    path: String,
    link: String,
    mode: u16,
    uid: u64,
    gid: u64,
    seconds: i64,
    nanos: u32,
    major: u32,
    minor: u32,
    size: u64,
    content: String,
    xattrs: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Archive {
    entries: Option<Vec<Seen>>,
    error: String,
}

/// As Go's side says it.
fn seen(entry: &Entry, content: &[u8]) -> Seen {
    let (kind, major, minor) = match entry.kind {
        Kind::File => ("file", 0, 0),
        Kind::HardLink => ("hard link", 0, 0),
        Kind::Symlink => ("symlink", 0, 0),
        Kind::Char { major, minor } => ("char", major, minor),
        Kind::Block { major, minor } => ("block", major, minor),
        Kind::Dir => ("dir", 0, 0),
        Kind::Fifo => ("fifo", 0, 0),
    };
    Seen {
        kind: kind.to_owned(),
        path: STANDARD.encode(&entry.path),
        link: STANDARD.encode(&entry.link),
        mode: entry.mode,
        uid: entry.uid.into(),
        gid: entry.gid.into(),
        seconds: entry.mtime,
        nanos: entry.mtime_nsec,
        major,
        minor,
        size: entry.size,
        content: Digest::sha256(content).hex().to_owned(),
        xattrs: entry.xattrs.iter().map(|(name, value)| (STANDARD.encode(name), STANDARD.encode(value))).collect(),
    }
}

fn ours(bytes: &[u8]) -> Result<Vec<Seen>, ConvertError> {
    let mut tar = TarStream::new(bytes, Limits { layer_bytes: 8 << 20, ..Limits::default() });
    let mut out = Vec::new();
    while let Some(entry) = tar.next()? {
        let mut content = vec![0; entry.size as usize];
        tar.read_content(&mut content)?;
        out.push(seen(&entry, &content));
    }
    Ok(out)
}

/// Sound archives that use everything there is.
fn bases() -> Vec<Vec<u8>> {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(90));
    let gnu_name = |t: Tar| t.with("././@LongLink", b'L', format!("{long}\0").as_bytes(), |_| {});
    let mut out = vec![
        Tar::new()
            .dir("d/", 0o755)
            .file("d/f", b"content")
            .symlink("l", "d")
            .hardlink("h", "d/f")
            .device("c", b'3', 1, 3)
            .end(),
        Tar::new()
            .pax("mtime", b"1234567890.123456789")
            .pax("uid", b"70000")
            .pax("SCHILY.xattr.user.a", b"v\n\0v")
            .file("f", &[7; 700])
            .pax("path", long.as_bytes())
            .pax("size", b"3")
            .file("x", b"abc")
            .pax("linkpath", long.as_bytes())
            .symlink("s", "x")
            .end(),
        gnu_name(Tar::new()).file("x", b"1").with("././@LongLink", b'K', b"target\0", |_| {}).symlink("s", "y").end(),
        Tar::new().with("pax", b'g', b"17 comment=hello\n", |_| {}).file("f", b"").end(),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("sparse")).unwrap();
    for i in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[i as u8 + 1; 600], i * 16_384).unwrap();
    }
    std::fs::write(dir.path().join("n".repeat(140)), b"x").unwrap();
    for args in [
        &["--format=gnu", "--sparse"][..],
        &["--format=v7"],
        &["--format=ustar"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ] {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(dir.path()).args(args).args(["--numeric-owner", "-cf", "-", "."]);
        out.push(tar.output().unwrap().stdout);
    }
    out
}

/// Where the headers are.
fn headers(bytes: &[u8]) -> Vec<usize> {
    let mut out = Vec::new();
    let mut at = 0;
    while at + 512 <= bytes.len() && bytes[at..at + 512] != [0; 512] {
        out.push(at);
        let size = std::str::from_utf8(&bytes[at + 124..at + 135]).ok().and_then(|t| u64::from_str_radix(t, 8).ok());
        let mut more = bytes[at + 156] == b'S' && bytes[at + 482] != 0;
        at += 512;
        while more {
            more = bytes[at + 504] != 0;
            at += 512;
        }
        at += (size.unwrap_or(0) as usize).next_multiple_of(512);
    }
    out
}

fn sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A base with some bytes changed, its headers' checksums right again.
fn mutant(base: &[u8], seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let headers = headers(base);
    let mut out = base.to_vec();
    for _ in 0..=below(3) {
        let header = headers[below(headers.len())];
        // Mostly where the meaning is: fields of the header, and the extension or map behind it.
        let at = match below(6) {
            0 => header + 156,
            1 => header + 124 + below(12),
            2 => header + 257 + below(8),
            3 => header + below(512),
            4 => header + 345 + below(160),
            _ => header + 512 + below(200),
        };
        let interesting = [0, b' ', b'0', b'1', b'7', b'/', b'.', b'S', b'x', b'\n', b'=', 0x80, 0xff, b'5', b'L'];
        let byte = if below(3) == 0 { below(256) as u8 } else { interesting[below(interesting.len())] };
        if let Some(place) = out.get_mut(at) {
            *place = byte;
        }
    }
    for header in headers {
        sum(&mut out[header..header + 512]);
    }
    out
}

fn judge(dir: &Path) -> Option<Vec<Archive>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/go");
    let program = dir.join("tarjudge");
    let built = Command::new("go").arg("build").arg("-o").arg(&program).arg(".").current_dir(source).output().ok()?;
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let said = Command::new(&program).arg(dir).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Some(
        said.stdout
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect(),
    )
}

#[test]
fn what_we_take_go_takes_and_reads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let bases = bases();
    let archives: Vec<Vec<u8>> = bases
        .iter()
        .cloned()
        .chain((0..ARCHIVES).map(|seed| mutant(&bases[seed as usize % bases.len()], seed)))
        .collect();
    for (number, archive) in archives.iter().enumerate() {
        std::fs::write(dir.path().join(format!("{number:06}.tar")), archive).unwrap();
    }
    let Some(theirs) = judge(dir.path()) else {
        eprintln!("SKIPPED what_we_take_go_takes_and_reads_the_same: there is no go");
        return;
    };
    assert_eq!(theirs.len(), archives.len());
    let (mut same, mut differ) = (0, Vec::new());
    for (number, (archive, theirs)) in archives.iter().zip(theirs).enumerate() {
        let ours = ours(archive);
        assert!(number >= bases.len() || ours.is_ok(), "base {number}: {ours:?}");
        let Ok(ours) = ours else { continue };
        if theirs.error.is_empty() && theirs.entries.as_deref().unwrap_or_default() == ours {
            same += 1;
        } else {
            differ.push(format!("{number}: {ours:?}\n  Go: {theirs:?}"));
        }
    }
    assert!(
        differ.is_empty(),
        "{} of {}:\n{}",
        differ.len(),
        same + differ.len(),
        differ[..differ.len().min(8)].join("\n")
    );
    assert!(same as u64 > ARCHIVES / 10, "only {same} archives were taken by both");
}
