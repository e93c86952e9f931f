//! One entry of a log file: `TIMESTAMP SP stdout|stderr SP F|P SP CONTENT LF`.

use super::Stream;
use super::timestamp;

/// Bytes that an entry has besides its content.
pub const OVERHEAD: usize = timestamp::LENGTH + " stdout F \n".len();

/// A parsed entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// RFC 3339 with nanoseconds.
    pub timestamp: &'a str,
    /// Whose output.
    pub stream: Stream,
    /// No line feed follows the content: the line goes on in the next entry of the stream, or the output ended.
    pub partial: bool,
    /// What the program wrote, without the line feed.
    pub content: &'a [u8],
}

/// Appends an entry.
pub fn append(out: &mut Vec<u8>, timestamp: &[u8], stream: Stream, partial: bool, head: &[u8], tail: &[u8]) {
    out.extend_from_slice(timestamp);
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(if partial { b" P " } else { b" F " });
    out.extend_from_slice(head);
    out.extend_from_slice(tail);
    out.push(b'\n');
}

/// Parses an entry, given without its line feed. `None`: it is none (a file that somebody else wrote).
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let timestamp = std::str::from_utf8(fields.next()?).ok().filter(|text| text.len() >= 20)?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are separated by colons; the first one says partial or full.
    let partial = match fields.next()?.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Entry { timestamp, stream, partial, content: fields.next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_entry_is_refused() {
        for line in [
            "",
            "x",
            "2026-11-21T04:10:11Z stdout",
            "2026-11-21T04:10:11Z stdin F x",
            "2026-11-21T04:10:11Z stdout Q x",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        let entry = parse(b"2026-11-21T04:10:11Z stdout F:tag a b").unwrap();
        assert_eq!((entry.partial, entry.content), (false, &b"a b"[..]));
    }

    proptest! {
        #[test]
        fn parsing_gives_back_what_was_appended(content in proptest::collection::vec(any::<u8>().prop_filter("line feed", |b| *b != b'\n'), 0..200),
                                               at: u64, partial: bool, stderr: bool) {
            let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
            let mut out = Vec::new();
            let mut formatter = timestamp::Formatter::default();
            let (head, tail) = content.split_at(content.len() / 2);
            append(&mut out, formatter.format(at / 4), stream, partial, head, tail);
            prop_assert_eq!(out.len(), OVERHEAD + content.len());
            let entry = parse(&out[..out.len() - 1]).unwrap();
            prop_assert_eq!((entry.stream, entry.partial, entry.content), (stream, partial, &content[..]));
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&noise);
        }
    }
}
