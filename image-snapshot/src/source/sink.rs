//! A blob on its way from a source (async) to a converter (blocking), checked as it passes.

use std::{
    io::{self, BufRead, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::SourceError;
use crate::{Digest, convert::CANCELLED, digest::Hasher, manifest::Descriptor};

/// Bytes handed over at once, and how many such pieces may wait.
const PIECE: usize = 128 << 10;
const DEPTH: usize = 8;
/// When the converter refuses a layer, up to this much more is still taken in, to learn whether the bytes were the right ones at all.
const DRAIN: u64 = 16 << 20;

/// The source's end. Dropped without [`BlobSink::finish`], the reader fails.
pub(crate) struct BlobSink {
    /// `None` within: the end.
    pieces: mpsc::Sender<Option<Bytes>>,
    pending: BytesMut,
    hasher: Hasher,
    want: Digest,
    size: u64,
    received: u64,
    count: Arc<AtomicU64>,
}

/// The converter's end.
pub(crate) struct BlobReader {
    pieces: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

/// A way for one blob; `count` is told the bytes that came in.
pub(crate) fn channel(descriptor: &Descriptor, count: Arc<AtomicU64>) -> (BlobSink, BlobReader) {
    let (sender, receiver) = mpsc::channel(DEPTH);
    let sink = BlobSink {
        pieces: sender,
        pending: BytesMut::new(),
        hasher: Hasher::new(descriptor.digest.algorithm()),
        want: descriptor.digest.clone(),
        size: descriptor.size,
        received: 0,
        count,
    };
    (sink, BlobReader { pieces: receiver, current: Bytes::new(), ended: false })
}

impl BlobSink {
    /// Bytes taken in so far: where to go on after a cut.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Takes the next bytes. `what` names the request in errors.
    pub(crate) async fn push(&mut self, what: &str, bytes: Bytes) -> Result<(), SourceError> {
        self.received += bytes.len() as u64;
        if self.received > self.size {
            return Err(SourceError::TooLarge { what: what.to_owned(), limit: self.size });
        }
        self.count.store(self.received, Ordering::Relaxed);
        self.hasher.update(&bytes);
        if self.pending.is_empty() && bytes.len() >= PIECE {
            return self.send(what, bytes).await;
        }
        self.pending.extend_from_slice(&bytes);
        if self.pending.len() >= PIECE {
            let piece = self.pending.split().freeze();
            return self.send(what, piece).await;
        }
        Ok(())
    }

    async fn send(&mut self, what: &str, bytes: Bytes) -> Result<(), SourceError> {
        match self.pieces.send(Some(bytes)).await {
            Ok(()) => Ok(()),
            Err(_) if self.size - self.received <= DRAIN => Ok(()),
            Err(_) => Err(SourceError::Abandoned { what: what.to_owned() }),
        }
    }

    /// All bytes came: checks them, and only then lets the reader see the end.
    pub(crate) async fn finish(mut self, what: &str) -> Result<(), SourceError> {
        if self.received < self.size {
            return Err(SourceError::Truncated { what: what.to_owned(), got: self.received, want: self.size });
        }
        let got = self.hasher.clone().finish();
        if got != self.want {
            return Err(SourceError::DigestMismatch { what: what.to_owned(), want: self.want, got });
        }
        let rest = self.pending.split().freeze();
        self.send(what, rest).await?;
        // The reader may have gone, refusing the layer; that is told elsewhere.
        let _ = self.pieces.send(None).await;
        Ok(())
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Some(bytes)) => self.current = bytes,
                Some(None) => self.ended = true,
                None => return Err(CANCELLED.into()),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, n: usize) {
        self.current.advance(n);
    }
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.len().min(buf.len());
        self.current.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(bytes: &[u8]) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: None,
        }
    }

    async fn pass(descriptor: &Descriptor, chunks: &[&[u8]]) -> (Result<(), SourceError>, io::Result<Vec<u8>>) {
        let (mut sink, mut reader) = channel(descriptor, Arc::default());
        let reading = tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            reader.read_to_end(&mut out).map(|_| out)
        });
        let writing = async {
            for chunk in chunks {
                sink.push("it", Bytes::copy_from_slice(chunk)).await?;
            }
            sink.finish("it").await
        };
        let written = writing.await;
        (written, reading.await.unwrap())
    }

    #[tokio::test]
    async fn the_end_is_seen_only_when_size_and_digest_are_right() {
        let whole = vec![5; 300_000];
        let d = blob(&whole);
        let (w, r) = pass(&d, &[&whole[..10], &whole[10..200_000], &whole[200_000..]]).await;
        assert!(w.is_ok());
        assert_eq!(r.unwrap(), whole);
        let (w, r) = pass(&d, &[&whole[1..]]).await;
        assert!(matches!(w, Err(SourceError::Truncated { got: 299_999, .. })) && r.is_err());
        let (w, r) = pass(&d, &[&whole, b"x"]).await;
        assert!(matches!(w, Err(SourceError::TooLarge { .. })) && r.is_err());
        let (w, r) = pass(&d, &[&[6; 300_000]]).await;
        assert!(matches!(w, Err(SourceError::DigestMismatch { .. })) && r.is_err());
    }

    #[tokio::test]
    async fn after_a_refusal_a_small_rest_is_still_checked_and_a_big_one_is_left() {
        let whole = vec![5; 400_000];
        let (mut sink, reader) = channel(&blob(&whole), Arc::default());
        drop(reader);
        sink.push("it", Bytes::from(vec![6; 400_000])).await.unwrap();
        assert!(matches!(sink.finish("it").await, Err(SourceError::DigestMismatch { .. })));
        let big = Descriptor { size: 1 << 30, ..blob(&whole) };
        let (mut sink, reader) = channel(&big, Arc::default());
        drop(reader);
        assert!(matches!(sink.push("it", Bytes::from(whole)).await, Err(SourceError::Abandoned { .. })));
    }
}
