//! What a segment's bytes hold: the judgement that tells a torn tail from damage. Pure.

use agent_api::usage::UsageRecord;

use super::line::{self, Header, Line};

/// A segment's content.
#[derive(Debug)]
pub(super) struct Scan {
    /// `None`: the header is bad.
    pub(super) header: Option<Header>,
    /// The records that continue the chain, in order.
    pub(super) records: Vec<UsageRecord>,
    /// Offset behind the last of them.
    pub(super) end: u64,
    /// How it ends.
    pub(super) tail: Tail,
}

/// How a segment ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing but zeros, or what a newer segment has replaced.
    Clean,
    /// A write that never completed: `bytes` from the end on are not zero.
    Torn {
        /// Up to the last byte that is not zero.
        bytes: u64,
    },
    /// Bad, though something that was written later is there.
    Damaged {
        /// What is good behind the damage.
        rest: Vec<UsageRecord>,
    },
}

/// Where the chain stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    /// The last record's sequence number.
    pub(super) seq: u64,
    /// The last record's hash.
    pub(super) hash: String,
}

/// Reads a segment. `before`: the chain before it, when known (else the header's word is taken).
/// `until`: the first sequence number of the next segment, which decides from there on.
pub(super) fn scan(bytes: &[u8], before: Option<&Position>, until: Option<u64>) -> Scan {
    let mut lines = Lines { bytes, at: 0 };
    let header = lines.next().and_then(|(_, line)| line::decode_header(line));
    let start = match (&header, before) {
        (Some(header), Some(before)) if header.first_seq != before.seq + 1 || header.prev_hash != before.hash => None,
        (Some(header), _) => {
            header.first_seq.checked_sub(1).map(|seq| Position { seq, hash: header.prev_hash.clone() })
        }
        (None, before) => before.cloned(),
    };
    let mut scan = Scan { header, records: Vec::new(), end: lines.at as u64, tail: Tail::Clean };
    let Some(mut position) = start else {
        scan.tail = Tail::Damaged { rest: rest(Lines { bytes, at: lines.at }, until) };
        return scan;
    };
    if scan.header.is_none() {
        // Its name became visible only after the header was durable: never a torn write.
        scan.end = 0;
        scan.tail = Tail::Damaged { rest: rest(Lines { bytes, at: 0 }, until) };
        return scan;
    }
    loop {
        if until == Some(position.seq + 1) {
            return scan;
        }
        let at = lines.at;
        let next = lines.next().map(|(_, line)| line::decode_record(line));
        match next {
            Some(Some(Line { record, .. })) if record.check_follows(position.seq, &position.hash).is_ok() => {
                position = Position { seq: record.seq, hash: record.hash.clone() };
                scan.records.push(record);
                scan.end = lines.at as u64;
            }
            Some(Some(_)) => {
                // A whole line that does not continue the chain was not torn by a crash.
                scan.tail = Tail::Damaged { rest: rest(Lines { bytes, at }, until) };
                return scan;
            }
            Some(None) | None => {
                scan.tail = judge(bytes, at, position.seq, until);
                return scan;
            }
        }
    }
}

/// A bad line at `at`, after the good record `seq`.
fn judge(bytes: &[u8], at: usize, seq: u64, until: Option<u64>) -> Tail {
    let lines = || Lines { bytes, at };
    if until.is_some() || salvage(lines()).any(|line| line.batch > seq + 1) {
        return Tail::Damaged { rest: rest(lines(), until) };
    }
    match bytes[at..].iter().rposition(|&byte| byte != 0) {
        None => Tail::Clean,
        Some(last) => Tail::Torn { bytes: (at + last + 1) as u64 },
    }
}

fn rest(lines: Lines<'_>, until: Option<u64>) -> Vec<UsageRecord> {
    salvage(lines).map(|line| line.record).filter(|record| until.is_none_or(|until| record.seq < until)).collect()
}

/// Every good line, also one that stands behind a destroyed line feed.
fn salvage(lines: Lines<'_>) -> impl Iterator<Item = Line> {
    lines.filter_map(|(_, text)| {
        line::decode_record(text).or_else(|| line::starts(text).find_map(|start| line::decode_record(&text[start..])))
    })
}

/// Lines that end with a line feed, with their offsets.
pub(super) struct Lines<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..)?;
        let length = rest.iter().position(|&byte| byte == b'\n')?;
        let start = self.at;
        self.at += length + 1;
        Some((start, &rest[..length]))
    }
}
