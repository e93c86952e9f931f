//! Files with holes, as GNU tar writes them: in the old header of its own, and by PAX records of versions 0.0, 0.1 and 1.0.

use super::tar_header::number;

/// Pieces of data of one file: each takes some twenty bytes of an archive.
const MAX_PIECES: usize = 1 << 20;

/// Where the data of a file lies; the rest is holes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// Offset and length, in order, apart from each other.
    pieces: Vec<(u64, u64)>,
    size: u64,
    /// The piece that is being read or comes next, and how far the file is read.
    current: usize,
    at: u64,
}

/// What comes next in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    Data(u64),
    Hole(u64),
}

impl Map {
    /// `stored`: how many bytes of data the archive has.
    pub(super) fn new(mut pieces: Vec<(u64, u64)>, size: u64, stored: u64) -> Result<Self, &'static str> {
        let (mut end, mut sum) = (0_u64, 0_u64);
        for (at, len) in &pieces {
            if *at < end {
                return Err("pieces of a sparse file overlap");
            }
            end = at.checked_add(*len).filter(|end| *end <= size).ok_or("piece of a sparse file lies outside")?;
            sum += len;
        }
        if sum != stored {
            return Err("sparse file has other data than its map says");
        }
        pieces.retain(|(_, len)| *len > 0);
        Ok(Self { pieces, size, current: 0, at: 0 })
    }

    /// The file's size, holes and all.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What comes next; `None` at the end.
    pub(super) fn next(&self) -> Option<Run> {
        match self.pieces.get(self.current) {
            Some((start, len)) if self.at >= *start => Some(Run::Data(start + len - self.at)),
            Some((start, _)) => Some(Run::Hole(start - self.at)),
            None => (self.at < self.size).then(|| Run::Hole(self.size - self.at)),
        }
    }

    /// Goes on by some bytes of what comes next.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.at += bytes;
        if self.pieces.get(self.current).is_some_and(|(start, len)| self.at >= start + len) {
            self.current += 1;
        }
    }
}

/// PAX records `GNU.sparse.…` of one entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    major: Option<u64>,
    minor: Option<u64>,
    /// The file's own name: the header's is made up.
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    count: Option<u64>,
    /// Offsets and lengths in turn.
    numbers: Vec<u64>,
}

/// Where the map of an entry is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the records.
    Records { pieces: Vec<(u64, u64)>, size: u64 },
    /// Before the data.
    Data { size: u64 },
}

impl Records {
    /// Takes the record `GNU.sparse.KEY`. `None`: the value does not parse.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let number = || decimal(value);
        match key {
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"size" | b"realsize" => {
                let size = number()?;
                if self.size.is_some_and(|other| other != size) {
                    return None;
                }
                self.size = Some(size);
            }
            b"numblocks" => self.count = Some(number()?),
            b"offset" | b"numbytes" => {
                let is_length = self.numbers.len() % 2 == 1;
                if is_length != (key == b"numbytes") {
                    return None;
                }
                self.numbers.push(number()?);
            }
            b"map" if !self.numbers.is_empty() => return None,
            b"map" if value.is_empty() => {}
            b"map" => self.numbers = value.split(|b| *b == b',').map(decimal).collect::<Option<_>>()?,
            _ => return None,
        }
        Some(())
    }

    /// Where the map is.
    pub(super) fn place(&self) -> Result<Place, &'static str> {
        let size = self.size.ok_or("sparse file without a size")?;
        match (self.major.unwrap_or(0), self.minor.unwrap_or(0)) {
            (1, 0) if self.numbers.is_empty() => Ok(Place::Data { size }),
            (0, 0 | 1) => {
                let (pieces, rest) = self.numbers.as_chunks::<2>();
                if !rest.is_empty() || self.count.is_none_or(|count| count != pieces.len() as u64) {
                    return Err("sparse file has another map than it says");
                }
                Ok(Place::Records { pieces: pieces.iter().map(|[at, len]| (*at, *len)).collect(), size })
            }
            _ => Err("unknown version of sparse files"),
        }
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

