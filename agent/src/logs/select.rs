//! Which entries are shown, and how. Pure.

use std::collections::VecDeque;

use jiff::Timestamp;
use sandbox::shim::log::{Entry, Stream};

/// What a reader asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Only entries at or after this time, nanoseconds since 1970.
    pub since_ns: Option<i64>,
    /// At most this many bytes.
    pub limit: Option<u64>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// One stream only.
    pub stream: Option<Stream>,
}

/// Turns entries into bytes. First the existing part: [`Selector::take`], then [`Selector::finish_tail`]; what comes later is
/// given by `take` at once.
#[derive(Debug)]
pub struct Selector {
    selection: Selection,
    /// Lines kept back until the end of the existing part is known.
    held: Option<VecDeque<Vec<u8>>>,
    fresh: Vec<u8>,
    sent: u64,
    /// The last entry ended its line.
    line_ended: bool,
    held_open: bool,
}

impl Selector {
    /// For one reader.
    pub fn new(selection: Selection) -> Self {
        let held = selection.tail.map(|_| VecDeque::new());
        Self { selection, held, fresh: Vec::new(), sent: 0, line_ended: true, held_open: false }
    }

    /// Takes an entry in. False: the limit has been reached, nothing more will be shown.
    pub fn take(&mut self, entry: Entry<'_>) -> bool {
        if self.is_full() {
            return false;
        }
        if self.selection.stream.is_some_and(|stream| stream != entry.stream) || self.is_too_old(entry.timestamp) {
            return true;
        }
        let mut piece = Vec::with_capacity(entry.content.len() + 40);
        let begins_line = self.line_ended;
        if self.selection.timestamps && begins_line {
            piece.extend_from_slice(entry.timestamp.as_bytes());
            piece.push(b' ');
        }
        piece.extend_from_slice(entry.content);
        if !entry.partial {
            piece.push(b'\n');
        }
        if piece.is_empty() {
            return true;
        }
        self.line_ended = !entry.partial;
        match &mut self.held {
            None => self.emit(&piece),
            Some(held) => {
                if self.held_open {
                    if let Some(last) = held.back_mut() {
                        last.extend_from_slice(&piece);
                    }
                } else {
                    held.push_back(piece);
                }
                self.held_open = entry.partial;
                while held.len() > self.selection.tail.unwrap_or(0) && !(held.len() == 1 && self.held_open) {
                    held.pop_front();
                }
            }
        }
        !self.is_full()
    }

    /// The existing part has been read: the last lines are due, and from now on entries are shown as they come.
    pub fn finish_tail(&mut self) -> Vec<u8> {
        let tail = self.selection.tail.unwrap_or(usize::MAX);
        for line in self.held.take().into_iter().flatten().collect::<Vec<_>>().into_iter().rev().take(tail).rev() {
            self.emit(&line);
        }
        self.drain()
    }

    /// What is due to the reader.
    pub fn drain(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.fresh)
    }

    /// The limit has been reached.
    pub fn is_full(&self) -> bool {
        self.selection.limit.is_some_and(|limit| self.sent >= limit)
    }

    fn emit(&mut self, bytes: &[u8]) {
        let room = self.selection.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.sent));
        let take = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        self.fresh.extend_from_slice(&bytes[..take]);
        self.sent += take as u64;
    }

    fn is_too_old(&self, timestamp: &str) -> bool {
        let Some(since) = self.selection.since_ns else { return false };
        timestamp.parse::<Timestamp>().is_ok_and(|t| t.as_nanosecond() < i128::from(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn show(selection: Selection, entries: &[(u32, Stream, bool, &str)]) -> String {
        let mut selector = Selector::new(selection);
        for (second, stream, partial, content) in entries {
            let timestamp = format!("2026-11-21T04:00:{second:02}.000000000Z");
            selector.take(Entry {
                timestamp: &timestamp,
                stream: *stream,
                partial: *partial,
                content: content.as_bytes(),
            });
        }
        String::from_utf8(selector.finish_tail()).unwrap()
    }

    const LOG: [(u32, Stream, bool, &str); 5] = [
        (1, Stream::Stdout, false, "one"),
        (2, Stream::Stderr, false, "two"),
        (3, Stream::Stdout, true, "thr"),
        (4, Stream::Stdout, false, "ee"),
        (5, Stream::Stdout, false, "four"),
    ];

    #[test]
    fn the_kubelets_options_hold() {
        let plain = Selection::default();
        assert_eq!(show(plain.clone(), &LOG), "one\ntwo\nthree\nfour\n");
        assert_eq!(show(Selection { tail: Some(2), ..plain.clone() }, &LOG), "three\nfour\n");
        assert_eq!(show(Selection { tail: Some(0), ..plain.clone() }, &LOG), "");
        assert_eq!(show(Selection { tail: Some(99), ..plain.clone() }, &LOG), "one\ntwo\nthree\nfour\n");
        assert_eq!(show(Selection { limit: Some(6), ..plain.clone() }, &LOG), "one\ntw");
        assert_eq!(show(Selection { stream: Some(Stream::Stderr), ..plain.clone() }, &LOG), "two\n");
        let since: Timestamp = "2026-11-21T04:00:04Z".parse().unwrap();
        let since_ns = Some(i64::try_from(since.as_nanosecond()).unwrap());
        assert_eq!(show(Selection { since_ns, ..plain.clone() }, &LOG), "ee\nfour\n");
        assert_eq!(
            show(Selection { timestamps: true, tail: Some(2), ..plain }, &LOG),
            "2026-11-21T04:00:03.000000000Z three\n2026-11-21T04:00:05.000000000Z four\n"
        );
    }

    #[test]
    fn after_the_tail_everything_new_is_shown() {
        let mut selector = Selector::new(Selection { tail: Some(0), ..Selection::default() });
        let entry =
            |content| Entry { timestamp: "2026-11-21T04:00:01Z", stream: Stream::Stdout, partial: false, content };
        selector.take(entry(b"old"));
        assert!(selector.finish_tail().is_empty());
        selector.take(entry(b"new"));
        assert_eq!(selector.drain(), b"new\n");
    }

    proptest! {
        #[test]
        fn a_tail_is_the_end_of_the_whole_and_a_limit_its_beginning(
            lines in prop::collection::vec(("[a-z]{0,9}", any::<bool>()), 0..30),
            tail in 0_usize..40,
            limit in 0_u64..200,
        ) {
            let entries: Vec<(u32, Stream, bool, &str)> =
                lines.iter().map(|(text, partial)| (1, Stream::Stdout, *partial, text.as_str())).collect();
            let whole = show(Selection::default(), &entries);
            let end = show(Selection { tail: Some(tail), ..Selection::default() }, &entries);
            prop_assert!(whole.ends_with(&end));
            let count = whole.split_inclusive('\n').count();
            prop_assert_eq!(end.split_inclusive('\n').count(), count.min(tail));
            let start = show(Selection { limit: Some(limit), ..Selection::default() }, &entries);
            prop_assert!(whole.starts_with(&start));
            prop_assert_eq!(start.len() as u64, limit.min(whole.len() as u64));
        }
    }
}
