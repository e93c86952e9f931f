//! The meter's book of intervals. Pure: instants come in, records go out; who writes them tells it how that went.
//!
//! ```text
//!            begin            began                  end            ended
//! (unknown) ───────> Starting ─────> Open ─────────────────> Ending ─────> Closed
//!                       │ not_begun   ^ │ not_ended: the instant stays ^ │
//!                       v             │ └──────> Ending (idle) ────────┘ v
//!                   (unknown)       adopt
//! resize: Open -> Open, as the next interval of the sandbox; not_resized: the one before
//! recovered from the spool ─────> Orphan ── adopt, not live ──> Ending
//! ```

use std::collections::{BTreeMap, BTreeSet};

use agent_api::usage::{Held, Kind, SCHEMA, UsageRecord, Used};

use super::clock::Instant;
use super::error::MeterError;
use super::interval::{Adopted, Interval, LiveInterval, LiveView, Released, StartedAt, StoppedAt};
use super::used::{Integral, UsedNow};
use crate::spool::Recovered;

/// Closed intervals that are remembered, so that a repeated stop finds its answer.
const REMEMBERED: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The start record is on its way.
    Starting,
    Open,
    /// Open in the spool, not yet adopted by this agent: not ticked.
    Orphan,
    /// Released at this instant; `writing`: the record is on its way.
    Ending {
        at: Instant,
        writing: bool,
        reconcile: bool,
    },
}

#[derive(Debug)]
struct Entry {
    interval: Interval,
    started: StartedAt,
    /// The latest instant that a record proves.
    proven: u64,
    integral: Integral,
    stage: Stage,
    /// What it was before a change of what is held whose records are on their way.
    before: Option<Box<Entry>>,
}

#[derive(Debug)]
pub(super) struct Book {
    host: String,
    boot_id: String,
    entries: BTreeMap<String, Entry>,
    closed: BTreeMap<String, StoppedAt>,
    /// In the order of their closing, oldest first.
    closing_order: std::collections::VecDeque<String>,
}

pub(super) enum Begin {
    Already(StartedAt),
    Record(Box<UsageRecord>, StartedAt),
}

pub(super) enum Resize {
    /// That much is held already, since then.
    Already(StartedAt),
    /// The end of one interval and the start of the next.
    Records(Vec<UsageRecord>, StartedAt),
}

pub(super) enum End {
    Already(StoppedAt),
    Record(Box<UsageRecord>, StoppedAt),
}

impl Book {
    pub(super) fn new(host: String, boot_id: String, recovered: Recovered) -> Self {
        let mut book = Self {
            host,
            boot_id,
            entries: BTreeMap::new(),
            closed: BTreeMap::new(),
            closing_order: Default::default(),
        };
        let mut earlier: BTreeMap<String, Vec<Used>> = BTreeMap::new();
        for record in recovered.closed {
            earlier.entry(record.sandbox_id.clone()).or_default().push(record.used.clone());
            book.remember(record.sandbox_id, Instant { boottime_ns: record.boottime_ns, wall_ns: record.wall_ns });
        }
        for record in recovered.open {
            // What was closed was an earlier interval of it.
            book.closed.remove(&record.sandbox_id);
            let mut integral = Integral::resume(record.used.clone());
            earlier.remove(&record.sandbox_id).iter().flatten().for_each(|used| integral.add_base(used));
            let entry = Entry {
                before: None,
                started: Instant { boottime_ns: record.start_boottime_ns, wall_ns: record.start_wall_ns },
                proven: record.boottime_ns,
                integral,
                stage: Stage::Orphan,
                interval: Interval {
                    pod_uid: record.pod_uid,
                    pod_namespace: record.pod_namespace,
                    pod_name: record.pod_name,
                    sandbox_id: record.sandbox_id.clone(),
                    held: record.held,
                    sandbox_kind: record.sandbox_kind,
                    price_class: record.price_class,
                    images: record.images,
                },
            };
            book.entries.insert(record.sandbox_id, entry);
        }
        book
    }

    pub(super) fn begin(&mut self, interval: Interval, now: Instant) -> Result<Begin, MeterError> {
        let sandbox_id = interval.sandbox_id.clone();
        if self.closed.contains_key(&sandbox_id) {
            return Err(MeterError::Released { sandbox_id });
        }
        if let Some(entry) = self.entries.get(&sandbox_id) {
            return match entry.stage {
                Stage::Open | Stage::Orphan => Ok(Begin::Already(entry.started)),
                Stage::Starting => Err(MeterError::Busy { sandbox_id }),
                Stage::Ending { .. } => Err(MeterError::Released { sandbox_id }),
            };
        }
        let entry = Entry {
            interval,
            started: now,
            proven: now.boottime_ns,
            integral: Integral::default(),
            stage: Stage::Starting,
            before: None,
        };
        let record = self.record(&entry, Kind::Start, now);
        self.entries.insert(sandbox_id, entry);
        Ok(Begin::Record(Box::new(record), now))
    }

