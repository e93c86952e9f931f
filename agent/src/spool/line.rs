//! One line of a segment, as text and back. Pure.

use agent_api::usage::UsageRecord;
use serde::{Deserialize, Serialize};

/// The first line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Layout version of the segment.
    pub(super) schema: u32,
    pub(super) host: String,
    pub(super) boot_id: String,
    /// The segment's number within its boot.
    pub(super) index: u64,
    /// The sequence number of its first record.
    pub(super) first_seq: u64,
    /// The hash of the record before that.
    pub(super) prev_hash: String,
}

/// A record and the batch that it was written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The first sequence number of the batch.
    pub(super) batch: u64,
    pub(super) record: UsageRecord,
}

pub(super) fn encode_header(header: &Header) -> Vec<u8> {
    let json = serde_json::to_string(header).expect("a header of plain fields serialises");
    checked(format!("header {json}\n").as_bytes())
}

pub(super) fn encode_record(batch: u64, record: &UsageRecord, out: &mut Vec<u8>) {
    let mut rest = format!("{batch} ").into_bytes();
    rest.extend_from_slice(&record.encode());
    rest.push(b'\n');
    out.extend_from_slice(&checked(&rest));
}

/// `bytes` without the line feed.
pub(super) fn decode_header(bytes: &[u8]) -> Option<Header> {
    serde_json::from_slice(check(bytes)?.strip_prefix(b"header ")?).ok()
}

/// `bytes` without the line feed.
pub(super) fn decode_record(bytes: &[u8]) -> Option<Line> {
    let rest = check(bytes)?;
    let space = rest.iter().position(|&byte| byte == b' ')?;
    let batch = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
    let record = UsageRecord::decode(&rest[space + 1..]).ok()?;
    Some(Line { batch, record })
}

/// Where a record's line may begin within text that is not one.
pub(super) fn starts(text: &[u8]) -> impl Iterator<Item = usize> {
    // Eight digits of the sum, a space, the batch.
    text.windows(10).enumerate().filter_map(|(at, window)| {
        let sum = window[..8].iter().all(u8::is_ascii_hexdigit);
        (sum && window[8] == b' ' && window[9].is_ascii_digit()).then_some(at)
    })
}

/// The canonical JSON within a line that [`decode_record`] accepts.
pub(super) fn json_of(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|&byte| byte == b'{').unwrap_or(bytes.len());
    &bytes[start..]
}

/// `rest` ends with its line feed, which the sum covers too.
fn checked(rest: &[u8]) -> Vec<u8> {
    let mut line = format!("{:08x} ", crc32fast::hash(rest)).into_bytes();
    line.extend_from_slice(rest);
    line
}

fn check(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, rest) = bytes.split_at_checked(9)?;
    let sum = sum.strip_suffix(b" ")?;
    // Lower-case digits only, so that there is one spelling.
    if !sum.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let expected = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(rest);
    hasher.update(b"\n");
    (hasher.finalize() == expected).then_some(rest)
}
