//! Header blocks: names and values in one zlib stream a direction, which lives as long as the connection.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;
use super::frame::ProtocolError;

/// Longest header block, inflated. Kubernetes' are below 200 bytes.
const LONGEST: usize = 16 << 10;
/// Most headers of a block.
const MOST: u32 = 32;

/// Names in lower case, and values.
pub type Headers = Vec<(String, String)>;

/// Reads header blocks, each in its turn.
#[derive(Debug)]
pub(super) struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// Must see every block of its direction, in order, for the sake of the next.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, ProtocolError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        let damaged = ProtocolError::Headers("is not compressed as SPDY wants it");
        let mut plain = vec![0; LONGEST + 1];
        let mut length = 0;
        loop {
            let (taken, given) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(block, &mut plain[length..], FlushDecompress::Sync);
            let progress = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
            block = block.get(progress(self.0.total_in(), taken)..).unwrap_or_default();
            length += progress(self.0.total_out(), given);
            match result {
                Ok(Status::StreamEnd) => return Err(ProtocolError::Headers("ends the connection's compression")),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| damaged)?;
                    continue;
                }
                Err(_) => return Err(damaged),
            }
            if length > LONGEST {
                return Err(ProtocolError::Headers("is too long"));
            }
            if block.is_empty() {
                plain.truncate(length);
                return Ok(plain);
            }
            if self.0.total_in() == taken && self.0.total_out() == given {
                return Err(damaged);
            }
        }
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, ProtocolError> {
    let short = ProtocolError::Headers("ends early");
    fn number(bytes: &mut &[u8]) -> Option<u32> {
        let (first, rest) = bytes.split_first_chunk::<4>()?;
        *bytes = rest;
        Some(u32::from_be_bytes(*first))
    }
    fn text(bytes: &mut &[u8]) -> Option<String> {
        let length = number(bytes)? as usize;
        let (first, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        Some(String::from_utf8_lossy(first).into_owned())
    }
    let count = number(&mut plain).ok_or(short)?;
    if count > MOST {
        return Err(ProtocolError::Headers("has too many headers"));
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut plain).ok_or(short)?.to_ascii_lowercase();
        let value = text(&mut plain).ok_or(short)?;
        if name.is_empty() || headers.iter().any(|(known, _)| *known == name) {
            return Err(ProtocolError::Headers("has a name that is empty or there twice"));
        }
        headers.push((name, value));
    }
    Ok(headers)
}

/// Writes header blocks, each in its turn.
#[derive(Debug)]
pub(super) struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        // A stream that has not begun takes any dictionary; one without it would be refused by the first reader.
        let taken = compress.set_dictionary(&dictionary());
        debug_assert!(taken.is_ok(), "a dictionary before the first byte");
        Self(compress)
    }
}

impl Deflater {
    /// The next block.
    pub(super) fn write(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
        let mut plain = number(headers.len()).to_vec();
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend_from_slice(&number(text.len()));
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let begun = self.0.total_in();
        loop {
            let taken = usize::try_from(self.0.total_in() - begun).unwrap_or(usize::MAX);
            let rest = plain.get(taken..).unwrap_or_default();
            let written = self.0.compress_vec(rest, &mut block, FlushCompress::Sync);
            // Room left over: all of it is out, up to the mark that a flush ends with.
            if written.is_err() || block.len() < block.capacity() {
                return block;
            }
            block.reserve(64);
        }
    }
}
