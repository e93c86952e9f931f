//! Named steps at which a test kills a process that uses a store: whatever step it was, what is found afterwards is whole or gone.
//!
//! A step is one line, `failpoint!(RefSet)`, just after what its name says. In the shipped programs it is nothing at all: only the cargo
//! feature `failpoints` gives it a body. There, [`VARIABLE`] names a step and at which passing the process ends there as by SIGKILL, and
//! [`TRACE`] a directory, on the store's file system, that gets a log of all changes of files and the old files themselves: with it a test undoes what no
//! sync had made last, as a power cut would.

#[cfg(feature = "failpoints")]
mod armed;

#[cfg(feature = "failpoints")]
pub use armed::{Change, passed, read_trace};
#[cfg(feature = "failpoints")]
pub(crate) use armed::{created, dir_synced, pass, removing, renaming, synced};

#[cfg(not(feature = "failpoints"))]
pub(crate) use absent::{created, dir_synced, pass, removing, renaming, synced};

/// `STEP:N`: the process dies when it passes the step for the Nth time, from 1.
pub const VARIABLE: &str = "NODELESS_STORE_FAULT";
/// The directory for the log of changes.
pub const TRACE: &str = "NODELESS_STORE_TRACE";

macro_rules! points {
    ($($point:ident = $name:literal,)*) => {
        /// A step.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each is its name")]
        pub enum Point { $($point,)* }

        impl Point {
            /// All of them; a step's number is its place here.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// `where.what-was-just-done`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }
        }
    };
}

points! {
    // A store is opened.
    DirectoriesMade = "open.directories-made",
    Locked = "open.locked",
    FormatChecked = "open.format-checked",
    IngestSwept = "open.ingest-file-removed",
    HalfRemoved = "open.half-made-file-removed",
    Swept = "open.swept",
    SaltReady = "open.salt-ready",
    // A file comes in.
    IngestCreated = "ingest.created",
    IngestAbandoned = "ingest.abandoned",
    SmallWritten = "ingest.small-file-written",
    SmallSynced = "ingest.small-file-synced",
    Renamed = "ingest.renamed",
    Placed = "ingest.placed",
    // A layer is made.
    LayerStaged = "layer.staged",
    LowerLayersThere = "layer.lower-layers-there",
    LayerConverted = "layer.converted",
    LayerProtected = "commit.protected",
    LayerSynced = "commit.synced",
    OldLayerRemoved = "commit.old-layer-removed",
    LayerRecorded = "commit.recorded",
    LayerCommitted = "commit.done",
    LayerCopied = "commit.copied",
    // A name gets its meaning.
    ManifestKept = "ref.manifest-kept",
    ConfigKept = "ref.config-kept",
    EarlierRefRead = "ref.earlier-read",
    RefSet = "ref.set",
    RefTouched = "ref.touched",
    RefUnlinked = "ref.unlinked",
    RefRemoved = "ref.removed",
    ImageFound = "find.image-found",
    // Somebody needs layers.
    LeaseTaken = "lease.taken",
    LeaseHonoured = "lease.honoured",
    LeaseNotFound = "lease.none-found",
    LeaseDropped = "lease.dropped",
    // What nobody needs goes.
    RootsRead = "gc.roots-read",
    LayerSetAside = "gc.layer-set-aside",
    UnlinkSynced = "gc.unlink-synced",
    RecordUnlinked = "gc.record-unlinked",
    AsideRemoved = "gc.layer-removed",
    BlobUnlinked = "gc.blob-unlinked",
    Collected = "gc.done",
    NamesRanked = "evict.names-ranked",
    NameForgotten = "evict.name-forgotten",
    Evicted = "evict.done",
    // What is damaged is found and brought anew.
    LayerRead = "verify.layer-read",
    DamageFound = "verify.damage-found",
    DiscardBegun = "repair.begun",
    Discarded = "repair.discarded",
}

/// `failpoint!(RefSet)`: the step [`Point::RefSet`](crate::store::faults::Point) was reached.
macro_rules! failpoint {
    ($point:ident) => {
        $crate::store::faults::pass($crate::store::faults::Point::$point)
    };
}
pub(crate) use failpoint;

/// What the shipped programs have of it.
#[cfg(not(feature = "failpoints"))]
mod absent {
    use std::{fs::File, path::Path};

    use super::Point;

    #[inline(always)]
    pub(crate) const fn pass(_point: Point) {}
    #[inline(always)]
    pub(crate) const fn created(_file: &File) {}
    #[inline(always)]
    pub(crate) const fn synced(_file: &File) {}
    #[inline(always)]
    pub(crate) const fn renaming(_from: &Path, _to: &Path) {}
    #[inline(always)]
    pub(crate) const fn removing(_path: &Path) {}
    #[inline(always)]
    pub(crate) const fn dir_synced(_dir: &Path) {}
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_step_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        assert!(names.len() >= 40);
        for (number, point) in Point::ALL.iter().enumerate() {
            assert_eq!(*point as usize, number);
        }
    }
}
