//! Memory that direct I/O takes.

use std::ops::{Deref, DerefMut};

use super::CHUNK;

/// What devices ask for at most: a page.
pub(super) const ALIGNMENT: usize = 4096;

/// A chunk's bytes, at an address that is a multiple of [`ALIGNMENT`].
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// Where in `bytes` that is.
    from: usize,
}

impl Buffer {
    /// Zeros.
    pub(super) fn new() -> Self {
        let bytes = vec![0; CHUNK + ALIGNMENT];
        // Bytes never move: the vector does not grow.
        let from = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, from }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..self.from + CHUNK]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_whole_chunks_at_a_pages_begin() {
        for _ in 0..20 {
            let buffer = Buffer::new();
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % ALIGNMENT), (CHUNK, 0));
        }
    }
}
