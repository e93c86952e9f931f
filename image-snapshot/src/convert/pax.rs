//! PAX extended headers: `length key=value\n`, counted by length, since values are binary and may hold newlines.

use super::sparse::Records;
use crate::erofs::xattr::Xattrs;

/// What we take from one PAX header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Xattrs,
    /// The file has holes.
    pub(super) sparse: Option<Records>,
}

impl Pax {
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, &'static str> {
        let mut out = Self::default();
        while !body.is_empty() {
            let (key, value, rest) = record(body).ok_or("PAX header does not parse")?;
            body = rest;
            out.set(key, value).ok_or("value in a PAX header does not parse")?;
        }
        Ok(out)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = || std::str::from_utf8(value).ok();
        // An empty value takes an earlier record back.
        let number = || if value.is_empty() { Some(None) } else { text()?.parse().ok().map(Some) };
        let is_name = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
        if key.contains(&0) || (is_name && value.contains(&0)) {
            return None;
        }
        match key {
            b"path" => self.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => self.link = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            // Of no use here; where they do not parse, Go refuses the archive.
            b"atime" | b"ctime" if !value.is_empty() => _ = time(text()?)?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(text()?)?) },
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().set(key, value)?;
                }
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Some(())
    }

    /// Whether it says anything about an entry.
    pub(super) fn speaks(&self) -> bool {
        *self != Self::default()
    }

    pub(super) fn xattr_bytes(&self) -> usize {
        self.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum()
    }
}

/// Key, value, and what follows.
fn record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().take(20).position(|b| *b == b' ')?;
    let digits = &body[..space];
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let len: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let text = body.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|b| *b == b'=')?;
    (equals > 0).then(|| (&text[..equals], &text[equals + 1..], &body[len..]))
}

/// `seconds[.fraction]`, maybe negative. Digits behind the ninth are cut off.
fn time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_may_be_binary_and_hold_newlines() {
        let pax = Pax::parse(b"12 path=a\nb\n27 SCHILY.xattr.user.k=\0\n\xff\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(pax.xattrs.get(&b"user.k"[..]).map(Vec::as_slice), Some(&b"\0\n\xff"[..]));
    }

    #[test]
    fn lengths_must_be_right() {
        for bad in
            [&b"8 path=a\n"[..], b"13 path=a\nb\n", b"x path=a\n", b"10 path=ab\n", b"+1 a=b\n", b"5 a=b", b"6 =bc\n"]
        {
            assert!(Pax::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn times_have_nanoseconds_and_may_be_before_the_epoch() {
        let table = [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("x", None),
            ("1.x", None),
            ("", None),
        ];
        for (text, want) in table {
            assert_eq!(time(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(body in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Pax::parse(&body);
        }

        #[test]
        fn near_records_never_panic(body in "([0-9]{1,3} (path|size|mtime|x)=[0-9a.\\n-]{0,5}\\n?){0,4}") {
            let _ = Pax::parse(body.as_bytes());
        }
    }
}