/// The map of version 1.0, which comes before the data: lines of digits, in whole records.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    count: Option<usize>,
    numbers: Vec<u64>,
}

impl Lines {
    /// Takes a record; true: it was the last.
    pub(super) fn take(&mut self, record: &[u8]) -> Result<bool, &'static str> {
        for byte in record {
            if self.is_whole() {
                break;
            }
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return Err("map of a sparse file does not parse");
                }
                continue;
            }
            let number = decimal(&std::mem::take(&mut self.line)).ok_or("map of a sparse file does not parse")?;
            match self.count {
                Some(_) => self.numbers.push(number),
                None => {
                    let count = usize::try_from(number).ok().filter(|n| *n <= MAX_PIECES);
                    self.count = Some(count.ok_or("sparse file has too many pieces")?);
                }
            }
        }
        Ok(self.is_whole())
    }

    fn is_whole(&self) -> bool {
        self.count.is_some_and(|count| self.numbers.len() == 2 * count)
    }

    pub(super) fn pieces(&self) -> Vec<(u64, u64)> {
        self.numbers.as_chunks::<2>().0.iter().map(|[at, len]| (*at, *len)).collect()
    }
}

/// Takes the pieces that the old format has in `fields`, 24 bytes each; those behind an empty one do not count.
pub(super) fn old_pieces(fields: &[u8], pieces: &mut Vec<(u64, u64)>) -> Result<(), &'static str> {
    for field in fields.as_chunks::<24>().0 {
        if field[0] == 0 {
            return Ok(());
        }
        let [at, len] = [&field[..12], &field[12..]].map(|f| number(f).ok().and_then(|n| u64::try_from(n).ok()));
        let (Some(at), Some(len)) = (at, len) else { return Err("map of a sparse file does not parse") };
        if pieces.len() == MAX_PIECES {
            return Err("sparse file has too many pieces");
        }
        pieces.push((at, len));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn maps_must_be_in_order_inside_the_file_and_as_long_as_the_data() {
        assert!(Map::new(vec![(0, 5), (5, 1), (10, 0)], 10, 6).is_ok());
        for (pieces, size, stored) in [
            (vec![(5, 5), (0, 5)], 10, 10),
            (vec![(0, 6), (5, 5)], 10, 11),
            (vec![(5, 6)], 10, 6),
            (vec![(u64::MAX, 2)], 10, 2),
            (vec![(0, 5)], 10, 4),
            (vec![], 10, 1),
        ] {
            assert!(Map::new(pieces.clone(), size, stored).is_err(), "{pieces:?}");
        }
    }

    #[test]
    fn version_one_maps_end_where_their_count_says() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"2\n0\n5\n1"), Ok(false));
        assert_eq!(lines.take(b"0\n7\njunk"), Ok(true));
        assert_eq!(lines.pieces(), [(0, 5), (10, 7)]);
        assert!(Lines::default().take(b"x\n").is_err());
        assert!(Lines::default().take(b"\n").is_err());
        assert!(Lines::default().take(&[b'1'; 30]).is_err());
        assert!(Lines::default().take(b"99999999\n").is_err());
    }

    proptest! {
        /// Data and holes in turn give the file's size, and as much data as is stored.
        #[test]
        fn runs_add_up(parts in prop::collection::vec((0..50_u64, 0..50_u64), 0..8), behind in 0..50_u64, step in 1..30_u64) {
            let (mut at, mut stored, mut pieces) = (0, 0, Vec::new());
            for (gap, len) in parts {
                pieces.push((at + gap, len));
                at += gap + len;
                stored += len;
            }
            let mut map = Map::new(pieces, at + behind, stored).unwrap();
            let (mut data, mut holes) = (0, 0);
            while let Some(run) = map.next() {
                let (sum, len) = match run {
                    Run::Data(len) => (&mut data, len),
                    Run::Hole(len) => (&mut holes, len),
                };
                prop_assert!(len > 0);
                let n = len.min(step);
                *sum += n;
                map.advance(n);
            }
            prop_assert_eq!((data, data + holes), (stored, at + behind));
        }
    }
}
