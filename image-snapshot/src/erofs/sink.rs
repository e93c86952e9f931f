//! The output file: written front to back in chunks, each summed as it goes, on a thread of its own.
//!
//! Chunks go around the page cache where the file system can: a start reads few of an image's pages, and what is in the cache
//! for others stays there. Nor is there anything left to wait for when the file is synced.

mod buffer;
mod output;

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use self::{buffer::Buffer, output::Output};
use super::format::BLOCK;
use crate::convert::ConvertError;

/// Bytes written at once, and summed as one.
pub(crate) const CHUNK: usize = 1 << 20;
static ZEROS: [u8; CHUNK] = [0; CHUNK];
/// Chunks on their way to the disk.
const DEPTH: usize = 2;
/// Chunks in all: on their way, being written, being filled, and the first.
const BUFFERS: usize = DEPTH + 3;

/// What a layer file must look like: SHA-256 over its length and the CRC-32 of each of its 1 MiB chunks. Finds rot and torn writes (chunks may
/// be summed out of order, and at memory speed); it is no defence against malice, which could change the record as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest(String);

impl FileDigest {
    fn of_chunks(len: u64, chunks: &[u32]) -> Self {
        let mut all = Sha256::new();
        all.update(len.to_le_bytes());
        for chunk in chunks {
            all.update(chunk.to_le_bytes());
        }
        Self(hex::encode(all.finalize()))
    }

    /// Reads the whole file.
    pub(crate) fn of_file(file: &File) -> io::Result<Self> {
        let mut buf = vec![0; CHUNK];
        let mut chunks = Vec::new();
        let mut at = 0;
        loop {
            let n = read_full_at(file, &mut buf, at)?;
            if n > 0 {
                chunks.push(crc32fast::hash(&buf[..n]));
            }
            if n < CHUNK {
                return Ok(Self::of_chunks(at + n as u64, &chunks));
            }
            at += n as u64;
        }
    }
}

