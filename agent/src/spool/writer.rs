//! The one writer: group commit, the end of a failed file, acknowledgements, the reserve.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use agent_api::usage::UsageRecord;
use tokio::sync::oneshot;

use super::SpoolConfig;
use super::ack::AckFile;
use super::disk::Disk;
use super::error::{AckError, AppendError};
use super::index::{Damage, Segment, Shared};
use super::line::{self, Header};
use super::read::record_at;
use super::reserve::Reserve;
use super::scan::{self, Position, Tail};
use super::segment::Active;

/// How long after a failure the reserve is tried again.
const RESERVE_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) enum Command {
    Append { records: Vec<UsageRecord>, reply: oneshot::Sender<Result<u64, AppendError>> },
    Ack { boot_id: String, seq: u64, reply: oneshot::Sender<Result<(), AckError>> },
}

/// The last record of each open interval: what a restarted agent goes on from, so it is kept though acknowledged.
#[derive(Debug, Default)]
pub(super) struct OpenIntervals(HashMap<(String, u64), u64>);

impl OpenIntervals {
    pub(super) fn note(&mut self, record: &UsageRecord) {
        let key = (record.sandbox_id.clone(), record.start_boottime_ns);
        if record.kind.closes() {
            self.0.remove(&key);
        } else {
            self.0.insert(key, record.seq);
        }
    }

    fn oldest(&self) -> u64 {
        self.0.values().copied().min().unwrap_or(u64::MAX)
    }
}

/// Sum, batch number and separators of a line, the record's number and hashes.
const LINE_OVERHEAD: usize = 200;

type Reply = oneshot::Sender<Result<u64, AppendError>>;

type Appends = Vec<(Vec<UsageRecord>, Reply)>;

#[derive(Debug)]
pub(super) struct Writer {
    config: SpoolConfig,
    disk: Arc<dyn Disk>,
    reserve: Reserve,
    active: Option<Active>,
    /// One for each of the shared boots, in their order.
    acks: Vec<AckFile>,
    open: OpenIntervals,
    shared: Arc<Shared>,
    reserve_failed: Option<Instant>,
    _lock: File,
}

