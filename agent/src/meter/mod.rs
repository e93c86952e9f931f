//! The meter: what every sandbox on this host holds, from the instant it is held until it is released.
//!
//! ```text
//! start ──> [start record durable] ──> tick, tick, tick … (one batch for all, every 10 s) ──> stop ──> [stop record durable]
//!   agent gone meanwhile, sandbox lives:   adopt() goes on with the same interval: no gap
//!   agent gone meanwhile, sandbox ended:   adopt() closes it with a reconcile record at its true release time
//!   host gone (another boot id):           no record; whoever reads closes it at its last durable record
//! ```
//! A start is durable before [`Meter::start`] returns, so nothing is held that the spool does not know; a stop is durable
//! before [`Meter::stop`] returns, so nothing that was released is billed on. After a crash of the host the customer is billed
//! to the last durable tick: at most one tick less, never more.
//!
//! All times come from one [`Clock`] (CLOCK_BOOTTIME, which goes on in suspend; wall time is only a label). Records enter the
//! [spool](crate::spool) in the order of their instants for each sandbox: instant and place in the queue are taken under one lock.
//!
//! The meter knows no pods, cgroups or wire: who uses what comes through [`UsedNow`]'s provider, [`UsedProvider`].

mod book;
mod clock;
mod error;
mod interval;
#[cfg(test)]
mod model;
mod ticker;
mod used;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use clock::{Clock, Instant, SystemClock, boot_id};
pub use error::MeterError;
pub use interval::{Adopted, Interval, LiveInterval, LiveView, Released, StartedAt, StoppedAt};
pub use used::{UsedNow, UsedProvider};

use crate::spool::{Recovered, Spool, SpoolConfig};
use agent_api::usage::Held;
use book::{Begin, Book, End, Resize};

/// What the meter needs to know.
#[derive(Debug, Clone)]
pub struct MeterConfig {
    /// The spool's directory.
    pub spool_dir: PathBuf,
    /// This host's id.
    pub host_id: String,
    /// Time between two proofs that a sandbox is still held; the most that a customer is billed too little after a crash of the host.
    pub tick: Duration,
}

impl MeterConfig {
    /// A tick every 10 s.
    pub fn new(spool_dir: PathBuf, host_id: String) -> Self {
        Self { spool_dir, host_id, tick: Duration::from_secs(10) }
    }
}

/// The meter of this host.
#[derive(Debug)]
pub struct Meter {
    tick: Duration,
    clock: Arc<dyn Clock>,
    used: Arc<dyn UsedProvider>,
    spool: Spool,
    book: Mutex<Book>,
}

impl Meter {
    /// Opens the spool of the running boot. Blocking; then [`adopt`](Self::adopt) what lives, and let [`run`](Self::run) tick.
    pub fn open(config: MeterConfig, used: Arc<dyn UsedProvider>) -> Result<Self, MeterError> {
        let boot_id = boot_id().map_err(MeterError::BootId)?;
        let spool = SpoolConfig::new(config.spool_dir, config.host_id, boot_id);
        Self::open_with(spool, config.tick, Arc::new(SystemClock), used)
    }

    /// As [`open`](Self::open), with boot id, segment sizes and clock given (tests).
    pub fn open_with(
        spool: SpoolConfig,
        tick: Duration,
        clock: Arc<dyn Clock>,
        used: Arc<dyn UsedProvider>,
    ) -> Result<Self, MeterError> {
        let (host, boot_id) = (spool.host.clone(), spool.boot_id.clone());
        let (spool, recovered) = Spool::open(spool).map_err(MeterError::OpenSpool)?;
        Ok(Self::on(spool, recovered, host, boot_id, tick, clock, used))
    }

    fn on(
        spool: Spool,
        recovered: Recovered,
        host: String,
        boot_id: String,
        tick: Duration,
        clock: Arc<dyn Clock>,
        used: Arc<dyn UsedProvider>,
    ) -> Self {
        let book = Mutex::new(Book::new(host, boot_id, recovered));
        Self { tick, clock, used, spool, book }
    }

