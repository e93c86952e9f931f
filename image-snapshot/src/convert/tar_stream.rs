//! Reads an archive's headers as GNU tar and Go's `archive/tar` do; where those two disagree, the layer is refused.
//!
//! Not the `tar` crate's `Archive`: that reads long-name and PAX headers of any size into memory, lets a PAX size contradict the header's, and
//! splits PAX records at newlines, which file capabilities may contain. (As a writer it makes our test archives.)

use std::io::{self, Read};

use super::{
    ConvertError, Limits,
    pax::Pax,
    sparse::{self, Lines, Map, Place, Run},
    tar_header::{Raw, Typeflag},
};
use crate::erofs::xattr::Xattrs;

const RECORD: usize = 512;
/// Largest size that the header's 11 octal digits can say.
const MAX_OCTAL_SIZE: u64 = 0o777_7777_7777;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Dir,
    Fifo,
}

/// An entry's header, extensions merged in.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) size: u64,
    /// All that the archive names, storable or not.
    pub(crate) xattrs: Xattrs,
}

/// Extensions for the next entry.
#[derive(Default)]
struct Extra {
    gnu_path: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

/// The archive.
pub(crate) struct TarStream<R> {
    input: R,
    limits: Limits,
    /// Headers seen, for messages.
    count: u64,
    /// Bytes of the current entry's content not read yet.
    left: u64,
    /// Zero bytes behind it.
    padding: usize,
    /// Where its data lies, if it has holes.
    map: Option<Map>,
    /// Bytes of all files so far, holes and all.
    expanded: u64,
}

impl<R: Read> TarStream<R> {
    pub(crate) fn new(input: R, limits: Limits) -> Self {
        Self { input, limits, count: 0, left: 0, padding: 0, map: None, expanded: 0 }
    }

    /// The input, read up to the current entry's content.
    pub(crate) fn input(&self) -> &R {
        &self.input
    }

    /// Whether there was a header, so far.
    pub(crate) fn has_headers(&self) -> bool {
        self.count > 0
    }

    /// Back to the input, behind the end of the archive.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; `None` at the end. What is left of the current one's content is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ConvertError> {
        let mut extra = Extra::default();
        loop {
            self.skip_content()?;
            let Some(raw) = self.header()? else {
                let alone = extra.gnu_path.is_some() || extra.gnu_link.is_some() || extra.pax.is_some();
                return if alone { Err(self.bad("extension without an entry")) } else { Ok(None) };
            };
            let flag = raw.typeflag();
            match flag {
                Typeflag::GnuLongName | Typeflag::GnuLongLink => {
                    let mut text = self.extension(&raw)?;
                    text.truncate(text.iter().position(|b| *b == 0).unwrap_or(text.len()));
                    if text.is_empty() {
                        return Err(self.bad("empty long name"));
                    }
                    let slot = if flag == Typeflag::GnuLongName { &mut extra.gnu_path } else { &mut extra.gnu_link };
                    if slot.replace(text).is_some() {
                        return Err(self.bad("two long names for one entry"));
                    }
                }
                Typeflag::PaxLocal => {
                    let body = self.extension(&raw)?;
                    if extra.pax.replace(self.pax(&body)?).is_some() {
                        return Err(self.bad("two PAX headers for one entry"));
                    }
                }
                Typeflag::PaxGlobal => {
                    // GNU tar applies these to all that follow, Go does not: only harmless ones pass.
                    let body = self.extension(&raw)?;
                    if self.pax(&body)?.speaks() {
                        return Err(self.bad("global PAX header changes entries"));
                    }
                }
                _ => return self.entry(&raw, extra).map(Some),
            }
        }
    }

    /// Reads content of the current entry, holes as zeros; short only at its end.
    pub(crate) fn read_content(&mut self, buf: &mut [u8]) -> Result<usize, ConvertError> {
        let Some(mut map) = self.map.take() else { return self.read_stored(buf) };
        let mut n = 0;
        while n < buf.len()
            && let Some(run) = map.next()
        {
            let (Run::Data(len) | Run::Hole(len)) = run;
            let part = len.min((buf.len() - n) as u64) as usize;
            match run {
                Run::Data(_) => _ = self.read_stored(&mut buf[n..n + part])?,
                Run::Hole(_) => buf[n..n + part].fill(0),
            }
            map.advance(part as u64);
            n += part;
        }
        self.map = Some(map);
        Ok(n)
    }

    /// Reads what the archive holds of the current entry; short only at its end.
    fn read_stored(&mut self, buf: &mut [u8]) -> Result<usize, ConvertError> {
        let want = self.left.min(buf.len() as u64) as usize;
        read_full(&mut self.input, &mut buf[..want], "an entry's content")?;
        self.left -= want as u64;
        Ok(want)
    }

    fn bad(&self, problem: &'static str) -> ConvertError {
        ConvertError::Header { entry: self.count, problem }
    }

