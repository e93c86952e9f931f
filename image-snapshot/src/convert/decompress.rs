//! From a blob's bytes to a layer's bytes: which compression it is (by its first bytes, as every runtime does; media types lie), and how
//! much may come out.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

use super::Limits;

const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

type Head<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// Uncompressed view of a blob.
pub(super) enum Decoder<R: Read> {
    Plain(Head<R>),
    Gzip(Box<MultiGzDecoder<Head<R>>>),
    Zstd(Box<zstd::Decoder<'static, Head<R>>>),
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(mut input: R, limits: &Limits) -> io::Result<Self> {
        let mut head = vec![0; 4];
        let mut n = 0;
        while n < head.len() {
            match input.read(&mut head[n..]) {
                Ok(0) => break,
                Ok(got) => n += got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        head.truncate(n);
        let (is_gzip, is_zstd) = (head.starts_with(GZIP), head.starts_with(ZSTD) || is_skippable(&head));
        let input = BufReader::with_capacity(128 << 10, Cursor::new(head).chain(input));
        Ok(if is_gzip {
            Self::Gzip(Box::new(MultiGzDecoder::new(input)))
        } else if is_zstd {
            let mut decoder = zstd::Decoder::with_buffer(input)?;
            decoder.window_log_max(limits.zstd_window_log)?;
            Self::Zstd(Box::new(decoder))
        } else {
            Self::Plain(input)
        })
    }
}

/// zstd frames that only carry metadata (`zstd:chunked` and seekable formats) may come first.
fn is_skippable(head: &[u8]) -> bool {
    matches!(head, [b, 0x2a, 0x4d, 0x18] if b & 0xf0 == 0x50)
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(r) => r.read(buf),
            Self::Gzip(r) => r.read(buf),
            Self::Zstd(r) => r.read(buf),
        }
    }
}

impl<R: Read> Decoder<R> {
    /// Bytes that follow the compressed stream, if any are left: damage.
    pub(super) fn has_leftover(&mut self) -> io::Result<bool> {
        let rest = match self {
            Self::Plain(_) => return Ok(false),
            Self::Gzip(r) => r.get_mut().fill_buf()?,
            Self::Zstd(r) => r.get_mut().fill_buf()?,
        };
        Ok(!rest.is_empty())
    }
}
