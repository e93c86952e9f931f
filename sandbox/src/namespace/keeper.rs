//! The keeper as the backend sees it: started when it does not answer, asked over one connection.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::Config;
use super::client::{Client, Delivered, KeeperWire, connect_in};
use crate::contract::SandboxError;
use crate::protocol::VERSIONS;
use crate::protocol::keeper::{Reply, Request, Spawn};
use crate::spec::Layer;

/// How long a new keeper may take to listen.
const START: Duration = Duration::from_secs(10);

/// The host's keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(super) config: Config,
    pub(super) client: Mutex<Option<Client<KeeperWire>>>,
}

impl Keeper {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, client: Mutex::new(None) }
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

    /// Forgets layers.
    pub(crate) async fn release(&self, ids: &[String]) -> Result<(), SandboxError> {
        let request = || Request::Release { ids: ids.to_vec() };
        self.call("release of image layers", request, Vec::new).await.map(drop)
    }

    /// Starts a shim; its process, and the descriptor of it.
    pub(crate) async fn spawn(
        &self,
        spawn: &Spawn,
        fds: impl Fn() -> Vec<OwnedFd>,
    ) -> Result<(u32, Option<OwnedFd>), SandboxError> {
        let delivered = self.call("start of a shim", || Request::Spawn(spawn.clone()), fds).await?;
        match delivered.reply {
            Reply::Spawned { pid } => Ok((pid, delivered.fds.into_iter().next())),
            _ => Err(unexpected("start of a shim")),
        }
    }

    /// Asks; once more, of a new keeper, when the connection was found dead.
    async fn call(
        &self,
        operation: &str,
        request: impl Fn() -> Request,
        fds: impl Fn() -> Vec<OwnedFd>,
    ) -> Result<Delivered<Reply>, SandboxError> {
        match self.client().await?.call(operation, request(), fds()).await {
            Err(SandboxError::Unavailable { .. }) => self.client().await?.call(operation, request(), fds()).await,
            other => other,
        }
    }

    async fn client(&self) -> Result<Client<KeeperWire>, SandboxError> {
        let mut held = self.client.lock().await;
        if let Some(client) = held.as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let unavailable =
            |source| SandboxError::Unavailable { operation: "connection to the keeper".to_owned(), source };
        let connection = match connect_in(&self.config.run_dir, "keeper.sock") {
            Ok(connection) => connection,
            Err(_) => self.start().await.map_err(unavailable)?,
        };
        let client = Client::new(connection, None).map_err(unavailable)?;
        match client.call("greeting of the keeper", Request::Hello { versions: VERSIONS }, vec![]).await?.reply {
            Reply::Hello { version, pid } => tracing::debug!(version, pid, "connected to the keeper"),
            _ => return Err(unexpected("greeting of the keeper")),
        }
        *held = Some(client.clone());
        Ok(client)
    }

    /// Starts a keeper and waits until it listens. It outlives this process.
    async fn start(&self) -> std::io::Result<crate::protocol::Connection> {
        let mut child = Command::new(&self.config.shim_program)
            .arg("keeper")
            .arg("--run-dir")
            .arg(&self.config.run_dir)
            .args(
                self.config.layer_dirs.iter().flat_map(|directory| [OsStr::new("--layer-dir"), directory.as_os_str()]),
            )
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

pub(crate) fn unexpected(operation: &str) -> SandboxError {
    SandboxError::Failed { operation: operation.to_owned(), message: "an answer to something else came".to_owned() }
}
