//! The threads of one conversion:
//!
//! ```text
//!   blob chunks ──> [layer-inflate] ──> [caller: diff id, tar, layout] ──> [layer-write: write, sum]
//!                     bounded               bounded, buffers reused          bounded, buffers reused
//! ```

use std::{
    fs::File,
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use super::{ConvertError, Limits, Staged, decompress::Decoder, stage::stage};
use crate::{Digest, digest::Hasher};

/// Bytes per step, and how many steps may wait.
const PIECE: usize = 256 << 10;
const DEPTH: usize = 8;

/// Marks an `io::Error` of a blob reader whose producer gave up.
pub(crate) const CANCELLED: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// Reads a blob (compressed or not) to its end, checks that the uncompressed bytes have the digest `diff_id`, and lays out the layer.
pub(crate) fn stage_blob(
    blob: impl Read + Send + 'static,
    diff_id: &Digest,
    out: File,
    limits: &Limits,
) -> Result<Staged, ConvertError> {
    let taken = Arc::new(AtomicU64::new(0));
    let (filled, pieces) = sync_channel(DEPTH);
    let (give_back, empties) = sync_channel(DEPTH + 2);
    let inflate =
        Inflate { blob: Counted { inner: blob, count: taken.clone() }, taken, limits: limits.clone(), filled, empties };
    let thread = std::thread::Builder::new()
        .name("layer-inflate".into())
        .spawn(move || inflate.run())
        .map_err(|source| ConvertError::Converter { what: "start a thread for", source })?;
    let pieces =
        Pieces { pieces, give_back, current: Vec::new(), at: 0, end: 0, hasher: Hasher::new(diff_id.algorithm()) };
    let result = stage(pieces, out, limits).map(|(staged, mut rest)| {
        rest.drain();
        (staged, rest)
    });
    match result {
        Ok((staged, rest)) => {
            let Pieces { pieces, give_back, hasher, .. } = rest;
            drop((pieces, give_back));
            join(thread)?;
            let got = hasher.finish();
            if got != *diff_id {
                return Err(ConvertError::DiffId { want: diff_id.clone(), got });
            }
            Ok(staged)
        }
        // A stream that broke off looks like a short archive to the reader; the inflating side knows better. Its channel is closed by now.
        Err(error) => match join(thread) {
            Err(deeper) if matches!(error, ConvertError::Truncated { .. }) => Err(deeper),
            _ => Err(error),
        },
    }
}

fn join(thread: std::thread::JoinHandle<Result<(), ConvertError>>) -> Result<(), ConvertError> {
    thread.join().unwrap_or_else(|_| {
        let source = io::Error::other("the thread panicked");
        Err(ConvertError::Converter { what: "run", source })
    })
}

struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

struct Inflate<R> {
    blob: Counted<R>,
    taken: Arc<AtomicU64>,
    limits: Limits,
    /// A buffer, and how much of it counts.
    filled: SyncSender<(Vec<u8>, usize)>,
    empties: Receiver<Vec<u8>>,
}

impl<R: Read> Inflate<R> {
    fn run(self) -> Result<(), ConvertError> {
        let Self { blob, taken, limits, filled, empties } = self;
        let broken = |e: io::Error| match e.kind() {
            CANCELLED => ConvertError::Cancelled,
            _ => ConvertError::Decompress(e),
        };
        let mut decoder = Decoder::new(blob, &limits).map_err(broken)?;
        let mut total: u64 = 0;
        loop {
            let mut piece: Vec<u8> = empties.try_recv().unwrap_or_else(|_| vec![0; PIECE]);
            let n = read_most(&mut decoder, &mut piece).map_err(broken)?;
            total += n as u64;
            if total > limits.layer_bytes {
                return Err(ConvertError::Limit { what: "uncompressed bytes", limit: limits.layer_bytes });
            }
            if total > limits.ratio_from && total / limits.ratio > taken.load(Ordering::Relaxed) {
                return Err(ConvertError::Limit { what: "times compression", limit: limits.ratio });
            }
            let at_end = n < PIECE;
            // The other side stops early when it refuses the layer; then nobody wants to hear from us.
            if filled.send((piece, n)).is_err() {
                return Ok(());
            }
            if at_end {
                return match decoder.has_leftover().map_err(broken)? {
                    true => Err(ConvertError::Decompress(io::Error::other("bytes behind the compressed stream"))),
                    false => Ok(()),
                };
            }
        }
    }
}

fn read_most(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match input.read(&mut buf[n..]) {
            Ok(0) => break,
            Ok(got) => n += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

/// Uncompressed bytes as a reader, hashed as they pass.
struct Pieces {
    pieces: Receiver<(Vec<u8>, usize)>,
    give_back: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    end: usize,
    hasher: Hasher,
}

impl Pieces {
    /// Makes sure that there is something to read; false at the end.
    fn more(&mut self) -> bool {
        while self.at == self.end {
            let Ok((next, end)) = self.pieces.recv() else { return false };
            let used = std::mem::replace(&mut self.current, next);
            // No room for spares: let it go.
            if !used.is_empty() {
                let _ = self.give_back.try_send(used);
            }
            (self.at, self.end) = (0, end);
            self.hasher.update(&self.current[..end]);
        }
        true
    }

    fn drain(&mut self) {
        while self.more() {
            self.at = self.end;
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.more() {
            return Ok(0);
        }
        let n = buf.len().min(self.end - self.at);
        buf[..n].copy_from_slice(&self.current[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
