//! One 512-byte header: which field is where, in the formats v7, ustar, star and GNU.

/// A header whose checksum is right.
pub(super) struct Raw {
    block: [u8; 512],
}

/// The type of an entry, as its header says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Typeflag {
    /// NUL: a file, or with a trailing slash a directory.
    OldFile,
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
    GnuLongName,
    GnuLongLink,
    GnuSparse,
    PaxLocal,
    PaxGlobal,
    Other,
}

impl Raw {
    pub(super) fn parse(block: [u8; 512]) -> Result<Self, &'static str> {
        let want = number(&block[148..156])?;
        let sum = |signed: bool| -> i64 {
            let byte = |(i, b): (usize, &u8)| match i {
                148..156 => 32,
                _ if signed => i64::from(*b as i8),
                _ => i64::from(*b),
            };
            block.iter().enumerate().map(byte).sum()
        };
        // Some old programs summed signed bytes.
        if want != sum(false) && want != sum(true) {
            return Err("checksum is wrong");
        }
        let header = Self { block };
        header.check_numbers()?;
        Ok(header)
    }

    /// All numbers must parse, used or not: where one does not, Go refuses the archive, or takes another field for a name.
    fn check_numbers(&self) -> Result<(), &'static str> {
        for field in [100..108, 108..116, 116..124, 124..136, 136..148] {
            number(&self.block[field])?;
        }
        if self.is_ustar() || self.is_gnu() {
            number(&self.block[329..337])?;
            number(&self.block[337..345])?;
        }
        let more = match (self.is_gnu(), self.is_star()) {
            (true, _) => [345..357, 357..369],
            (false, true) => [476..488, 488..500],
            (false, false) => return Ok(()),
        };
        for field in more.into_iter().filter(|field| self.block[field.start] != 0) {
            number(&self.block[field])?;
        }
        Ok(())
    }

    fn is_ustar(&self) -> bool {
        &self.block[257..263] == b"ustar\0"
    }

    fn is_star(&self) -> bool {
        self.is_ustar() && &self.block[508..512] == b"tar\0"
    }

    fn is_gnu(&self) -> bool {
        &self.block[257..265] == b"ustar  \0"
    }

    pub(super) fn typeflag(&self) -> Typeflag {
        match self.block[156] {
            0 => Typeflag::OldFile,
            b'0' | b'7' => Typeflag::File,
            b'1' => Typeflag::HardLink,
            b'2' => Typeflag::Symlink,
            b'3' => Typeflag::Char,
            b'4' => Typeflag::Block,
            b'5' => Typeflag::Dir,
            b'6' => Typeflag::Fifo,
            b'L' => Typeflag::GnuLongName,
            b'K' => Typeflag::GnuLongLink,
            b'S' => Typeflag::GnuSparse,
            b'x' => Typeflag::PaxLocal,
            b'g' => Typeflag::PaxGlobal,
            _ => Typeflag::Other,
        }
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.block[..100]);
        let prefix = match (self.is_ustar(), self.is_star()) {
            (false, _) => &[][..],
            (true, false) => until_nul(&self.block[345..500]),
            (true, true) => until_nul(&self.block[345..476]),
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.block[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u64, &'static str> {
        unsigned(&self.block[100..108])
    }

    pub(super) fn uid(&self) -> Result<u64, &'static str> {
        unsigned(&self.block[108..116])
    }

    pub(super) fn gid(&self) -> Result<u64, &'static str> {
        unsigned(&self.block[116..124])
    }

    pub(super) fn size(&self) -> Result<u64, &'static str> {
        unsigned(&self.block[124..136])
    }

    pub(super) fn mtime(&self) -> Result<i64, &'static str> {
        number(&self.block[136..148])
    }

    pub(super) fn major(&self) -> Result<u64, &'static str> {
        self.device(329..337)
    }

    pub(super) fn minor(&self) -> Result<u64, &'static str> {
        self.device(337..345)
    }

    /// A header as POSIX has it: in others GNU tar does not look for the holes that PAX records speak of.
    pub(super) fn is_posix(&self) -> bool {
        self.is_ustar() && !self.is_star()
    }

    /// What GNU's own header says of a file with holes: where the first pieces of its data are, whether more such records follow, and its
    /// size with the holes. `None`: not a header of GNU's.
    pub(super) fn old_sparse(&self) -> Option<(&[u8], bool, Result<u64, &'static str>)> {
        self.is_gnu().then(|| (&self.block[386..482], self.block[482] != 0, unsigned(&self.block[483..495])))
    }

    fn device(&self, range: std::ops::Range<usize>) -> Result<u64, &'static str> {
        // v7 headers have no such fields.
        if self.is_ustar() || self.is_gnu() { unsigned(&self.block[range]) } else { Ok(0) }
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

fn unsigned(field: &[u8]) -> Result<u64, &'static str> {
    u64::try_from(number(field)?).map_err(|_| "negative number")
}

/// Octal text, or GNU's big-endian binary when the first bit is set.
pub(super) fn number(field: &[u8]) -> Result<i64, &'static str> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            // Two's complement; the marker bit is not part of it, the next one is the sign.
            let start = if first & 0x40 != 0 { -1 } else { 0 };
            let head = i128::from(first & 0x3f) | (if start < 0 { !0x3f } else { 0 });
            let mut value = head;
            for byte in &field[1..] {
                value = value.checked_mul(256).ok_or("number too large")? + i128::from(*byte);
            }
            i64::try_from(value).map_err(|_| "number too large")
        }
        _ => {
            let text = until_nul(field);
            let text = std::str::from_utf8(text).map_err(|_| "number is not octal")?.trim_matches(' ');
            if text.is_empty() {
                // Leading NULs, then digits: no writer does that.
                return if until_nul(field).len() == field.len() || field.iter().all(|b| matches!(b, 0 | b' ')) {
                    Ok(0)
                } else {
                    Err("number is not octal")
                };
            }
            if !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
                return Err("number is not octal");
            }
            i64::from_str_radix(text, 8).map_err(|_| "number too large")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        let table: [(&[u8], Result<i64, ()>); 12] = [
            (b"0000644\0", Ok(0o644)),
            (b" 644 \0\0\0", Ok(0o644)),
            (b"        ", Ok(0)),
            (b"\0\0\0\0\0\0\0\0", Ok(0)),
            (b"77777777777 ", Ok(0o777_7777_7777)),
            (b"\x80\0\0\0\0\0\0\x01", Ok(1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Ok(-1)),
            (b"\x80\0\0\0\x02\0\0\0\0\0\0\0", Ok(2 << 56)),
            (b"0000648\0", Err(())),
            (b"-000001\0", Err(())),
            (b"\x00\x006440\0\0", Err(())),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Err(())),
        ];
        for (field, want) in table {
            let got = number(field).map_err(|_| ());
            assert_eq!(got, want, "{field:?}");
        }
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_cksum();
        let mut block = *header.as_bytes();
        assert_eq!(Raw::parse(block).map_err(|_| ()).unwrap().path(), b"a");
        block[0] = b'b';
        assert!(Raw::parse(block).is_err());
    }
}
