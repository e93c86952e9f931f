//! Readers: durable records, in order, straight from the segment files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use agent_api::usage::UsageRecord;
use bytes::Bytes;
use futures::Stream;
use tokio::sync::watch;

use super::error::ReadError;
use super::index::Shared;
use super::line;
use super::scan::Lines;

/// Bytes read at once; a batch on the wire stays far below 4 MiB.
const CHUNK: u64 = 256 * 1024;

/// Consecutive records.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Canonical JSON of each.
    pub records: Vec<Bytes>,
    /// The last one's sequence number.
    pub last_seq: u64,
}

/// Reads one boot's records in order.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    boot_id: String,
    next: u64,
    follow: bool,
    durable: watch::Receiver<u64>,
    /// Where `next` begins, when known.
    hint: Option<(PathBuf, u64)>,
    failed: bool,
}

/// Where to read.
struct Place {
    path: PathBuf,
    from: u64,
    end: u64,
    last_seq: u64,
}

enum Step {
    Read(Place),
    AtEnd,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, boot_id: String, after: u64, follow: bool) -> Self {
        let durable = shared.durable();
        let follow = follow && shared.is_current(&boot_id);
        Self { shared, boot_id, next: after + 1, follow, durable, hint: None, failed: false }
    }

    /// The next batch; `None` at the end (never, when following). After an error there is nothing more.
    pub async fn next(&mut self) -> Option<Result<Batch, ReadError>> {
        while !self.failed {
            self.durable.borrow_and_update();
            match self.step() {
                Ok(Step::AtEnd) if !self.follow => return None,
                Ok(Step::AtEnd) => {
                    // The sender lives in `shared`, which this reader holds.
                    if self.durable.changed().await.is_err() {
                        return None;
                    }
                }
                Ok(Step::Read(place)) => match self.read(place).await {
                    Ok(Some(batch)) => return Some(Ok(batch)),
                    Ok(None) => {}
                    Err(error) => return Some(Err(self.fail(error))),
                },
                Err(error) => return Some(Err(self.fail(error))),
            }
        }
        None
    }

    /// As a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Batch, ReadError>> + Send {
        futures::stream::unfold(self, |mut reader| async move { reader.next().await.map(|item| (item, reader)) })
    }

    fn fail(&mut self, error: ReadError) -> ReadError {
        self.failed = true;
        error
    }

    fn step(&self) -> Result<Step, ReadError> {
        let state = self.shared.state();
        let boot_id = || self.boot_id.clone();
        let boot = state.boot(&self.boot_id).ok_or_else(|| ReadError::UnknownBoot { boot_id: boot_id() })?;
        let after = self.next - 1;
        if after > boot.last.seq {
            return Err(ReadError::Ahead { boot_id: boot_id(), after, last: boot.last.seq });
        }
        let Some(first) = boot.segments.first() else {
            return if after == boot.last.seq {
                Ok(Step::AtEnd)
            } else {
                Err(ReadError::Gone { boot_id: boot_id(), after, first: boot.last.seq + 1 })
            };
        };
        let Some(segment) = boot.segments.iter().rev().find(|segment| segment.first_seq <= self.next) else {
            return Err(ReadError::Gone { boot_id: boot_id(), after, first: first.first_seq });
        };
        if self.next <= segment.last_seq {
            let from = self.hint.as_ref().filter(|(path, _)| *path == segment.path).map_or(0, |(_, offset)| *offset);
            return Ok(Step::Read(Place {
                path: segment.path.clone(),
                from,
                end: segment.end,
                last_seq: segment.last_seq,
            }));
        }
        if segment.damaged || self.next <= boot.last.seq {
            return Err(ReadError::Damaged { boot_id: boot_id(), after, path: segment.path.clone() });
        }
        Ok(Step::AtEnd)
    }

    /// `None`: the segment went away meanwhile, or only older records were there; look again.
    async fn read(&mut self, place: Place) -> Result<Option<Batch>, ReadError> {
        let next = self.next;
        let path = place.path.clone();
        let damaged = || ReadError::Damaged { boot_id: self.boot_id.clone(), after: next - 1, path: path.clone() };
        let task = tokio::task::spawn_blocking(move || read_lines(&place, next).map(|lines| (place, lines)));
        let result = task.await.unwrap_or_else(|join| Err(io::Error::other(join)));
        let (place, lines) = match result {
            Ok(read) => read,
            // Acknowledged and recycled under our feet: the index knows.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ReadError::Read { path, source }),
        };
        let ReadLines { records, last, offset, bad } = lines;
        if records.is_empty() {
            if bad || offset == place.from {
                let held = self
                    .shared
                    .state()
                    .boot(&self.boot_id)
                    .is_some_and(|boot| boot.segments.iter().any(|segment| segment.path == path));
                return if held { Err(damaged()) } else { Ok(None) };
            }
            self.hint = Some((place.path, offset));
            return Ok(None);
        }
        self.next = last + 1;
        self.hint = Some((place.path, offset));
        Ok(Some(Batch { records, last_seq: last }))
    }
}

struct ReadLines {
    records: Vec<Bytes>,
    last: u64,
    /// Behind the last line taken.
    offset: u64,
    /// A line was not good.
    bad: bool,
}

fn read_lines(place: &Place, next: u64) -> io::Result<ReadLines> {
    let file = File::open(&place.path)?;
    let mut bytes = vec![0; usize::try_from((place.end - place.from).min(CHUNK)).unwrap_or_default()];
    file.read_exact_at(&mut bytes, place.from)?;
    let mut found = ReadLines { records: Vec::new(), last: next - 1, offset: place.from, bad: false };
    let mut lines = Lines { bytes: &bytes, at: 0 };
    while let Some((at, text)) = lines.next() {
        if place.from == 0 && at == 0 {
            found.bad = line::decode_header(text).is_none();
        } else if let Some(line) = line::decode_record(text) {
            if line.record.seq > found.last {
                if line.record.seq != found.last + 1 || line.record.seq > place.last_seq {
                    found.bad = line.record.seq <= place.last_seq;
                    break;
                }
                found.last += 1;
                found.records.push(Bytes::copy_from_slice(line::json_of(text)));
            }
        } else {
            found.bad = true;
        }
        if found.bad {
            break;
        }
        found.offset = place.from + lines.at as u64;
    }
    Ok(found)
}

/// One record, for the writer's own look-ups.
pub(super) fn record_at(shared: &Shared, boot_id: &str, seq: u64) -> Option<UsageRecord> {
    let path = {
        let state = shared.state();
        let boot = state.boot(boot_id)?;
        boot.segments.iter().rev().find(|segment| segment.first_seq <= seq && seq <= segment.last_seq)?.path.clone()
    };
    let bytes = std::fs::read(path).ok()?;
    Lines { bytes: &bytes, at: 0 }
        .filter_map(|(_, text)| line::decode_record(text))
        .map(|line| line.record)
        .find(|record| record.seq == seq)
}
