//! The durable spool of usage records: written here before anything is believed, kept until vkubelet has stored it.
//!
//! # Disk layout
//! ```text
//! spool/lock                               held (flock) by the one agent that writes
//! spool/spare/00000012.seg                 the reserve: zero-filled files, so that a full disk does not stop metering
//! spool/boots/000003-<boot id>/acked       two slots: the highest acknowledged sequence number
//! spool/boots/000003-<boot id>/00000007.seg
//!     CCCCCCCC header {"schema":1,"host":…,"boot_id":…,"index":7,"first_seq":5001,"prev_hash":…}\n
//!     CCCCCCCC 5001 {record 5001}\n        CRC-32 of the rest of the line, first sequence number of its batch, canonical JSON
//!     CCCCCCCC 5001 {record 5002}\n        5001 and 5002 were written by one write and made durable by one fdatasync
//!     zeros to the end
//! ```
//!
//! # Rules
//! * One writer thread; what waits when it wakes becomes one batch: one write, one fdatasync, then all callers are answered.
//! * A batch is written only after the one before it is durable. So a bad line may be a torn write only if no later batch
//!   follows: then it is cut off. A bad line with a later batch behind it is damage: the rest is kept, readers stop there with
//!   an error that names it, new records go to a new segment, and the alarm ([`Health::damage`]) stays on.
//! * The newer segment decides: from its `first_seq` on, whatever an older segment holds does not count. That is how a failed
//!   fdatasync is survived: the file is given up for ever (the kernel may have dropped its pages), what was durable is read
//!   again from the disk, and the batch goes to a new file.
//! * Acknowledged segments are zeroed and become reserve, or are deleted; but never the running boot's last segment, nor one that holds the
//!   last record of an interval that is still open (it is what a restarted agent goes on from).
//! * Readers see durable records only.

mod ack;
mod disk;
mod error;
mod gauges;
mod index;
mod line;
mod open;
mod read;
mod reserve;
mod scan;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use agent_api::usage::UsageRecord;
use tokio::sync::oneshot;

pub use disk::{Disk, RealDisk, SegmentFile};
pub use error::{AckError, AppendError, OpenError, ReadError};
pub use gauges::SpoolGauges;
pub use index::{BootState, Damage, Health};
pub use read::{Batch, Reader};

use index::Shared;
use writer::Command;

/// Where and how the spool is kept.
#[derive(Debug, Clone)]
pub struct SpoolConfig {
    /// The spool's directory; made when absent.
    pub dir: PathBuf,
    /// This host's id.
    pub host: String,
    /// The running kernel's boot id.
    pub boot_id: String,
    /// Size of one segment file in bytes.
    pub segment_bytes: u64,
    /// Segments kept ready, already allocated, for a full disk.
    pub reserve_segments: usize,
}

impl SpoolConfig {
    /// The defaults: segments of 1 MiB, 32 of them in reserve (some 35,000 records).
    pub fn new(dir: PathBuf, host: String, boot_id: String) -> Self {
        Self { dir, host, boot_id, segment_bytes: 1 << 20, reserve_segments: 32 }
    }
}

/// What the running boot's records say about this host's intervals.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The last record of each interval that has not been closed.
    pub open: Vec<UsageRecord>,
    /// The closing records that are still in the spool.
    pub closed: Vec<UsageRecord>,
}

/// The spool. Cheap to clone; the writer thread ends when the last clone is gone and what was enqueued is durable.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Shared>,
    commands: std::sync::mpsc::Sender<Command>,
}

impl Spool {
    /// Opens the spool, cuts a torn tail, takes stock of damage, fills the reserve and starts the writer.
    /// Blocking; to be called once at the agent's start.
    pub fn open(config: SpoolConfig) -> Result<(Self, Recovered), OpenError> {
        Self::open_on(config, Arc::new(RealDisk))
    }

    /// As [`open`](Self::open), with the file operations given (fault tests).
    pub fn open_on(config: SpoolConfig, disk: Arc<dyn Disk>) -> Result<(Self, Recovered), OpenError> {
        let (writer, shared, recovered) = open::open(config, disk)?;
        let (commands, inbox) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("usage-spool".into())
            .spawn(move || writer.run(inbox))
            .map_err(OpenError::StartWriter)?;
        Ok((Self { shared, commands }, recovered))
    }

    /// Hands records to the writer in the order of the calls and returns at once; the future answers when they are durable.
    /// `seq`, `prev_hash` and `hash` are filled in by the writer. Dropping the future does not take the records back.
    pub fn enqueue(&self, records: Vec<UsageRecord>) -> Pending {
        let (reply, answer) = oneshot::channel();
        if let Err(unsent) = self.commands.send(Command::Append { records, reply })
            && let Command::Append { reply, .. } = unsent.0
        {
            let _ = reply.send(Err(AppendError::WriterGone));
        }
        Pending { answer }
    }

    /// The boots of which records are held, oldest first; the running one is last.
    pub fn boots(&self) -> Vec<BootState> {
        self.shared.boots()
    }

    /// Reads the durable records of a boot after `after`, in order; with `follow` (running boot only) the reader then waits for new ones.
    pub fn read(&self, boot_id: &str, after: u64, follow: bool) -> Reader {
        Reader::new(Arc::clone(&self.shared), boot_id.to_owned(), after, follow)
    }

    /// Records of `boot_id` up to and including `seq` are stored elsewhere; returns when that is durable here.
    /// Repeating it, or going back, changes nothing.
    pub async fn ack(&self, boot_id: &str, seq: u64) -> Result<(), AckError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Ack { boot_id: boot_id.to_owned(), seq, reply };
        self.commands.send(command).map_err(|_| AckError::WriterGone)?;
        answer.await.unwrap_or(Err(AckError::WriterGone))
    }

    /// Figures and alarms.
    pub fn health(&self) -> Health {
        self.shared.health()
    }
}

/// Records on their way to the disk.
#[derive(Debug)]
pub struct Pending {
    answer: oneshot::Receiver<Result<u64, AppendError>>,
}

impl Future for Pending {
    /// The sequence number of the last record.
    type Output = Result<u64, AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or(Err(AppendError::WriterGone)))
    }
}
