//! Named steps at which a test kills a process: between any two of them a crash must leave each sandbox whole or gone.
//!
//! A step is one line, `failpoint!(SlotClaimed)`, just after what its name says. In the shipped programs it is nothing at
//! all: only the cargo feature `failpoints` gives it a body. There, a test writes into a small file which step is armed
//! ([`ARMED`] and what follows it), and every process that is part of a sandbox has that file mapped: the agent's side and
//! the keeper by the environment variable [`VARIABLE`], a shim and its stubs by the name [`FILE`] in the run directory,
//! three levels above their record directory. Who passes the armed step for the nth time ends there as by SIGKILL, or holds
//! still until the test has killed somebody else.
//!
//! The file is an array of 32-bit words in the machine's order.

#[cfg(feature = "failpoints")]
mod armed;

#[cfg(feature = "failpoints")]
pub(crate) use armed::{join, join_beside, pass};

/// Names the file, for the agent's side and the keeper.
pub const VARIABLE: &str = "NODELESS_FAILPOINTS";
/// The file's name in RUN_DIR.
pub const FILE: &str = "failpoints";
/// Words of the file.
pub const WORDS: usize = 512;
/// Word: the armed step's number and one; 0 for none. Written last.
pub const ARMED: usize = 0;
/// Word: at which passing, from 1.
pub const COUNTDOWN: usize = 1;
/// Word: [`DIE`] or [`HOLD`].
pub const ACTION: usize = 2;
/// Word: 0, then 1 when the step was reached, then 2 (by the test) when who holds still may go on.
pub const REACHED: usize = 3;
/// Word: the number of the slot whose shim or stub reached it; 0 for the agent's side and the keeper.
pub const SLOT: usize = 4;
/// First of a word for each step: how often it was passed.
pub const PASSED: usize = 8;
/// First of a word for each step: how often somebody was stopped at it.
pub const STOPPED: usize = 8 + 128;
/// Value of [`ACTION`]: ends as by SIGKILL.
pub const DIE: u32 = 1;
/// Value of [`ACTION`]: waits, while the test kills another.
pub const HOLD: u32 = 2;

macro_rules! points {
    ($($point:ident = $name:literal,)*) => {
        /// A step.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each is its name")]
        pub enum Point { $($point,)* }

        impl Point {
            /// All of them; a step's number is its place here.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// `whose.what-was-just-done`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }
        }
    };
}

