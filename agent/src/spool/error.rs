//! Why an operation of the spool failed.

use std::io;
use std::path::PathBuf;

/// Why the spool could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory could not be made.
    #[error("make spool directory {}", path.display())]
    MakeDirectory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something could not be read.
    #[error("read {} of the spool", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something could not be written.
    #[error("write {} of the spool", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent has this spool.
    #[error("spool {} is in use by another agent", path.display())]
    InUse {
        /// The spool's directory.
        path: PathBuf,
    },
    /// The spool belongs to another host.
    #[error("segment {} belongs to host {found}, not to {expected}", path.display())]
    OtherHost {
        /// The segment.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// This host.
        expected: String,
    },
    /// The boot id cannot be a directory's name.
    #[error("boot id {boot_id:?} is not a name")]
    BootId {
        /// What was given.
        boot_id: String,
    },
    /// The writer thread could not be started.
    #[error("start the spool's writer thread")]
    StartWriter(#[source] io::Error),
}

/// Why records are not known to be durable. They may come to light after a restart all the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// No segment could be started: no spare left and no room for another file.
    #[error("start usage segment {}", path.display())]
    StartSegment {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::sync::Arc<io::Error>,
    },
    /// Writing or fdatasync failed on a fresh segment too.
    #[error("write usage segment {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::sync::Arc<io::Error>,
    },
    /// More than fits into one segment.
    #[error("{bytes} bytes of usage records do not fit into a segment of {segment_bytes}")]
    TooLarge {
        /// Asked.
        bytes: usize,
        /// A segment's size.
        segment_bytes: u64,
    },
    /// The writer thread has ended.
    #[error("the spool's writer has ended")]
    WriterGone,
}

/// Why records could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No such boot here.
    #[error("no usage records of boot {boot_id} are held")]
    UnknownBoot {
        /// Which.
        boot_id: String,
    },
    /// Acknowledged and dropped.
    #[error("usage records of boot {boot_id} after {after} are gone, the first held is {first}")]
    Gone {
        /// Which boot.
        boot_id: String,
        /// Asked for.
        after: u64,
        /// The first that is still held.
        first: u64,
    },
    /// Asked for records that do not exist yet.
    #[error("usage record {after} of boot {boot_id} does not exist, the last is {last}")]
    Ahead {
        /// Which boot.
        boot_id: String,
        /// Asked for.
        after: u64,
        /// The last durable one.
        last: u64,
    },
    /// The records behind this one were destroyed.
    #[error("usage records of boot {boot_id} after {after} are damaged in {}", path.display())]
    Damaged {
        /// Which boot.
        boot_id: String,
        /// The last good one.
        after: u64,
        /// The segment.
        path: PathBuf,
    },
    /// The segment could not be read.
    #[error("read usage segment {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ReadError {
    /// Records that were promised are gone or damaged: a human must act. The others may pass, or are the caller's mistake.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Gone { .. } | Self::Ahead { .. } | Self::Damaged { .. })
    }
}

/// Why an acknowledgement was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AckError {
    /// No such boot here; an old boot that was acknowledged wholly is gone, and that is success.
    #[error("usage record {seq} of boot {boot_id} does not exist, the last is {last}")]
    Ahead {
        /// Which boot.
        boot_id: String,
        /// Asked.
        seq: u64,
        /// The last durable one.
        last: u64,
    },
    /// Could not be made durable.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The writer thread has ended.
    #[error("the spool's writer has ended")]
    WriterGone,
}
