//! GNU tar as a judge of our reader: what we take it takes too, lists the same and unpacks to the same bytes.

use std::{path::Path, process::Command};

use super::{
    Entry, Kind, TarStream,
    mutants::{bases, mutant},
};
use crate::convert::{ConvertError, Limits};

const ARCHIVES: u64 = 700;

/// An archive as tar lists it, and the content of all its files.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    lines: Vec<String>,
    content: Vec<u8>,
}

fn ours(bytes: &[u8]) -> Result<Seen, ConvertError> {
    let mut tar = TarStream::new(bytes, Limits { layer_bytes: 8 << 20, ..Limits::default() });
    let mut out = Seen { lines: Vec::new(), content: Vec::new() };
    while let Some(entry) = tar.next()? {
        let begin = out.content.len();
        out.content.resize(begin + entry.size as usize, 0);
        tar.read_content(&mut out.content[begin..])?;
        out.lines.push(line(&entry));
    }
    Ok(out)
}

/// As `tar -tv --numeric-owner --full-time --quoting-style=escape` has it, but for the widths of columns: see [`narrowed`].
fn line(entry: &Entry) -> String {
    let (kind, size, link) = match entry.kind {
        Kind::File => ('-', entry.size.to_string(), None),
        Kind::HardLink => ('h', "0".to_owned(), Some(" link to ")),
        Kind::Symlink => ('l', "0".to_owned(), Some(" -> ")),
        Kind::Char { major, minor } => ('c', format!("{major},{minor}"), None),
        Kind::Block { major, minor } => ('b', format!("{major},{minor}"), None),
        Kind::Dir => ('d', "0".to_owned(), None),
        Kind::Fifo => ('p', "0".to_owned(), None),
    };
    let (mode, uid, gid) = (permissions(entry.mode), entry.uid, entry.gid);
    let name = escaped(&entry.path);
    let name = name.trim_end_matches('/').trim_start_matches(' ');
    let link = link.map(|arrow| format!("{arrow}{}", escaped(&entry.link))).unwrap_or_default();
    format!("{kind}{mode} {uid}/{gid} {size} {} {name}{link}", time(entry.mtime, entry.mtime_nsec))
}

fn permissions(mode: u16) -> String {
    let mut out = String::new();
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    out
}

fn time(seconds: i64, nanos: u32) -> String {
    let Ok(at) = jiff::Timestamp::new(seconds, 0) else { return format!("@{seconds}") };
    let text = at.strftime("%Y-%m-%d %H:%M:%S").to_string();
    // tar leaves trailing zeros away.
    if nanos == 0 { text } else { format!("{text}.{nanos:09}").trim_end_matches('0').to_owned() }
}

fn escaped(name: &[u8]) -> String {
    let mut out = String::new();
    for byte in name {
        match byte {
            b'\\' => out.push_str("\\\\"),
            7 => out.push_str("\\a"),
            8 => out.push_str("\\b"),
            9 => out.push_str("\\t"),
            10 => out.push_str("\\n"),
            11 => out.push_str("\\v"),
            12 => out.push_str("\\f"),
            13 => out.push_str("\\r"),
            127 => out.push_str("\\?"),
            32..=126 => out.push(char::from(*byte)),
            _ => out.push_str(&format!("\\{byte:03o}")),
        }
    }
    out
}

fn theirs(archive: &Path) -> Result<Seen, String> {
    let tar = |args: &[&str]| {
        let mut command = Command::new("tar");
        command.env("LC_ALL", "C").env("TZ", "UTC").args(args).arg("-Pf").arg(archive);
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(output.stdout) } else { Err(error) }
    };
    let listed = tar(&["--numeric-owner", "--full-time", "--quoting-style=escape", "-tv"])?;
    let content = tar(&["-xO"])?;
    let lines = String::from_utf8(listed).unwrap();
    Ok(Seen { lines: lines.lines().map(narrowed).collect(), content })
}

/// Contiguous files are files. Columns with one space between them, and no slash at the end of a name. A time has its own width in each listing, so that
/// spaces at a name's begin cannot be told from those before it.
fn narrowed(line: &str) -> String {
    let mut rest = line;
    let mut columns = Vec::new();
    for _ in 0..5 {
        let (column, more) = rest.split_once(' ').unwrap_or((rest, ""));
        columns.push(column);
        rest = more.trim_start();
    }
    let kind = line.as_bytes().first();
    let name = if kind == Some(&b'd') { rest.trim_end_matches('/') } else { rest };
    let line = format!("{} {name}", columns.join(" "));
    line.strip_prefix('C').map_or(line.clone(), |rest| format!("-{rest}"))
}

#[test]
fn what_we_take_gnu_tar_takes_and_reads_the_same() {
    let version = Command::new("tar").arg("--version").output();
    if !version.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("GNU tar")) {
        eprintln!("SKIPPED what_we_take_gnu_tar_takes_and_reads_the_same: there is no GNU tar");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bases = bases();
    let mutants = (0..ARCHIVES).map(|seed| mutant(&bases[seed as usize % bases.len()], seed));
    let (mut same, mut differ) = (0, Vec::new());
    for (number, archive) in bases.iter().cloned().chain(mutants).enumerate() {
        let ours = ours(&archive);
        assert!(number >= bases.len() || ours.is_ok(), "base {number}: {ours:?}");
        let Ok(ours) = ours else { continue };
        let path = dir.path().join("it.tar");
        std::fs::write(&path, &archive).unwrap();
        match theirs(&path) {
            Ok(theirs) if theirs == ours => same += 1,
            Ok(theirs) => differ.push(format!("{number}:\n {:#?}\n  tar: {:#?}", ours.lines, theirs.lines)),
            Err(error) => differ.push(format!("{number}:\n {:#?}\n  tar: {error}", ours.lines)),
        }
    }
    let some = differ[..differ.len().min(6)].join("\n");
    assert!(differ.is_empty(), "{} of {}:\n{some}", differ.len(), same + differ.len());
    assert!(same as u64 > ARCHIVES / 10, "only {same} archives were taken by both");
}
