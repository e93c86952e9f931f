//! Go's `archive/tar`, which every other runtime reads layers with, as a judge of our reader: what we take it takes too, and reads the same.

use std::{collections::BTreeMap, path::Path, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{
    Entry, Kind, TarStream,
    mutants::{bases, mutant},
};
use crate::{Digest, convert::ConvertError, convert::Limits};

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