points! {
    // The agent's side: a warm slot is made.
    SlotClaimed = "agent.slot-claimed",
    SlotDirectoryMade = "agent.slot-directory-made",
    SlotRecorded = "agent.slot-recorded",
    PodGroupBegun = "agent.pod-group-begun",
    ShimAsked = "agent.shim-asked",
    PodGroupMade = "agent.pod-group-made",
    RecordDirectoryMade = "agent.record-directory-made",
    SocketBound = "agent.socket-bound",
    ShimSupplied = "agent.shim-supplied",
    FirstLeafMade = "agent.first-leaf-made",
    ShimSpawned = "agent.shim-spawned",
    ShimGreeted = "agent.shim-greeted",
    // … and used.
    SlotChosen = "agent.slot-chosen",
    SlotTaken = "agent.slot-taken",
    AheadMade = "agent.ahead-made",
    AheadAnswered = "agent.ahead-answered",
    AheadMoved = "agent.ahead-moved",
    LogDirectoryMade = "agent.log-directory-made",
    SpecRecorded = "agent.spec-recorded",
    ShimConfigured = "agent.shim-configured",
    LayersReceived = "agent.layers-received",
    SourcesOpened = "agent.sources-opened",
    RoomMade = "agent.room-made",
    RoomMounted = "agent.room-mounted",
    StartAnswered = "agent.start-answered",
    ExecAnswered = "agent.exec-answered",
    // … and cleared.
    DestroyBegun = "agent.destroy-begun",
    ShutdownAnswered = "agent.shutdown-answered",
    GroupsRemoved = "agent.groups-removed",
    DirectoryTrashed = "agent.directory-trashed",
    TrashEmptied = "agent.trash-emptied",
    SlotReleased = "agent.slot-released",
    // … and found again.
    LockTaken = "agent.lock-taken",
    RecoveryBegun = "agent.recovery-begun",
    SandboxesRead = "agent.sandboxes-read",
    WarmAdopted = "agent.warm-adopted",
    OrphanFound = "agent.orphan-found",
    Recovered = "agent.recovered",
    // The keeper.
    KeeperStarted = "keeper.started",
    KeeperLocked = "keeper.locked",
    KeeperNamed = "keeper.named",
    KeeperIsolated = "keeper.isolated",
    LayerOpened = "keeper.layer-opened",
    LayerMounted = "keeper.layer-mounted",
    LayerAttached = "keeper.layer-attached",
    LayersCloned = "keeper.layers-cloned",
    LayerReleased = "keeper.layer-released",
    SpawnRead = "keeper.spawn-read",
    MakerForked = "keeper.maker-forked",
    IdsMapped = "keeper.ids-mapped",
    ShimForked = "keeper.shim-forked",
    ShimReaped = "keeper.shim-reaped",
    // Its child, on the way to being a shim.
    ChildGrouped = "child.grouped",
    ChildIsolated = "child.isolated",
    ChildExecuting = "child.executing",
    // The shim.
    ShimBegun = "shim.begun",
    ShimRooted = "shim.rooted",
    HistoryOpened = "shim.history-opened",
    NamespacesEntered = "shim.namespaces-entered",
    StubReady = "shim.stub-ready",
    ConfigureBegun = "shim.configure-begun",
    Configured = "shim.configured",
    LogMade = "shim.log-made",
    AheadAssembled = "shim.ahead-assembled",
    StubOrdered = "shim.stub-ordered",
    ContainerLeafMade = "shim.container-leaf-made",
    LimitsApplied = "shim.limits-applied",
    StubForked = "shim.stub-forked",
    ReportRead = "shim.report-read",
    StartRecorded = "shim.start-recorded",
    StartTold = "shim.start-told",
    ExecForked = "shim.exec-forked",
    EndSeen = "shim.end-seen",
    LogDrained = "shim.log-drained",
    ContainerLeafRemoved = "shim.container-leaf-removed",
    ExitRecorded = "shim.exit-recorded",
    ShutdownBegun = "shim.shutdown-begun",
    LastChildGone = "shim.last-child-gone",
    ShutdownTold = "shim.shutdown-told",
    // The stub.
    StubGrouped = "stub.grouped",
    StubCommanded = "stub.commanded",
    RootAssembled = "stub.root-assembled",
    MountsMade = "stub.mounts-made",
    PathsMasked = "stub.paths-masked",
    RootEntered = "stub.root-entered",
    UserEntered = "stub.user-entered",
    StubExecuting = "stub.executing",
}

/// The step was reached.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) const fn pass(_point: Point) {}

/// Maps the file that [`VARIABLE`] names.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) const fn join() {}

/// Maps the file [`FILE`], three levels above a shim's record directory; `slot` is the shim's own name.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) const fn join_beside(_record: &std::os::fd::OwnedFd, _slot: &str) {}

/// `failpoint!(SlotClaimed)`: the step [`Point::SlotClaimed`](crate::sys::failpoint::Point) was reached.
macro_rules! failpoint {
    ($point:ident) => {
        $crate::sys::failpoint::pass($crate::sys::failpoint::Point::$point)
    };
}
pub(crate) use failpoint;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_step_has_a_name_of_its_own_and_room_in_the_file() {
        let names: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        assert!(Point::ALL.len() >= 40);
        const { assert!(Point::ALL.len() <= STOPPED - PASSED && STOPPED + Point::ALL.len() <= WORDS) };
        for (number, point) in Point::ALL.iter().enumerate() {
            assert_eq!(*point as usize, number);
        }
    }
}
