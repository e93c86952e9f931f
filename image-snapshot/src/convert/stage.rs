//! First half of a conversion: reads the archive once, lays out data and leaf inodes as they come, and notes the rest in a journal.
//! Needs nothing of the layers below, so all layers of an image do this at once while they download.

use std::{fs::File, io::Read};

use super::{
    ConvertError, Limits,
    journal::{Journal, What},
    path::{Special, member, special},
    tar_stream::{Entry, Kind, TarStream, lossy},
};
use crate::erofs::{
    Body, Meta, Writer,
    format::{BLOCK, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, encode_dev, file_type},
    xattr::{self, Xattrs},
};

/// Longest symbolic link that Linux reads.
const LINK_MAX: usize = 4095;

/// A layer whose bytes are all in, waiting for the layers below.
#[derive(Debug)]
pub struct Staged {
    pub(super) writer: Writer,
    pub(super) journal: Journal,
    pub(super) bounds: Bounds,
}

/// What the layers below may add to a layer: of [`Limits`], with the layer's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// [`Limits::entries`].
    pub(super) names: u64,
    /// [`Limits::layer_bytes`].
    pub(super) bytes: u64,
}

/// Reads an uncompressed archive and writes its contents to `out`. The reader is left behind the end-of-archive marker.
pub(super) fn stage<R: Read>(input: R, out: File, limits: &Limits) -> Result<(Staged, R), ConvertError> {
    let mut stage =
        Stage { writer: Writer::new(out).map_err(ConvertError::Write)?, journal: Journal::default(), limits };
    let mut tar = TarStream::new(input, limits.clone());
    while let Some(entry) = tar.next()? {
        stage.take(&entry, &mut tar)?;
    }
    let Stage { mut writer, journal, .. } = stage;
    writer.flush_segment().map_err(ConvertError::Write)?;
    let is_archive = tar.has_headers();
    let mut rest = tar.into_inner();
    if !is_archive {
        only_zeros(&mut rest)?;
    }
    let bounds = Bounds { names: limits.entries, bytes: limits.layer_bytes };
    Ok((Staged { writer, journal, bounds }, rest))
}

/// An empty archive is all zeros. What begins with as many but goes on is something else (an EROFS image begins with 1024).
fn only_zeros(rest: &mut impl Read) -> Result<(), ConvertError> {
    let mut piece = [0; 8192];
    loop {
        // A reader that fails says so where it is drained.
        match rest.read(&mut piece) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(n) if piece[..n].iter().any(|b| *b != 0) => {
                return Err(ConvertError::Header { entry: 1, problem: "this is no archive" });
            }
            Ok(_) => {}
        }
    }
}

struct Stage<'a> {
    writer: Writer,
    journal: Journal,
    limits: &'a Limits,
}

impl Stage<'_> {
    fn take<R: Read>(&mut self, entry: &Entry, tar: &mut TarStream<R>) -> Result<(), ConvertError> {
        self.check_room()?;
        let components = member(&entry.path, self.limits)?;
        match special(&components)? {
            Special::Ignore => return Ok(()),
            Special::Opaque => {
                self.journal.push(&components[..components.len() - 1], What::Opaque);
                return Ok(());
            }
            Special::Whiteout(name) => {
                let mut hidden = components.clone();
                if let Some(last) = hidden.last_mut() {
                    *last = name;
                }
                self.journal.push(&hidden, What::Whiteout);
                return Ok(());
            }
            Special::No => {}
        }
        if components.is_empty() && entry.kind != Kind::Dir {
            return Err(place(&entry.path, "the root must be a directory"));
        }
        self.lay_out(entry, &components, tar)
    }

    fn check_room(&self) -> Result<(), ConvertError> {
        if self.journal.len() >= self.limits.entries {
            return Err(ConvertError::Limit { what: "entries", limit: self.limits.entries });
        }
        if self.journal.name_bytes() > self.limits.all_path_bytes {
            let limit = self.limits.all_path_bytes as u64;
            return Err(ConvertError::Limit { what: "bytes of all paths", limit });
        }
        Ok(())
    }

    fn lay_out<R: Read>(&mut self, entry: &Entry, path: &[&[u8]], tar: &mut TarStream<R>) -> Result<(), ConvertError> {
        let meta = |kind: u16| Meta {
            mode: kind | entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            mtime_nsec: entry.mtime_nsec,
            xattrs: storable(&entry.xattrs),
        };
        let leaf = |writer: &mut Writer, kind: u16, body: &Body<'_>| {
            let inode = writer.leaf(&meta(kind), body).map_err(ConvertError::Write)?;
            Ok(What::Leaf(inode, file_type(kind)))
        };
        let what = match entry.kind {
            Kind::Dir => What::Dir(self.journal.describe(&meta(S_IFDIR))),
            Kind::File => self.file(&meta(S_IFREG), entry, tar)?,
            Kind::Fifo => leaf(&mut self.writer, S_IFIFO, &Body::None { rdev: 0 })?,
            // To an overlay this is a whiteout, however it got here.
            Kind::Char { major: 0, minor: 0 } => What::Whiteout,
            Kind::Char { major, minor } | Kind::Block { major, minor } => {
                let rdev = encode_dev(major, minor)
                    .ok_or(ConvertError::Unsupported { path: lossy(&entry.path), what: "this device number" })?;
                let kind = if matches!(entry.kind, Kind::Char { .. }) { S_IFCHR } else { S_IFBLK };
                leaf(&mut self.writer, kind, &Body::None { rdev })?
            }
            Kind::Symlink => {
                let target = &entry.link;
                if target.is_empty() || target.len() > LINK_MAX || target.contains(&0) {
                    return Err(ConvertError::Name { path: lossy(target), problem: "no target for a symbolic link" });
                }
                let meta = Meta { mode: S_IFLNK | 0o777, ..meta(S_IFLNK) };
                let inode = self.writer.leaf(&meta, &Body::Small(target)).map_err(ConvertError::Write)?;
                What::Symlink(inode, target)
            }
            Kind::HardLink => {
                let target = member(&entry.link, self.limits)?;
                if target.is_empty() {
                    return Err(place(&entry.path, "hard link to the root"));
                }
                self.journal.push(path, What::Link(&target.join(&b'/')));
                return Ok(());
            }
        };
        self.journal.push(path, what);
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        meta: &Meta,
        entry: &Entry,
        tar: &mut TarStream<R>,
    ) -> Result<What<'static>, ConvertError> {
        let start = self.writer.position();
        let tail_len = (entry.size % BLOCK as u64) as usize;
        self.writer.stream_with(entry.size - tail_len as u64, |buf| tar.read_content(buf).map(|_| ()))?;
        let mut tail = [0; BLOCK];
        tar.read_content(&mut tail[..tail_len])?;
        let body = Body::Streamed { start, size: entry.size, tail: &tail[..tail_len] };
        let inode = self.writer.leaf(meta, &body).map_err(ConvertError::Write)?;
        Ok(What::Leaf(inode, file_type(S_IFREG)))
    }
}

/// What the file system can hold, without what would speak to the overlay.
fn storable(xattrs: &Xattrs) -> Xattrs {
    let keep = |name: &[u8], value: &[u8]| !name.starts_with(b"trusted.overlay.") && xattr::is_storable(name, value);
    xattrs.iter().filter(|(n, v)| keep(n, v)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

pub(super) fn place(path: &[u8], problem: &'static str) -> ConvertError {
    ConvertError::Place { path: lossy(path), problem }
}
