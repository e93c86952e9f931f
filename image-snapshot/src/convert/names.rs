//! Many short byte strings, in a few bytes each.

/// Bytes of a piece; no string is longer than what is left of one.
const PIECE: usize = 64 << 10;
/// Before each string, its length.
const HEAD: usize = 2;

/// One of the strings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name(u32);

/// The strings.
#[derive(Debug, Default)]
pub(super) struct Names {
    pieces: Vec<Vec<u8>>,
}

impl Names {
    /// Keeps a string: a component of a path, or a symbolic link's target (at most 4 KiB). The caller bounds their sum
    /// ([`Limits::all_path_bytes`](super::Limits)) below 4 GiB.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Name {
        let need = HEAD + bytes.len();
        if self.pieces.last().is_none_or(|piece| piece.len() + need > PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let index = self.pieces.len() - 1;
        let piece = &mut self.pieces[index];
        let at = piece.len();
        piece.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        piece.extend_from_slice(bytes);
        Name((index * PIECE + at) as u32)
    }

    pub(super) fn bytes(&self, name: Name) -> &[u8] {
        let (index, at) = (name.0 as usize / PIECE, name.0 as usize % PIECE);
        let piece = &self.pieces[index][at..];
        let len = usize::from(u16::from_le_bytes([piece[0], piece[1]]));
        &piece[HEAD..HEAD + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_come_back_across_pieces() {
        let mut names = Names::default();
        let strings: Vec<Vec<u8>> = (0..3000_usize).map(|i| vec![i as u8; i * 37 % 4096]).collect();
        let kept: Vec<Name> = strings.iter().map(|s| names.keep(s)).collect();
        assert!(names.pieces.len() > 50);
        for (name, want) in kept.iter().zip(&strings) {
            assert_eq!(names.bytes(*name), want);
        }
    }
}