    /// The spool behind the meter, for the wire.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Resources are held from now on. Durable when it returns; only then may the sandbox be prepared.
    /// Repeating it for an open interval answers with that interval's start.
    pub async fn start(&self, interval: Interval) -> Result<StartedAt, MeterError> {
        let sandbox_id = interval.sandbox_id.clone();
        let (pending, started) = {
            let mut book = self.book();
            match book.begin(interval, self.clock.now())? {
                // Nothing to write; the queue is in order, so what the first call enqueued has been dealt with when this returns.
                Begin::Already(started) => (self.spool.enqueue(Vec::new()), started),
                Begin::Record(record, started) => (self.spool.enqueue(vec![*record]), started),
            }
        };
        // A caller that goes away leaves an open interval behind: its record is on its way, and each tick repeats it.
        let settle = Settle { book: &self.book, sandbox_id: &sandbox_id, how: Book::began };
        let result = pending.await;
        drop(settle.instead(if result.is_ok() { Book::began } else { Book::not_begun }));
        result.map(|_| started).map_err(|source| MeterError::Append { sandbox_id, source })
    }

    /// Another amount is held from now on. Durable when it returns. Asking for what is held already changes nothing.
    pub async fn resize(&self, sandbox_id: &str, held: Held) -> Result<StartedAt, MeterError> {
        let used = self.used.used(sandbox_id).await;
        let (pending, at) = {
            let mut book = self.book();
            match book.resize(sandbox_id, held, self.clock.now(), used)? {
                Resize::Already(started) => return Ok(started),
                Resize::Records(records, at) => (self.spool.enqueue(records), at),
            }
        };
        // A caller that goes away leaves a change behind whose records are on their way.
        let settle = Settle { book: &self.book, sandbox_id, how: Book::resized };
        let result = pending.await;
        drop(settle.instead(if result.is_ok() { Book::resized } else { Book::not_resized }));
        result.map(|_| at).map_err(|source| MeterError::Append { sandbox_id: sandbox_id.to_owned(), source })
    }

    /// Resources were released now. Durable when it returns. `used`: the last figures, when the caller could still take them.
    /// Repeating it answers with the first release; after an error the release keeps its instant and the call is to be repeated.
    pub async fn stop(&self, sandbox_id: &str, used: Option<UsedNow>) -> Result<StoppedAt, MeterError> {
        let (pending, stopped) = {
            let mut book = self.book();
            match book.end(sandbox_id, self.clock.now(), used)? {
                End::Already(stopped) => return Ok(stopped),
                End::Record(record, stopped) => (self.spool.enqueue(vec![*record]), stopped),
            }
        };
        // A caller that goes away leaves a release behind that may be repeated, at the same instant.
        let settle = Settle { book: &self.book, sandbox_id, how: Book::not_ended };
        let result = pending.await;
        drop(settle);
        if result.is_ok() {
            self.book().ended(sandbox_id, stopped);
        }
        result.map(|_| stopped).map_err(|source| MeterError::Append { sandbox_id: sandbox_id.to_owned(), source })
    }

    /// After a restart of the agent: `live` sandboxes go on with their intervals; every other interval that the spool has open is
    /// closed, at its time in `ended` when it is there (never before its last proof, never in the future), else at its last proof.
    pub async fn adopt(&self, live: &[String], ended: &[Released]) -> Result<Adopted, MeterError> {
        let live: BTreeSet<&str> = live.iter().map(String::as_str).collect();
        let (pending, adopted) = {
            let mut book = self.book();
            let (records, adopted) = book.adopt(&live, ended, self.clock.now());
            if records.is_empty() {
                return Ok(adopted);
            }
            (self.spool.enqueue(records), adopted)
        };
        let result = pending.await;
        let mut book = self.book();
        for (sandbox_id, stopped) in &adopted.reconciled {
            match &result {
                Ok(_) => book.ended(sandbox_id, *stopped),
                Err(_) => book.not_ended(sandbox_id),
            }
        }
        result.map(|_| adopted).map_err(|source| MeterError::Reconcile { source })
    }

    /// What is held at this nanosecond, and what it has used.
    pub async fn live(&self) -> LiveView {
        self.sample().await;
        self.book().live(self.clock.now())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the book how a record on its way ended, also when the caller's future is dropped.
struct Settle<'a> {
    book: &'a Mutex<Book>,
    sandbox_id: &'a str,
    how: fn(&mut Book, &str),
}

impl Settle<'_> {
    fn instead(mut self, how: fn(&mut Book, &str)) -> Self {
        self.how = how;
        self
    }
}

impl Drop for Settle<'_> {
    fn drop(&mut self) {
        (self.how)(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner), self.sandbox_id);
    }
}
