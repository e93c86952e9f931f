//! The keeper: one small process a host that holds the layers' mounts and parents the shims.
//!
//! ```text
//!  host's mount namespace          the keeper's (private)              the shims' template (private)
//!    RUN_DIR/keeper.sock  <──bound──  tmpfs /                            tmpfs /
//!    layer directories    <──by fd──  /proc
//!                                     /layers/0, /layers/1 … EROFS
//!                                        │ open_tree(CLONE), by fd          │ fork, setns + unshare
//!                                        ▼                                  ▼
//!                                     whoever asked                       shim
//! ```
//!
//! * [`namespace`]: the two almost empty mount namespaces. Nothing of them shows in the host's mount table.
//! * [`layers`]: each layer mounted once, checked, cloned, released.
//! * [`program`]: it executes a copy of itself that nobody can change, first of all.
//! * [`spawn`]: from a request to a shim, which is a fork of it.
//! * [`maker`]: whoever makes the shim's namespaces meanwhile.
//! * [`server`]: one thread, one loop, no call that waits for anybody.
//!
//! # Who may die
//! * The agent: the keeper does not notice.
//! * The keeper: shims go on (they ask nothing of it, and no parent-death signal is set), and so does who makes namespaces for
//!   one, and so do their mounts, for a clone lives in the mount namespace it was attached to. A new keeper mounts layers again
//!   when they are asked for.
//! * A shim: it is reaped here; whoever holds its pidfd is told by the kernel.
//!
//! # What may be mounted
//! Regular files of the keeper's own user that nobody else can write, below the directories named at the start, reached
//! without a symbolic link. An EROFS image from elsewhere is never given to the kernel's parser.

mod cgroups;
mod layers;
mod maker;
mod namespace;
pub(crate) mod program;
mod server;
mod spawn;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::seccomp;
use crate::spec::Security;
use crate::sys::title::Title;

/// How a keeper is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Receives `keeper.sock` and `keeper.lock`; made (0700) when absent.
    pub run_dir: PathBuf,
    /// Layer files must lie below one of these. They must exist.
    pub layer_dirs: Vec<PathBuf>,
    /// Mount layers through loop devices even where the kernel mounts files.
    pub force_loop: bool,
    /// The control group below which all pods have theirs, relative to each hierarchy's root. Containers of a v1 host see
    /// none of their control groups without it.
    pub cgroup_parent: Option<String>,
    /// Digest of the program, when this process runs the copy that nobody changes. The keeper itself says so to itself.
    pub program: Option<String>,
}

impl Config {
    /// From the arguments after `keeper`: `--run-dir DIR --layer-dir DIR [--layer-dir DIR …] [--cgroup-parent NAME] [--force-loop]`.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, KeeperError> {
        let mut arguments = arguments.into_iter();
        let (mut run_dir, mut layer_dirs, mut force_loop, mut cgroup_parent) = (None, Vec::new(), false, None);
        let mut program = None;
        while let Some(argument) = arguments.next() {
            let name = argument.to_string_lossy().into_owned();
            let mut value = || arguments.next().map(PathBuf::from).ok_or(KeeperError::Usage { argument: name.clone() });
            match name.as_str() {
                "--run-dir" => run_dir = Some(value()?),
                "--layer-dir" => layer_dirs.push(value()?),
                "--cgroup-parent" => cgroup_parent = Some(value()?.to_string_lossy().into_owned()),
                "--force-loop" => force_loop = true,
                "--program" => program = Some(value()?.to_string_lossy().into_owned()),
                // Of no meaning: the shims' command lines are written there.
                "--room" => drop(value()?),
                _ => return Err(KeeperError::Usage { argument: name }),
            }
        }
        let run_dir = run_dir.ok_or(KeeperError::Usage { argument: "--run-dir".to_owned() })?;
        Ok(Self { run_dir, layer_dirs, force_loop, cgroup_parent, program })
    }
}

