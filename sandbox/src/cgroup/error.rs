//! What can go wrong with control groups.

use std::io;
use std::path::PathBuf;

use super::Controller;

/// Why a control group operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host has no usable control group hierarchy.
    #[error("no control group hierarchy is mounted under {root}")]
    NoHierarchy {
        /// Where it was looked for.
        root: PathBuf,
    },
    /// A hierarchy's directory could not be opened.
    #[error("open of control group hierarchy {path} failed")]
    OpenHierarchy {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name cannot be that of a cgroup.
    #[error("{name:?} cannot name a control group")]
    BadName {
        /// The name.
        name: String,
    },
    /// A cgroup does not exist (asked and answered).
    #[error("control group {name} does not exist")]
    NotFound {
        /// Its name below its parent.
        name: String,
    },
    /// A cgroup could not be made.
    #[error("creation of control group {name} failed")]
    Create {
        /// Its name below its parent.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A cgroup could not be opened.
    #[error("open of control group {name} failed")]
    Open {
        /// Its name below its parent.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file could not be written.
    #[error("write of {value:?} to {file} failed")]
    Write {
        /// File name in the cgroup's directory.
        file: String,
        /// What was written.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file could not be read.
    #[error("read of {file} failed")]
    Read {
        /// File name in the cgroup's directory.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file did not hold what the kernel documents.
    #[error("{file} holds {content:?}, which is not what it should")]
    Unreadable {
        /// File name in the cgroup's directory.
        file: String,
        /// Its beginning.
        content: String,
    },
    /// A limit was asked whose controller this host lacks.
    #[error("a {controller} limit was asked, but this host has no {controller} controller")]
    ControllerMissing {
        /// The controller.
        controller: Controller,
    },
    /// A limit is outside what the kernel takes.
    #[error("{what} of {value} is outside {allowed}")]
    OutOfRange {
        /// Which limit.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The range.
        allowed: &'static str,
    },
    /// A device rule has a number that no device can have.
    #[error("a device rule has a number that no device can have (majors to 4095, minors to 1048575)")]
    NoSuchDevice,
    /// A device program was refused by the kernel.
    #[error("{step} of a device program failed")]
    DeviceProgram {
        /// Which step.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A cgroup's directory could not be listed.
    #[error("listing of control group {name} failed")]
    List {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process of a cgroup could not be signalled.
    #[error("kill of process {pid} failed")]
    Kill {
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A cgroup still had processes when the deadline passed.
    #[error("control group {name} is still in use after {waited_ms} ms")]
    StillInUse {
        /// Its name below its parent.
        name: String,
        /// How long it was tried.
        waited_ms: u64,
    },
    /// A cgroup could not be removed.
    #[error("removal of control group {name} failed")]
    Remove {
        /// Its name below its parent.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    /// It was asked, and it is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Trying again may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::StillInUse { .. })
    }
}