    pub(super) fn began(&mut self, sandbox_id: &str) {
        if let Some(entry) = self.entries.get_mut(sandbox_id)
            && entry.stage == Stage::Starting
        {
            entry.stage = Stage::Open;
        }
    }

    pub(super) fn not_begun(&mut self, sandbox_id: &str) {
        if self.entries.get(sandbox_id).is_some_and(|entry| entry.stage == Stage::Starting) {
            self.entries.remove(sandbox_id);
        }
    }

    /// Another amount is held from `now` on: one interval ends and the next begins at the same instant.
    pub(super) fn resize(
        &mut self,
        sandbox_id: &str,
        held: Held,
        now: Instant,
        used: Option<UsedNow>,
    ) -> Result<Resize, MeterError> {
        let Some(entry) = self.entries.get_mut(sandbox_id) else {
            let sandbox_id = sandbox_id.to_owned();
            let released = self.closed.contains_key(&sandbox_id);
            return Err(if released {
                MeterError::Released { sandbox_id }
            } else {
                MeterError::Unknown { sandbox_id }
            });
        };
        match entry.stage {
            Stage::Open if entry.before.is_none() => {}
            Stage::Ending { .. } => return Err(MeterError::Released { sandbox_id: sandbox_id.to_owned() }),
            _ => return Err(MeterError::Busy { sandbox_id: sandbox_id.to_owned() }),
        }
        if entry.interval.held == held {
            return Ok(Resize::Already(entry.started));
        }
        // Intervals are named by their start.
        if now.boottime_ns <= entry.started.boottime_ns {
            return Err(MeterError::Busy { sandbox_id: sandbox_id.to_owned() });
        }
        if let Some(used) = used {
            entry.integral.look(used, now.boottime_ns, entry.proven);
        }
        let next = Entry {
            interval: Interval { held, ..entry.interval.clone() },
            started: now,
            proven: now.boottime_ns,
            integral: entry.integral.next(),
            stage: Stage::Open,
            before: None,
        };
        let old = std::mem::replace(entry, next);
        let stop = self.record(&old, Kind::Stop, now);
        let Some(entry) = self.entries.get_mut(sandbox_id) else {
            return Err(MeterError::Unknown { sandbox_id: sandbox_id.to_owned() });
        };
        entry.before = Some(Box::new(old));
        let start = self.entries.get(sandbox_id).map(|entry| self.record(entry, Kind::Start, now));
        Ok(Resize::Records([stop].into_iter().chain(start).collect(), now))
    }

    pub(super) fn resized(&mut self, sandbox_id: &str) {
        if let Some(entry) = self.entries.get_mut(sandbox_id) {
            entry.before = None;
        }
    }

    pub(super) fn not_resized(&mut self, sandbox_id: &str) {
        if let Some(entry) = self.entries.get_mut(sandbox_id)
            && entry.stage == Stage::Open
            && let Some(before) = entry.before.take()
        {
            *entry = *before;
        }
    }

    pub(super) fn end(&mut self, sandbox_id: &str, now: Instant, used: Option<UsedNow>) -> Result<End, MeterError> {
        let unknown = || MeterError::Unknown { sandbox_id: sandbox_id.to_owned() };
        let busy = || MeterError::Busy { sandbox_id: sandbox_id.to_owned() };
        if let Some(stopped) = self.closed.get(sandbox_id) {
            return Ok(End::Already(*stopped));
        }
        let entry = self.entries.get_mut(sandbox_id).ok_or_else(unknown)?;
        let (at, reconcile) = match entry.stage {
            Stage::Starting | Stage::Ending { writing: true, .. } => return Err(busy()),
            Stage::Open | Stage::Orphan => {
                if let Some(used) = used {
                    entry.integral.look(used, now.boottime_ns, entry.proven);
                }
                (now, false)
            }
            Stage::Ending { at, reconcile, .. } => (at, reconcile),
        };
        entry.stage = Stage::Ending { at, writing: true, reconcile };
        let kind = if reconcile { Kind::Reconcile } else { Kind::Stop };
        let record = self.entries.get(sandbox_id).map(|entry| self.record(entry, kind, at)).ok_or_else(unknown)?;
        Ok(End::Record(Box::new(record), at))
    }

    pub(super) fn ended(&mut self, sandbox_id: &str, stopped: StoppedAt) {
        if self.entries.remove(sandbox_id).is_some() {
            self.remember(sandbox_id.to_owned(), stopped);
        }
    }

    pub(super) fn not_ended(&mut self, sandbox_id: &str) {
        if let Some(Entry { stage: Stage::Ending { writing, .. }, .. }) = self.entries.get_mut(sandbox_id) {
            *writing = false;
        }
    }