fn read_full_at(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match file.read_at(&mut buf[n..], at + n as u64) {
            Ok(0) => break,
            Ok(got) => n += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

enum Order {
    /// A whole chunk (only the last may be short).
    Chunk { at: u64, len: usize, bytes: Buffer },
    /// A change to something written before.
    Patch { at: u64, bytes: Vec<u8> },
}

/// Sequential writer of whole blocks, with corrections.
#[derive(Debug)]
pub(super) struct Sink {
    orders: SyncSender<Order>,
    empties: Receiver<Buffer>,
    /// Gone once its error has been told.
    thread: Option<JoinHandle<io::Result<Vec<u32>>>>,
    /// The first chunk stays here: the superblock comes last.
    first: Option<Buffer>,
    /// A whole chunk, of which `used` bytes are filled.
    current: Buffer,
    used: usize,
    /// Offset of `current` in the file.
    base: u64,
    /// Buffers that are about; when there are enough, the next one is waited for.
    made: usize,
}

impl Sink {
    /// Begins with one zero block, the place of superblock and root.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let (orders, inbox) = sync_channel(DEPTH);
        let (give_back, empties) = sync_channel(BUFFERS);
        let thread = std::thread::Builder::new()
            .name("layer-write".into())
            .spawn(move || write_loop(&file, &inbox, &give_back))?;
        let current = Buffer::new();
        Ok(Self { orders, empties, thread: Some(thread), first: None, current, used: BLOCK, base: 0, made: 1 })
    }

    /// Offset of the next byte.
    pub(super) fn position(&self) -> u64 {
        self.base + self.used as u64
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(CHUNK - self.used);
            self.current[self.used..self.used + n].copy_from_slice(&bytes[..n]);
            self.used += n;
            bytes = &bytes[n..];
            self.turn_over()?;
        }
        Ok(())
    }

    /// Appends `len` bytes that `read` puts straight into the chunk.
    pub(super) fn fill(
        &mut self,
        mut len: u64,
        mut read: impl FnMut(&mut [u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        while len > 0 {
            let n = len.min((CHUNK - self.used) as u64) as usize;
            read(&mut self.current[self.used..self.used + n])?;
            self.used += n;
            len -= n as u64;
            self.turn_over().map_err(ConvertError::Write)?;
        }
        Ok(())
    }

    /// Fills whole blocks up to the next multiple of a block with zeros.
    pub(super) fn pad(&mut self) -> io::Result<()> {
        let end = self.used.next_multiple_of(BLOCK);
        self.current[self.used..end].fill(0);
        self.used = end;
        self.turn_over()
    }

    /// Changes bytes behind the position.
    pub(super) fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let held = match (&mut self.first, at) {
            (Some(first), at) if at < CHUNK as u64 => Some((first, at)),
            (_, at) if at >= self.base => Some((&mut self.current, at - self.base)),
            _ => None,
        };
        match held {
            Some((buffer, at)) => {
                let at = at as usize;
                buffer[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            None => self.send(Order::Patch { at, bytes: bytes.to_vec() }),
        }
    }

    fn turn_over(&mut self) -> io::Result<()> {
        if self.used < CHUNK {
            return Ok(());
        }
        let spare = match self.empties.try_recv() {
            Err(_) if self.made < BUFFERS => None,
            // The thread may have died; then sending tells why.
            Err(_) => self.empties.recv().ok(),
            Ok(spare) => Some(spare),
        };
        let fresh = spare.unwrap_or_else(|| {
            self.made += 1;
            Buffer::new()
        });
        let full = std::mem::replace(&mut self.current, fresh);
        let at = self.base;
        self.base += CHUNK as u64;
        self.used = 0;
        if at == 0 {
            self.first = Some(full);
            return Ok(());
        }
        self.send(Order::Chunk { at, len: CHUNK, bytes: full })
    }

    fn send(&mut self, order: Order) -> io::Result<()> {
        if self.orders.send(order).is_ok() {
            return Ok(());
        }
        // The thread ends early only with an error.
        match join(self.thread.take()) {
            Ok(_) => Err(io::Error::other("the writing thread has stopped")),
            Err(e) => Err(e),
        }
    }

    /// Writes what is left and waits. On any earlier failure the thread's own error comes out here.
    pub(super) fn finish(self) -> io::Result<(u64, FileDigest)> {
        let Self { orders, thread, first, current, used, base, .. } = self;
        let end = base + used as u64;
        let rest = [(first, CHUNK, 0), (Some(current), used, base)];
        for (bytes, len, at) in rest {
            if let Some(bytes) = bytes.filter(|_| len > 0) {
                // A failed send means that the thread's error is waiting below.
                let _ = orders.send(Order::Chunk { at, len, bytes });
            }
        }
        drop(orders);
        let chunks = join(thread)?;
        Ok((end, FileDigest::of_chunks(end, &chunks)))
    }
}

fn join(thread: Option<JoinHandle<io::Result<Vec<u32>>>>) -> io::Result<Vec<u32>> {
    match thread.map(JoinHandle::join) {
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(io::Error::other("the writing thread panicked")),
        None => Err(io::Error::other("the writing thread has stopped")),
    }
}

fn write_loop(file: &File, inbox: &Receiver<Order>, give_back: &SyncSender<Buffer>) -> io::Result<Vec<u32>> {
    let mut output = Output::new(file);
    let mut chunks: Vec<u32> = Vec::new();
    let mut dirty = std::collections::BTreeSet::new();
    let (mut written, mut left_out) = (0, 0);
    while let Ok(order) = inbox.recv() {
        match order {
            Order::Chunk { at, len, bytes } => {
                // Zeros are left out: the file has a hole there.
                let end = at + len as u64;
                if bytes[..len] == ZEROS[..len] {
                    left_out = left_out.max(end);
                } else {
                    output.chunk(&bytes[..len], at)?;
                    written = written.max(end);
                }
                let index = (at / CHUNK as u64) as usize;
                if chunks.len() <= index {
                    chunks.resize(index + 1, 0);
                }
                chunks[index] = crc32fast::hash(&bytes[..len]);
                // Nobody waiting for a buffer is fine.
                let _ = give_back.try_send(bytes);
            }
            Order::Patch { at, bytes } => {
                output.patch(&bytes, at)?;
                let last = at + bytes.len().saturating_sub(1) as u64;
                dirty.extend(at / CHUNK as u64..=last / CHUNK as u64);
            }
        }
    }
    output.plain()?;
    if left_out > written {
        file.set_len(left_out)?;
    }
    let mut buf = vec![0; if dirty.is_empty() { 0 } else { CHUNK }];
    for index in dirty {
        let n = read_full_at(file, &mut buf, index * CHUNK as u64)?;
        if let Some(chunk) = chunks.get_mut(index as usize) {
            *chunk = crc32fast::hash(&buf[..n]);
        }
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_what_was_written_is_the_digest_of_the_file() {
        for len in [0, 1, CHUNK - BLOCK, 3 * CHUNK + 17] {
            let file = tempfile::tempfile().unwrap();
            let mut sink = Sink::new(file.try_clone().unwrap()).unwrap();
            sink.write(&vec![7; len]).unwrap();
            sink.pad().unwrap();
            sink.patch(10, b"head").unwrap();
            let early = sink.position().min(CHUNK as u64 + 5).saturating_sub(4);
            sink.patch(early, b"late").unwrap();
            let (end, digest) = sink.finish().unwrap();
            assert_eq!(end, file.metadata().unwrap().len());
            assert_eq!(digest, FileDigest::of_file(&file).unwrap(), "{len}");
            let mut got = [0; 4];
            file.read_exact_at(&mut got, early).unwrap();
            assert_eq!(&got, b"late");
            file.write_all_at(b"x", end - 1).unwrap();
            assert_ne!(digest, FileDigest::of_file(&file).unwrap());
        }
    }

    #[test]
    fn zeros_at_the_end_are_a_hole_that_counts() {
        let file = tempfile::tempfile().unwrap();
        let mut sink = Sink::new(file.try_clone().unwrap()).unwrap();
        sink.write(&vec![7; CHUNK]).unwrap();
        sink.write(&vec![0; 2 * CHUNK]).unwrap();
        let (end, digest) = sink.finish().unwrap();
        assert_eq!(end, file.metadata().unwrap().len());
        assert_eq!(digest, FileDigest::of_file(&file).unwrap());
    }

    #[test]
    fn a_disk_error_comes_out_as_it_was() {
        let read_only = File::open("/proc/self/exe").unwrap();
        let mut sink = Sink::new(read_only).unwrap();
        let error = match (0..10).try_for_each(|_| sink.write(&vec![1; CHUNK])) {
            Err(e) => e,
            Ok(()) => sink.finish().unwrap_err(),
        };
        assert_eq!(error.raw_os_error(), Some(9), "EBADF, not our own words");
    }
}
