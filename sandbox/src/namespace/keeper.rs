//! The keeper as the backend sees it: started when it does not answer, asked over one connection.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use tokio::sync::Mutex;

use super::client::{Client, Delivered, Listener, connect_in};
use super::slots::{blocking, io_failed};
use super::wire::KeeperWire;
use super::{Config, reset};
use crate::contract::SandboxError;
use crate::keeper::program::digest;
use crate::protocol::keeper::{Reply, Request, Spawn};
use crate::protocol::{Connection, VERSIONS};
use crate::spec::Layer;
use crate::sys::place;

/// How often a keeper that went away is looked for again, and how long after.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);
/// How long a new keeper may take to listen.
const START: Duration = Duration::from_secs(10);

/// The host's keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(super) config: Config,
    pub(super) client: Mutex<Option<Client<KeeperWire>>>,
    /// Digest of the program that its shims run; `None` before the first answer, and of keepers that do not say.
    program: std::sync::Mutex<Option<String>>,
    /// Its process; 0 before the first answer.
    pid: AtomicI32,
    /// The keeper that was there first has been looked at.
    checked: AtomicBool,
}

impl Keeper {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            client: Mutex::new(None),
            program: std::sync::Mutex::default(),
            checked: AtomicBool::new(false),
            pid: AtomicI32::new(0),
        }
    }

    /// Digest of the program that shims run which are started now.
    pub(crate) async fn program(&self) -> Result<Option<String>, SandboxError> {
        let known = || self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known().is_none() {
            self.search().await?;
        }
        Ok(known())
    }

    /// Makes sure that a keeper answers.
    pub(crate) async fn search(&self) -> Result<(), SandboxError> {
        self.call("search for the keeper", || Request::Ping, Vec::new).await.map(drop)
    }

    /// Detached clones of the layers' mounts.
    pub(crate) async fn mount(&self, layers: &[Layer]) -> Result<Vec<OwnedFd>, SandboxError> {
        let request = || Request::Mount { layers: layers.to_vec() };
        let delivered = self.call("mount of image layers", request, Vec::new).await?;
        if delivered.fds.len() != layers.len() {
            return Err(unexpected("mount of image layers"));
        }
        Ok(delivered.fds)
    }

    /// Identities of the layers that are mounted.
    pub(crate) async fn mounted(&self) -> Result<Vec<String>, SandboxError> {
        let operation = "listing of mounted layers";
        match self.call(operation, || Request::List, Vec::new).await?.reply {
            Reply::Listed { layers, .. } => Ok(layers),
            _ => Err(unexpected(operation)),
        }
    }

    /// Forgets layers.
    pub(crate) async fn release(&self, ids: &[String]) -> Result<(), SandboxError> {
        let request = || Request::Release { ids: ids.to_vec() };
        self.call("release of image layers", request, Vec::new).await.map(drop)
    }

    /// The keeper, ready to be asked for shims.
    pub(crate) async fn ready(&self) -> Result<Ready, SandboxError> {
        let client = self.client().await?;
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Ready { client, pid: Pid::from_raw(self.pid.load(Ordering::Relaxed)), program })
    }

    /// Asks; again, of a new keeper, when the connection was found dead. A keeper on its way out still takes connections for
    /// a moment, so that may have to be found out more than once.
    async fn call(
        &self,
        operation: &str,
        request: impl Fn() -> Request,
        fds: impl Fn() -> Vec<OwnedFd>,
    ) -> Result<Delivered<Reply>, SandboxError> {
        let (mut tries, deadline) = (0, Instant::now() + START);
        loop {
            let asked = match self.client().await {
                Ok(client) => client.call(operation, request(), fds()).await,
                Err(error) => Err(error),
            };
            match asked {
                Err(SandboxError::Unavailable { .. }) if tries < TRIES && Instant::now() < deadline => tries += 1,
                other => return other,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn client(&self) -> Result<Client<KeeperWire>, SandboxError> {
        let mut held = self.client.lock().await;
        if let Some(client) = held.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let unavailable =
            |source| SandboxError::Unavailable { operation: "connection to the keeper".to_owned(), source };
        let (connection, found) = match connect_in(&self.config.run_dir, "keeper.sock") {
            Ok(connection) => (connection, true),
            Err(_) => (self.start().await.map_err(unavailable)?, false),
        };
        let mut greeted = greet(connection).await?;
        // Once: a file that changes under a running agent is for the next agent to follow.
        if !self.checked.swap(true, Ordering::Relaxed) && found && self.is_another(greeted.program.clone()).await? {
            tracing::info!(pid = greeted.pid, "a keeper of another program is replaced; its shims go on");
            blocking(move || reset::end(greeted.pid)).await?.map_err(unavailable)?;
            greeted = greet(self.start().await.map_err(unavailable)?).await?;
        }
        self.pid.store(i32::try_from(greeted.pid).unwrap_or(0), Ordering::Relaxed);
        *self.program.lock().unwrap_or_else(PoisonError::into_inner) = greeted.program;
        *held = Some(greeted.client.clone());
        Ok(greeted.client)
    }

    /// Whether a keeper runs another program than one that would be started now.
    async fn is_another(&self, program: Option<String>) -> Result<bool, SandboxError> {
        let path = self.config.shim_program.clone();
        let digest = blocking(move || std::fs::File::open(path).and_then(|mut file| digest(&mut file))).await?;
        let digest = digest.map_err(|error| io_failed("reading of the shims' program", error))?;
        Ok(program != Some(digest))
    }

    /// Starts a keeper and waits until it listens. It outlives this process.
    async fn start(&self) -> std::io::Result<Connection> {
        let mut child = Command::new(&self.config.shim_program)
            .arg("keeper")
            .arg("--run-dir")
            .arg(&self.config.run_dir)
            .args(
                self.config.layer_dirs.iter().flat_map(|directory| [OsStr::new("--layer-dir"), directory.as_os_str()]),
            )
            .args(["--cgroup-parent", &self.config.cgroup_parent])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        tracing::info!(pid = child.id(), "started a keeper");
        let deadline = Instant::now() + START;
        loop {
            match connect_in(&self.config.run_dir, "keeper.sock") {
                Ok(connection) => {
                    // As long as this process lives it must collect the keeper's end.
                    std::thread::spawn(move || child.wait());
                    return Ok(connection);
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = child.try_wait()? {
                return Err(std::io::Error::other(format!("the keeper ended with {status}")));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A keeper that can be asked without waiting for it.
#[derive(Debug)]
pub(crate) struct Ready {
    client: Client<KeeperWire>,
    pid: Option<Pid>,
    /// Digest of the program that its shims run.
    pub(crate) program: Option<String>,
}

impl Ready {
    /// Has a shim started, at once; its process, and the descriptor of it. `awaited`: somebody waits for it. Never asked twice: a keeper that died over it may have
    /// started the shim, and whoever asks clears the slot away when told `Unavailable`, and may try again with another.
    pub(crate) fn spawn(
        &self,
        spawn: Spawn,
        fds: Vec<OwnedFd>,
        awaited: bool,
    ) -> impl Future<Output = Result<(u32, Option<OwnedFd>), SandboxError>> + Send + use<> {
        if awaited && let Some(keeper) = self.pid {
            // The caller goes on with what the shim needs.
            place::elsewhere(keeper);
        }
        let asked = self.client.call("start of a shim", Request::Spawn(spawn), fds);
        async move {
            let delivered = asked.await?;
            match delivered.reply {
                Reply::Spawned { pid } => Ok((pid, delivered.fds.into_iter().next())),
                _ => Err(unexpected("start of a shim")),
            }
        }
    }
}

/// A keeper that has answered.
struct Greeted {
    client: Client<KeeperWire>,
    pid: u32,
    program: Option<String>,
}

async fn greet(connection: Connection) -> Result<Greeted, SandboxError> {
    let unavailable = |source| SandboxError::Unavailable { operation: "connection to the keeper".to_owned(), source };
    let client = Client::new(connection, Listener::Nobody).map_err(unavailable)?;
    match client.call("greeting of the keeper", Request::Hello { versions: VERSIONS }, vec![]).await?.reply {
        Reply::Hello { version, pid, program } => {
            tracing::debug!(version, pid, "connected to the keeper");
            Ok(Greeted { client, pid, program })
        }
        _ => Err(unexpected("greeting of the keeper")),
    }
}

pub(crate) fn unexpected(operation: &str) -> SandboxError {
    SandboxError::Failed { operation: operation.to_owned(), message: "an answer to something else came".to_owned() }
}