    /// The records of a tick at `now`, for every open interval.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<UsageRecord> {
        for entry in self.entries.values_mut().filter(|entry| entry.stage == Stage::Open) {
            entry.proven = now.boottime_ns;
        }
        let open = self.entries.values().filter(|entry| entry.stage == Stage::Open);
        open.map(|entry| self.record(entry, Kind::Tick, now)).collect()
    }

    pub(super) fn adopt(
        &mut self,
        live: &BTreeSet<&str>,
        ended: &[Released],
        now: Instant,
    ) -> (Vec<UsageRecord>, Adopted) {
        let mut adopted = Adopted::default();
        let mut closing = Vec::new();
        for (sandbox_id, entry) in &mut self.entries {
            let dead = !live.contains(sandbox_id.as_str());
            match entry.stage {
                Stage::Orphan if dead => {
                    let released = ended.iter().find(|released| released.sandbox_id == *sandbox_id);
                    let boottime_ns = released
                        .map_or(entry.proven, |released| released.boottime_ns.min(now.boottime_ns).max(entry.proven));
                    let wall_ns = now.wall_ns.saturating_sub(now.boottime_ns.saturating_sub(boottime_ns));
                    let at = Instant { boottime_ns, wall_ns };
                    entry.stage = Stage::Ending { at, writing: true, reconcile: true };
                    closing.push((sandbox_id.clone(), at));
                }
                Stage::Ending { at, writing: false, reconcile } => {
                    entry.stage = Stage::Ending { at, writing: true, reconcile };
                    closing.push((sandbox_id.clone(), at));
                }
                Stage::Orphan => {
                    entry.stage = Stage::Open;
                    adopted.continued.push((sandbox_id.clone(), entry.started));
                }
                Stage::Open | Stage::Starting | Stage::Ending { .. } => {}
            }
        }
        let record = |(sandbox_id, at): &(String, Instant)| {
            let entry = self.entries.get(sandbox_id)?;
            let kind =
                if matches!(entry.stage, Stage::Ending { reconcile: true, .. }) { Kind::Reconcile } else { Kind::Stop };
            Some(self.record(entry, kind, *at))
        };
        let records = closing.iter().filter_map(record).collect();
        adopted.reconciled = closing;
        adopted.unmetered =
            live.iter().filter(|id| !self.entries.contains_key(**id)).map(|id| (*id).to_owned()).collect();
        (records, adopted)
    }

    /// Open and adopted intervals.
    pub(super) fn open(&self) -> Vec<String> {
        self.entries.iter().filter(|(_, entry)| entry.stage == Stage::Open).map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn look(&mut self, sandbox_id: &str, used: UsedNow, now: Instant) {
        if let Some(entry) = self.entries.get_mut(sandbox_id)
            && entry.stage == Stage::Open
        {
            entry.integral.look(used, now.boottime_ns, entry.proven);
        }
    }

    pub(super) fn live(&self, now: Instant) -> LiveView {
        let held = self.entries.values().filter(|entry| !matches!(entry.stage, Stage::Starting | Stage::Ending { .. }));
        let live = |entry: &Entry| LiveInterval {
            interval: entry.interval.clone(),
            started: entry.started,
            duration_ns: now.boottime_ns.saturating_sub(entry.started.boottime_ns),
            used: entry.integral.used().clone(),
            memory_bytes: entry.integral.memory_bytes(),
        };
        LiveView { boot_id: self.boot_id.clone(), now, intervals: held.map(live).collect() }
    }

    fn remember(&mut self, sandbox_id: String, stopped: StoppedAt) {
        self.closed.insert(sandbox_id.clone(), stopped);
        self.closing_order.push_back(sandbox_id);
        if self.closing_order.len() > REMEMBERED
            && let Some(oldest) = self.closing_order.pop_front()
        {
            self.closed.remove(&oldest);
        }
    }

    fn record(&self, entry: &Entry, kind: Kind, at: Instant) -> UsageRecord {
        let interval = &entry.interval;
        UsageRecord {
            schema: SCHEMA,
            host: self.host.clone(),
            boot_id: self.boot_id.clone(),
            seq: 0,
            kind,
            pod_uid: interval.pod_uid.clone(),
            pod_namespace: interval.pod_namespace.clone(),
            pod_name: interval.pod_name.clone(),
            sandbox_id: interval.sandbox_id.clone(),
            start_boottime_ns: entry.started.boottime_ns,
            start_wall_ns: entry.started.wall_ns,
            boottime_ns: at.boottime_ns,
            wall_ns: at.wall_ns,
            held: interval.held.clone(),
            used: if kind == Kind::Start { Used::default() } else { entry.integral.used().clone() },
            sandbox_kind: interval.sandbox_kind.clone(),
            price_class: interval.price_class.clone(),
            images: interval.images.clone(),
            prev_hash: String::new(),
            hash: String::new(),
        }
    }
}