impl Writer {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        config: SpoolConfig,
        disk: Arc<dyn Disk>,
        reserve: Reserve,
        active: Option<Active>,
        acks: Vec<AckFile>,
        open: OpenIntervals,
        shared: Arc<Shared>,
        lock: File,
    ) -> Self {
        Self { config, disk, reserve, active, acks, open, shared, reserve_failed: None, _lock: lock }
    }

    /// Drops what an agent that was killed had acknowledged and not yet dropped.
    pub(super) fn release_all(&mut self) {
        let boots = self.shared.state().boots.len();
        (0..boots).rev().for_each(|at| self.release(at));
    }

    /// Until every handle is gone.
    pub(super) fn run(mut self, inbox: Receiver<Command>) {
        while let Ok(first) = inbox.recv() {
            let mut waiting = Appends::new();
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Append { records, reply } => waiting.push((records, reply)),
                    Command::Ack { boot_id, seq, reply } => {
                        self.commit(std::mem::take(&mut waiting));
                        let _ = reply.send(self.ack(&boot_id, seq));
                    }
                }
                next = inbox.try_recv().ok();
            }
            self.commit(waiting);
            self.refill();
        }
    }

    /// Groups what waits into batches of at most half a segment; a larger call takes several.
    fn commit(&mut self, waiting: Appends) {
        let limit = usize::try_from(self.config.segment_bytes / 2).unwrap_or(usize::MAX);
        let (mut group, mut size, mut replies) = (Vec::new(), 0, Vec::new());
        for (records, reply) in waiting {
            let mut failed = None;
            for record in records {
                let bytes = record.encode().len() + LINE_OVERHEAD;
                if bytes > limit {
                    let segment_bytes = self.config.segment_bytes;
                    failed = Some(AppendError::TooLarge { bytes, segment_bytes });
                    continue;
                }
                if size + bytes > limit {
                    let written = self.commit_batch(std::mem::take(&mut group));
                    failed = failed.or(written.as_ref().err().cloned());
                    answer(&mut replies, &written);
                    size = 0;
                }
                size += bytes;
                group.push(record);
            }
            match failed {
                Some(error) => answer(&mut vec![(0, reply)], &Err(error)),
                None => replies.push((group.len(), reply)),
            }
        }
        let written = self.commit_batch(group);
        answer(&mut replies, &written);
    }

    /// One write, one fdatasync; the sequence number before the batch.
    fn commit_batch(&mut self, records: Vec<UsageRecord>) -> Result<u64, AppendError> {
        let before = self.shared.state().current().last.clone();
        let first = before.seq + 1;
        if records.is_empty() {
            return Ok(before.seq);
        }
        let (mut bytes, mut sealed, mut last) = (Vec::new(), Vec::with_capacity(records.len()), before);
        for record in records {
            let record = UsageRecord { seq: last.seq + 1, ..record }.seal(&last.hash);
            line::encode_record(first, &record, &mut bytes);
            last = Position { seq: record.seq, hash: record.hash.clone() };
            sealed.push(record);
        }
        if let Err(error) = self.write(&bytes, &last) {
            self.shared.state().health.failed_appends += 1;
            let count = sealed.len();
            tracing::error!(error = &error as &dyn std::error::Error, count, "usage records could not be made durable");
            return Err(error);
        }
        sealed.iter().for_each(|record| self.open.note(record));
        self.shared.publish(last.seq);
        Ok(first - 1)
    }

    /// Makes a batch durable: in the active segment, or, when that has no room or fails, in a new one.
    fn write(&mut self, bytes: &[u8], last: &Position) -> Result<(), AppendError> {
        if self.active.as_ref().is_some_and(|active| active.has_room(bytes.len()))
            && self.write_active(bytes, last).is_ok()
        {
            return Ok(());
        }
        self.roll()?;
        let path = self.active.as_ref().map(|active| active.path().to_owned()).unwrap_or_default();
        self.write_active(bytes, last).map_err(|source| AppendError::Write { path, source: Arc::new(source) })
    }

    fn write_active(&mut self, bytes: &[u8], last: &Position) -> io::Result<()> {
        let Some(active) = &mut self.active else {
            return Err(io::ErrorKind::NotFound.into());
        };
        match active.append(bytes) {
            Ok(end) => {
                let mut state = self.shared.state();
                let boot = state.current();
                boot.last = last.clone();
                if let Some(segment) = boot.segments.last_mut() {
                    (segment.end, segment.last_seq) = (end, last.seq);
                }
                Ok(())
            }
            Err(error) => {
                self.give_up(&error);
                Err(error)
            }
        }
    }

    /// A failed write or fdatasync is final: the file is never written again, and what it should hold is read from the disk.
    fn give_up(&mut self, error: &io::Error) {
        let Some(active) = self.active.take() else { return };
        let path = active.path().to_owned();
        drop(active);
        tracing::error!(%error, path = %path.display(), "usage segment failed and is given up");
        let mut state = self.shared.state();
        state.health.failed_segments += 1;
        let durable = state.current().last.seq;
        let verdict = self.disk.read(&path).map(|bytes| scan::scan(&bytes, None, Some(durable + 1)));
        let intact = matches!(&verdict, Ok(scan) if scan.tail == Tail::Clean);
        if !intact {
            let boot = state.current();
            let boot_id = boot.boot_id.clone();
            let mut after_seq = 0;
            if let Some(segment) = boot.segments.last_mut() {
                let good = verdict.ok().and_then(|scan| scan.records.last().map(|record| record.seq));
                segment.damaged = true;
                segment.last_seq = good.unwrap_or(segment.first_seq - 1);
                after_seq = segment.last_seq;
            }
            tracing::error!(path = %path.display(), after_seq, "usage records that were durable are damaged");
            state.health.damage.push(Damage { boot_id, path, after_seq, resumes_at: Some(durable + 1) });
        }
    }

    /// Starts the next segment.
    fn roll(&mut self) -> Result<(), AppendError> {
        self.active = None;
        let (dir, header) = {
            let mut state = self.shared.state();
            let boot = state.current();
            let index = boot.segments.last().map_or(1, |segment| segment.index + 1);
            let header = Header {
                schema: agent_api::usage::SCHEMA,
                host: self.config.host.clone(),
                boot_id: boot.boot_id.clone(),
                index,
                first_seq: boot.last.seq + 1,
                prev_hash: boot.last.hash.clone(),
            };
            (boot.dir.clone(), header)
        };
        let path = dir.join(format!("{:08}.seg", header.index));
        let started = Active::start(&self.disk, &mut self.reserve, &dir, &header, self.config.segment_bytes);
        let active =
            started.map_err(|source| AppendError::StartSegment { path: path.clone(), source: Arc::new(source) })?;
        let mut state = self.shared.state();
        state.health.reserve_segments = self.reserve.len();
        let first_seq = header.first_seq;
        // A predecessor without a record that counts has the same first_seq; the newer one decides.
        state.current().segments.push(Segment {
            index: header.index,
            path,
            first_seq,
            last_seq: first_seq - 1,
            end: 0,
            damaged: false,
        });
        self.active = Some(active);
        Ok(())
    }

    fn ack(&mut self, boot_id: &str, seq: u64) -> Result<(), AckError> {
        let found = {
            let state = self.shared.state();
            state
                .boots
                .iter()
                .position(|boot| boot.boot_id == boot_id)
                .map(|at| (at, state.boots[at].last.clone(), state.boots[at].acked))
        };
        // An old boot that is gone was acknowledged wholly.
        let Some((at, last, acked)) = found else { return Ok(()) };
        if seq > last.seq {
            return Err(AckError::Ahead { boot_id: boot_id.to_owned(), seq, last: last.seq });
        }
        if seq > acked {
            let hash = if seq == last.seq {
                Some(last.hash)
            } else {
                record_at(&self.shared, boot_id, seq).map(|record| record.hash)
            };
            let path = self.shared.state().boots[at].dir.join("acked");
            // A record that cannot be read back cannot have been delivered from here.
            let hash = hash.ok_or_else(|| AckError::Ahead { boot_id: boot_id.to_owned(), seq, last: acked })?;
            self.acks[at].write(Position { seq, hash }).map_err(|source| AckError::Write { path, source })?;
            self.shared.state().boots[at].acked = seq;
        }
        self.release(at);
        Ok(())
    }

    /// Drops what is acknowledged: segments of the running boot but the last, and whole old boots.
    fn release(&mut self, at: usize) {
        let (droppable, whole): (Vec<PathBuf>, Option<PathBuf>) = {
            let mut state = self.shared.state();
            let current = at + 1 == state.boots.len();
            let boot = &mut state.boots[at];
            let keep_from = if current { self.open.oldest() } else { u64::MAX };
            let mut dropped = Vec::new();
            while let Some(segment) = boot.segments.first() {
                // The next segment's beginning is this one's end, whatever is written behind it.
                let end = boot.segments.get(1).map(|next| next.first_seq - 1);
                let end = end.or((!current).then_some(boot.last.seq));
                if segment.damaged || end.is_none_or(|end| end > boot.acked || end >= keep_from) {
                    break;
                }
                dropped.push(boot.segments.remove(0).path);
            }
            let whole = (!current && boot.segments.is_empty() && boot.acked == boot.last.seq).then(|| boot.dir.clone());
            if whole.is_some() {
                state.boots.remove(at);
                self.acks.remove(at);
            }
            (dropped, whole)
        };
        for path in droppable {
            if let Err(error) = self.reserve.recycle(&path) {
                tracing::warn!(%error, path = %path.display(), "cannot recycle an acknowledged usage segment");
            }
        }
        if let Some(dir) = whole
            && let Err(error) = std::fs::remove_dir_all(&dir)
        {
            tracing::warn!(%error, path = %dir.display(), "cannot remove an acknowledged boot's directory");
        }
        self.shared.state().health.reserve_segments = self.reserve.len();
    }

    /// Fills the reserve while nobody waits for it.
    fn refill(&mut self) {
        if !self.reserve.is_short() || self.reserve_failed.is_some_and(|failed| failed.elapsed() < RESERVE_PAUSE) {
            return;
        }
        self.reserve_failed = match self.reserve.add() {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(%error, have = self.reserve.len(), "cannot fill the reserve of the usage spool");
                Some(Instant::now())
            }
        };
        self.shared.state().health.reserve_segments = self.reserve.len();
    }
}

/// Answers calls with the number of their last record: its place in the batch behind the sequence number before it.
fn answer(replies: &mut Vec<(usize, Reply)>, written: &Result<u64, AppendError>) {
    for (place, reply) in replies.drain(..) {
        let _ = reply.send(written.clone().map(|before| before + place as u64));
    }
}
