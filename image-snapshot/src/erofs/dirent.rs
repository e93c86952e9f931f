//! Directory blocks: fixed entries first, then their names, everything sorted by name.

use super::format::{BLOCK, DIRENT, put16, put64};

/// Splits sorted names into blocks: how many entries go into each, and how many bytes the last one has.
pub(super) struct Layout {
    counts: Vec<usize>,
    last: usize,
}

impl Layout {
    /// `lens` are the names' lengths in order.
    pub(super) fn new(lens: impl Iterator<Item = usize>) -> Self {
        let mut counts = Vec::new();
        let (mut count, mut used) = (0, 0);
        for len in lens {
            let need = DIRENT + len;
            if used + need > BLOCK {
                counts.push(count);
                (count, used) = (0, 0);
            }
            count += 1;
            used += need;
        }
        counts.push(count);
        Self { counts, last: used }
    }

    /// The directory's `i_size`.
    pub(super) fn size(&self) -> u64 {
        ((self.counts.len() - 1) * BLOCK + self.last) as u64
    }

    /// Bytes of directory data: whole blocks, then the last one as short as it is.
    pub(super) fn encode<'a>(&self, mut entries: impl Iterator<Item = (&'a [u8], u64, u8)>) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.counts.len() * BLOCK);
        for (i, count) in self.counts.iter().enumerate() {
            let start = out.len();
            out.resize(start + count * DIRENT, 0);
            for slot in 0..*count {
                let Some((name, nid, kind)) = entries.next() else { break };
                let name_at = out.len() - start;
                let at = start + slot * DIRENT;
                put64(&mut out, at, nid);
                put16(&mut out, at + 8, name_at as u16);
                out[at + 10] = kind;
                out.extend_from_slice(name);
            }
            if i + 1 < self.counts.len() {
                out.resize(start + BLOCK, 0);
            }
        }
        out
    }
}