    fn skip_content(&mut self) -> Result<(), ConvertError> {
        let mut scratch = [0; 8192];
        self.map = None;
        while self.left > 0 {
            self.read_stored(&mut scratch)?;
        }
        let padding = std::mem::take(&mut self.padding);
        read_full(&mut self.input, &mut scratch[..padding], "the padding of an entry")
    }

    fn header(&mut self) -> Result<Option<Raw>, ConvertError> {
        let mut block = [0; RECORD];
        if !read_or_end(&mut self.input, &mut block)? {
            return Ok(None);
        }
        if block == [0; RECORD] {
            // The end is two zero records. After a single one GNU tar stops and Go complains.
            let more = read_or_end(&mut self.input, &mut block)?;
            return if more && block != [0; RECORD] {
                Err(self.bad("data after a single zero record"))
            } else {
                Ok(None)
            };
        }
        self.count += 1;
        if self.count > self.limits.entries.saturating_mul(4) {
            return Err(ConvertError::Limit { what: "headers", limit: self.limits.entries * 4 });
        }
        Raw::parse(block).map(Some).map_err(|problem| self.bad(problem))
    }

    /// Body of an extension header, in memory.
    fn extension(&mut self, raw: &Raw) -> Result<Vec<u8>, ConvertError> {
        let size = raw.size().map_err(|p| self.bad(p))?;
        if size > self.limits.header_bytes {
            return Err(ConvertError::Limit { what: "bytes of an extended header", limit: self.limits.header_bytes });
        }
        self.begin_content(size);
        let mut body = vec![0; size as usize];
        self.read_stored(&mut body)?;
        Ok(body)
    }

    fn begin_content(&mut self, size: u64) {
        self.left = size;
        self.padding = ((RECORD as u64 - size % RECORD as u64) % RECORD as u64) as usize;
    }

    fn pax(&self, body: &[u8]) -> Result<Pax, ConvertError> {
        let pax = Pax::parse(body).map_err(|p| self.bad(p))?;
        let limit = self.limits.xattr_bytes;
        if pax.xattr_bytes() > limit {
            return Err(ConvertError::Limit { what: "bytes of extended attributes", limit: limit as u64 });
        }
        Ok(pax)
    }