/// Why a keeper could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// An argument is unknown, or lacks its value.
    #[error(
        "argument {argument} is unknown, missing or without its value; usage: keeper --run-dir DIR --layer-dir DIR [--cgroup-parent NAME] [--force-loop]"
    )]
    Usage {
        /// Which.
        argument: String,
    },
    /// Another keeper runs.
    #[error("another keeper holds {path}")]
    AlreadyRunning {
        /// Its lock.
        path: PathBuf,
    },
    /// A step failed.
    #[error("{operation} failed")]
    Step {
        /// Which.
        operation: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Names the step that failed.
trait Step<T> {
    fn step(self, operation: impl Into<String>) -> Result<T, KeeperError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, operation: impl Into<String>) -> Result<T, KeeperError> {
        self.map_err(|error| KeeperError::Step { operation: operation.into(), source: error.into() })
    }
}

/// The whole of `nodeless-shim keeper ARGUMENTS…`: logs to standard error, serves, and comes back when told to end.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<(), KeeperError> {
    let config = Config::parse(arguments)?;
    forget_inherited()?;
    // Somebody who set one up already knows better.
    let _ = tracing_subscriber::fmt().with_writer(|| crate::sys::say::Unfailing).with_ansi(false).try_init();
    run(&config)
}

/// Closes what whoever started the process forgot to close: a keeper would hold it for as long as the host is up. Nothing
/// may be open yet but the standard streams.
pub fn forget_inherited() -> Result<(), KeeperError> {
    crate::sys::process::close_from(3).step("closing of inherited descriptors")
}

/// Runs a keeper until it is told to end (SIGTERM or SIGINT). The process must have one thread.
pub fn run(config: &Config) -> Result<(), KeeperError> {
    let Some(digest) = config.program.clone() else {
        // Only its failure returns.
        return program::execute_copy().map(|never| match never {});
    };
    crate::sys::failpoint::join();
    crate::sys::process::reset_signals().step("reset of signals")?;
    // Who makes a sandbox's namespaces is in its user namespace with the keeper's memory: whoever owns that namespace, as any
    // process of the host's root does, could look into it otherwise.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("dumpable")?;
    raise_descriptor_limit();
    spare_from_oom_killer();
    crate::sys::failpoint::failpoint!(KeeperStarted);
    // Whatever started it may go away, with its session and terminal; a leader already is as good.
    let _ = rustix::process::setsid();
    let listener = server::Listener::bind(&config.run_dir)?;
    let directories = layers::Directories::open(&config.layer_dirs)?;
    let loop_devices = layers::LoopDevices::open(config.force_loop);
    let null =
        openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open of the null device")?;
    let spaces = namespace::enter(config.cgroup_parent.as_deref())?;
    crate::sys::failpoint::failpoint!(KeeperIsolated);
    let title = Title::own().step("place of the own command line")?;
    let spawner = spawn::Spawner::new(spaces, null, title);
    // Every shim has it from here.
    let usual = Security::default();
    let _ = seccomp::program(&usual.seccomp, &usual.capabilities);
    let layers = layers::Layers::new(directories, loop_devices);
    server::Server::new(listener, layers, spawner, digest)?.serve()
}

/// Each mounted layer takes a descriptor: as many as the host allows, not the 1024 that select(2) once set.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(error = %errno, "limit of open files stays as it is");
    }
}

/// `oom_score_adj` of the keeper and its shims: the kubelet's own. A container's is never below -997, so that the kernel ends what
/// fills a host, and not the shim that would say so. (A pod's own limit has nothing to do with its shim: [`crate::cgroup`].)
const OOM_SCORE: &str = "-999";

/// For the keeper and all that it forks; containers' stubs set their own.
fn spare_from_oom_killer() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        // Needs CAP_SYS_RESOURCE, which some hosts' root lacks.
        tracing::warn!(%error, "short of memory, the kernel may end shims before what their pods run");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Config, KeeperError> {
        Config::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_all_known_and_complete() {
        let config = [
            &["--run-dir", "/r", "--layer-dir", "/a", "--layer-dir", "/b"][..],
            &["--cgroup-parent", "pods", "--force-loop"],
        ];
        let config = parse(&config.concat()).unwrap();
        assert_eq!(config.cgroup_parent.as_deref(), Some("pods"));
        assert_eq!(config.layer_dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert!(config.force_loop);
        for bad in
            [&["--layer-dir", "/a"][..], &["--run-dir"], &["--run-dir", "/r", "--what"], &["--run-dir", "/r", "x"]]
        {
            assert!(matches!(parse(bad), Err(KeeperError::Usage { .. })), "{bad:?}");
        }
    }
}
