//! Files of a local image, by name: in a directory, or in a tar file.

use std::{
    collections::HashMap,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio::sync::OnceCell;

use super::{BlobSink, SourceError};
use crate::{
    Digest, Limits,
    convert::{Kind, TarStream},
};

const CHUNK: usize = 256 << 10;

/// A directory, or a tar file that takes its place.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    limits: Limits,
    /// Where a tar file's members are, once looked through; `None` for a directory.
    members: Option<OnceCell<Members>>,
}

#[derive(Debug)]
struct Members {
    file: Arc<std::fs::File>,
    /// Offset and size.
    places: HashMap<String, (u64, u64)>,
    /// Symbolic links, as old versions of `docker save` make for repeated layers.
    links: HashMap<String, String>,
}

/// Bytes of one file.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Names it in errors.
    pub(super) what: String,
    file: Arc<std::fs::File>,
    at: u64,
    end: u64,
}

impl Files {
    pub(super) fn directory(root: &Path, limits: &Limits) -> Self {
        Self { root: root.to_owned(), limits: limits.clone(), members: None }
    }

    pub(super) fn archive(path: &Path, limits: &Limits) -> Self {
        Self { root: path.to_owned(), limits: limits.clone(), members: Some(OnceCell::new()) }
    }

    /// Finds a file. Links out of a directory are refused, and only regular files are read.
    pub(super) async fn open(&self, inside: &str) -> Result<Part, SourceError> {
        let what = self.root.join(inside).display().to_string();
        let Some(cell) = &self.members else {
            let file =
                open_below(&self.root, inside).map_err(|source| SourceError::Io { what: what.clone(), source })?;
            let end = file.metadata().map_err(|source| SourceError::Io { what: what.clone(), source })?.len();
            return Ok(Part { what, file: Arc::new(file), at: 0, end });
        };
        let members = cell
            .get_or_try_init(|| async {
                let (root, limits) = (self.root.clone(), self.limits.clone());
                let what = root.display().to_string();
                let looked = tokio::task::spawn_blocking(move || look_through(&root, limits)).await;
                looked.map_err(|e| SourceError::Io { what, source: io::Error::other(e) })?
            })
            .await?;
        let name = members.links.get(inside).map_or(inside, String::as_str);
        let Some((at, size)) = members.places.get(name).copied() else {
            return Err(SourceError::NotFound { what, detail: String::new() });
        };
        Ok(Part { what, file: members.file.clone(), at, end: at + size })
    }

    /// Reads a small file.
    pub(super) async fn read(&self, inside: &str) -> Result<(Vec<u8>, String), SourceError> {
        let limit = self.limits.document_bytes;
        let part = self.open(inside).await?;
        let what = part.what.clone();
        if part.size() > limit {
            return Err(SourceError::TooLarge { what, limit });
        }
        let mut bytes = vec![0; part.size() as usize];
        part.file
            .read_exact_at(&mut bytes, part.at)
            .map_err(|source| SourceError::Io { what: what.clone(), source })?;
        Ok((bytes, what))
    }

    /// Reads a small file that must have this digest.
    pub(super) async fn read_checked(&self, inside: &str, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        let (bytes, what) = self.read(inside).await?;
        check(what, &bytes, digest)?;
        Ok(bytes)
    }
}

impl Part {
    pub(super) fn size(&self) -> u64 {
        self.end - self.at
    }

    /// Sends all of it.
    pub(super) async fn send(mut self, mut sink: BlobSink) -> Result<(), SourceError> {
        let what = self.what.clone();
        while self.at < self.end {
            let mut part = self.clone();
            let step = tokio::task::spawn_blocking(move || {
                let mut buf = vec![0; (part.end - part.at).min(CHUNK as u64) as usize];
                part.file.read_exact_at(&mut buf, part.at)?;
                part.at += buf.len() as u64;
                io::Result::Ok((part, buf))
            });
            let done = step.await.unwrap_or_else(|e| Err(io::Error::other(e)));
            let (part, buf) = done.map_err(|source| SourceError::Io { what: what.clone(), source })?;
            self = part;
            sink.push(&what, Bytes::from(buf)).await?;
        }
        sink.finish(&what).await
    }
}

fn open_below(root: &Path, inside: &str) -> io::Result<std::fs::File> {
    let root = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat2(&root, inside, flags, Mode::empty(), ResolveFlags::BENEATH)?;
    let file = std::fs::File::from(file);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// Counts what was read, which behind a header is where its content begins.
struct Counted<R> {
    inner: R,
    position: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.position += n as u64;
        Ok(n)
    }
}

fn look_through(path: &Path, limits: Limits) -> Result<Members, SourceError> {
    let what = || path.display().to_string();
    let io = |source| SourceError::Io { what: what(), source };
    let file = open_below(path.parent().unwrap_or(Path::new("/")), &file_name(path)).map_err(io)?;
    let file = Arc::new(file);
    let input = Counted { inner: BufReader::with_capacity(CHUNK, &*file), position: 0 };
    // One member may be a whole layer.
    let mut tar = TarStream::new(input, limits);
    let (mut places, mut links) = (HashMap::new(), HashMap::new());
    let bad = |source| SourceError::Archive { what: what(), source: Box::new(source) };
    while let Some(entry) = tar.next().map_err(bad)? {
        let name = clean(&String::from_utf8_lossy(&entry.path));
        match entry.kind {
            Kind::File => {
                places.insert(name, (tar.input().position, entry.size));
            }
            Kind::Symlink => {
                let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                let target = clean(&format!("{dir}/{}", String::from_utf8_lossy(&entry.link)));
                links.insert(name, target);
            }
            _ => {}
        }
    }
    Ok(Members { file, places, links })
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// `./a//b/../c` to `a/c`.
fn clean(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                out.pop();
            }
            _ => out.push(part),
        }
    }
    out.join("/")
}

/// Compares content with its digest.
pub(crate) fn check(what: String, bytes: &[u8], want: &Digest) -> Result<(), SourceError> {
    if want.matches(bytes) {
        return Ok(());
    }
    Err(SourceError::DigestMismatch { what, want: want.clone(), got: Digest::sha256(bytes) })
}