    fn entry(&mut self, raw: &Raw, extra: Extra) -> Result<Entry, ConvertError> {
        let pax = extra.pax.unwrap_or_default();
        // The name of a file with holes is in a record of its own; others hold a made-up one.
        let own_name = pax.sparse.as_ref().and_then(|records| records.name.clone());
        let path = self.one_of(extra.gnu_path, own_name.or(pax.path), || raw.path())?;
        let link = self.one_of(extra.gnu_link, pax.link, || raw.link())?;
        let in_header = raw.size();
        let size = match (pax.size, in_header) {
            (None, size) => size.map_err(|p| self.bad(p))?,
            // What the header cannot say it says wrongly; otherwise the two must agree (CVE-2025-62518).
            (Some(pax), _) if pax > MAX_OCTAL_SIZE => pax,
            (Some(pax), Ok(header)) if pax == header => pax,
            (Some(_), _) => return Err(self.bad("PAX size contradicts the header's")),
        };
        let problem = |p| self.bad(p);
        let device = || -> Result<(u32, u32), ConvertError> {
            let (major, minor) = (raw.major().map_err(problem)?, raw.minor().map_err(problem)?);
            match (u32::try_from(major), u32::try_from(minor)) {
                (Ok(major), Ok(minor)) => Ok((major, minor)),
                _ => Err(self.bad("device number out of range")),
            }
        };
        let slash = path.last() == Some(&b'/');
        let kind = match raw.typeflag() {
            Typeflag::OldFile if slash => Kind::Dir,
            Typeflag::File if slash => return Err(self.bad("a file's name ends with a slash")),
            Typeflag::OldFile | Typeflag::File => Kind::File,
            Typeflag::HardLink => Kind::HardLink,
            Typeflag::Symlink => Kind::Symlink,
            Typeflag::Char => device().map(|(major, minor)| Kind::Char { major, minor })?,
            Typeflag::Block => device().map(|(major, minor)| Kind::Block { major, minor })?,
            Typeflag::Dir => Kind::Dir,
            Typeflag::Fifo => Kind::Fifo,
            Typeflag::GnuSparse => Kind::File,
            _ => return Err(ConvertError::Unsupported { path: lossy(&path), what: "this kind of archive member" }),
        };
        // Hard links may repeat their target's size, but have no content here.
        let size = match kind {
            Kind::File => size,
            Kind::HardLink => 0,
            _ if size == 0 => 0,
            _ => return Err(self.bad("size of something that has no content")),
        };
        self.bound(size)?;
        let id = |pax: Option<u64>, header: Result<u64, &'static str>| -> Result<u32, ConvertError> {
            let value = match pax {
                Some(value) => value,
                None => header.map_err(problem)?,
            };
            // The last one is -1: "no change" to chown.
            match u32::try_from(value) {
                Ok(id) if id != u32::MAX => Ok(id),
                _ => Err(self.bad("user or group id out of range")),
            }
        };
        let (mtime, mtime_nsec) = match pax.mtime {
            Some(time) => time,
            None => (raw.mtime().map_err(problem)?, 0),
        };
        let mut entry = Entry {
            mode: (raw.mode().map_err(problem)? & 0o7777) as u16,
            uid: id(pax.uid, raw.uid())?,
            gid: id(pax.gid, raw.gid())?,
            mtime,
            mtime_nsec,
            size,
            xattrs: pax.xattrs,
            kind,
            path,
            link,
        };
        self.begin(&mut entry, raw, pax.sparse.as_ref())?;
        Ok(entry)
    }

    /// Up to the entry's data.
    fn begin(&mut self, entry: &mut Entry, raw: &Raw, records: Option<&sparse::Records>) -> Result<(), ConvertError> {
        let stored = entry.size;
        let is_old = raw.typeflag() == Typeflag::GnuSparse;
        let (pieces, size) = match records {
            None if is_old => {
                let map = self.old_map(raw)?;
                self.begin_content(stored);
                map
            }
            None => {
                self.begin_content(stored);
                self.expanded += stored;
                return self.bound(self.expanded);
            }
            Some(_) if is_old || entry.kind != Kind::File => return Err(self.bad("sparse in two ways, or not a file")),
            Some(_) if !raw.is_posix() => return Err(self.bad("sparse file in a foreign header")),
            Some(records) => match records.place().map_err(|p| self.bad(p))? {
                Place::Records { pieces, size } => {
                    self.begin_content(stored);
                    (pieces, size)
                }
                Place::Data { size } => {
                    self.begin_content(stored);
                    (self.map_in_data()?, size)
                }
            },
        };
        let map = Map::new(pieces, size, self.left).map_err(|p| self.bad(p))?;
        entry.size = map.size();
        self.map = Some(map);
        // Holes are no bytes of the archive, but they are of the file.
        self.expanded = self.expanded.saturating_add(size);
        self.bound(self.expanded)
    }

    fn old_map(&mut self, raw: &Raw) -> Result<(Vec<(u64, u64)>, u64), ConvertError> {
        let (fields, mut more, size) = raw.old_sparse().ok_or_else(|| self.bad("sparse file in a foreign header"))?;
        let size = size.map_err(|p| self.bad(p))?;
        let mut pieces = Vec::new();
        sparse::old_pieces(fields, &mut pieces).map_err(|p| self.bad(p))?;
        while more {
            let mut record = [0; RECORD];
            read_full(&mut self.input, &mut record, "the map of a sparse file")?;
            sparse::old_pieces(&record[..504], &mut pieces).map_err(|p| self.bad(p))?;
            more = record[504] != 0;
        }
        Ok((pieces, size))
    }

    fn map_in_data(&mut self) -> Result<Vec<(u64, u64)>, ConvertError> {
        let mut lines = Lines::default();
        loop {
            let mut record = [0; RECORD];
            if self.read_stored(&mut record)? < RECORD {
                return Err(self.bad("map of a sparse file does not parse"));
            }
            if lines.take(&record).map_err(|p| self.bad(p))? {
                return Ok(lines.pieces());
            }
        }
    }

    fn bound(&self, bytes: u64) -> Result<(), ConvertError> {
        let limit = self.limits.layer_bytes;
        if bytes > limit { Err(ConvertError::Limit { what: "uncompressed bytes", limit }) } else { Ok(()) }
    }

    fn one_of(
        &self,
        gnu: Option<Vec<u8>>,
        pax: Option<Vec<u8>>,
        header: impl Fn() -> Vec<u8>,
    ) -> Result<Vec<u8>, ConvertError> {
        let name = match (gnu, pax) {
            (Some(gnu), Some(pax)) if gnu != pax => return Err(self.bad("long name and PAX name differ")),
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => header(),
        };
        Ok(name)
    }
}

pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned()
}

fn read_full(input: &mut impl Read, buf: &mut [u8], what: &'static str) -> Result<(), ConvertError> {
    match input.read_exact(buf) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(ConvertError::Truncated { what }),
        Err(e) => Err(ConvertError::Decompress(e)),
    }
}

/// A whole record, or the end exactly here (`false`).
fn read_or_end(input: &mut impl Read, block: &mut [u8; RECORD]) -> Result<bool, ConvertError> {
    let mut n = 0;
    while n < RECORD {
        match input.read(&mut block[n..]) {
            Ok(0) if n == 0 => return Ok(false),
            Ok(0) => return Err(ConvertError::Truncated { what: "a header" }),
            Ok(got) => n += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(ConvertError::Decompress(e)),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod differential;
#[cfg(test)]
mod gnu;
#[cfg(test)]
mod mutants;
#[cfg(test)]
mod tests;
