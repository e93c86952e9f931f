//! Directory blocks: fixed entries first, then their names, everything sorted by name.

use super::format::{BLOCK, DIRENT, put16, put64};

/// A directory's `i_size`: whole blocks, and a last one as short as it is. `lens` are the names' lengths in order.
pub(super) fn size(lens: impl Iterator<Item = usize>) -> u64 {
    let (mut whole, mut used) = (0, 0);
    for len in lens {
        let need = DIRENT + len;
        if used + need > BLOCK {
            whole += BLOCK as u64;
            used = 0;
        }
        used += need;
    }
    whole + used as u64
}

/// Packs sorted entries into blocks.
#[derive(Debug, Default)]
pub(super) struct Packer {
    /// Number, `d_type` and length of the name.
    entries: Vec<(u64, u8, u8)>,
    names: Vec<u8>,
}

impl Packer {
    /// Takes an entry, and gives out a whole block that has no room for it, if so.
    pub(super) fn push(&mut self, name: &[u8], nid: u64, kind: u8) -> Option<Vec<u8>> {
        let is_full = self.entries.len() * DIRENT + self.names.len() + DIRENT + name.len() > BLOCK;
        let block = is_full.then(|| {
            let mut block = self.take();
            block.resize(BLOCK, 0);
            block
        });
        self.entries.push((nid, kind, name.len() as u8));
        self.names.extend_from_slice(name);
        block
    }

    /// The last block.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let mut out = vec![0; self.entries.len() * DIRENT];
        let mut name_at = out.len();
        for (slot, (nid, kind, len)) in self.entries.drain(..).enumerate() {
            let at = slot * DIRENT;
            put64(&mut out, at, nid);
            put16(&mut out, at + 8, name_at as u16);
            out[at + 10] = kind;
            name_at += usize::from(len);
        }
        out.append(&mut self.names);
        out
    }
}
