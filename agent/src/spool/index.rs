//! What the writer knows and readers may see: boots, their segments, the durable end, alarms.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::scan::Position;

/// One boot's records, as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootState {
    /// The kernel's boot id.
    pub boot_id: String,
    /// The newest durable record's sequence number; 0 when there is none.
    pub last_seq: u64,
    /// Records up to here are acknowledged.
    pub acked_seq: u64,
    /// The running boot.
    pub current: bool,
}

/// Destroyed records. A human must act: vkubelet does not go past them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Of which boot.
    pub boot_id: String,
    /// Where.
    pub path: PathBuf,
    /// The last good record before it.
    pub after_seq: u64,
    /// The first good record behind it, if any.
    pub resumes_at: Option<u64>,
}

/// Figures and alarms of the spool.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Records that wait for an acknowledgement.
    pub unacked_records: u64,
    /// Segment files, the reserve not counted.
    pub segments: usize,
    /// Segments in reserve.
    pub reserve_segments: usize,
    /// Segments that should be in reserve.
    pub reserve_wanted: usize,
    /// Files given up because a write or an fdatasync failed.
    pub failed_segments: u64,
    /// Appends that could not be made durable at all.
    pub failed_appends: u64,
    /// Torn tails cut at the start.
    pub torn_tails: u64,
    /// Destroyed records.
    pub damage: Vec<Damage>,
}

/// A segment file.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) index: u64,
    pub(super) path: PathBuf,
    pub(super) first_seq: u64,
    /// Its last record that counts; `first_seq - 1` when it has none.
    pub(super) last_seq: u64,
    /// Offset behind that record.
    pub(super) end: u64,
    pub(super) damaged: bool,
}

/// A boot's directory.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) boot_id: String,
    pub(super) dir: PathBuf,
    pub(super) segments: Vec<Segment>,
    /// The durable end of the chain.
    pub(super) last: Position,
    pub(super) acked: u64,
}

/// What writer and readers share.
#[derive(Debug)]
pub(super) struct Shared {
    current: String,
    state: Mutex<State>,
    durable: watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct State {
    /// Oldest first, the running one last.
    pub(super) boots: Vec<Boot>,
    pub(super) health: Health,
}

impl Shared {
    pub(super) fn new(current: String, boots: Vec<Boot>, health: Health) -> Self {
        let durable = boots.iter().find(|boot| boot.boot_id == current).map_or(0, |boot| boot.last.seq);
        Self { current, state: Mutex::new(State { boots, health }), durable: watch::Sender::new(durable) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells readers that the running boot is durable up to `seq`.
    pub(super) fn publish(&self, seq: u64) {
        self.durable.send_replace(seq);
    }

    /// The running boot's durable sequence number, as it grows.
    pub(super) fn durable(&self) -> watch::Receiver<u64> {
        self.durable.subscribe()
    }

    pub(super) fn is_current(&self, boot_id: &str) -> bool {
        self.current == boot_id
    }

    pub(super) fn boots(&self) -> Vec<BootState> {
        let state = self.state();
        let boot = |boot: &Boot| BootState {
            boot_id: boot.boot_id.clone(),
            last_seq: boot.last.seq,
            acked_seq: boot.acked,
            current: boot.boot_id == self.current,
        };
        state.boots.iter().map(boot).collect()
    }

    pub(super) fn health(&self) -> Health {
        let state = self.state();
        let mut health = state.health.clone();
        health.unacked_records = state.boots.iter().map(|boot| boot.last.seq.saturating_sub(boot.acked)).sum();
        health.segments = state.boots.iter().map(|boot| boot.segments.len()).sum();
        health
    }
}

impl State {
    /// The running boot; it is always there and last.
    pub(super) fn current(&mut self) -> &mut Boot {
        self.boots.last_mut().expect("the running boot is made at open and never dropped")
    }

    pub(super) fn boot(&self, boot_id: &str) -> Option<&Boot> {
        self.boots.iter().find(|boot| boot.boot_id == boot_id)
    }
}
