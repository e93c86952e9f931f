//! The hosts: one port on which agents enrol and connect, and a typed handle to each connected agent.
//!
//! ```text
//!                    [`listener`]: TLS 1.3, client certificate optional, ALPN decides
//!                      │ no certificate, join               │ certificate of our CA
//!                      v                                    v
//!        [`enrollment`]: token + CSR -> certificate   [`admission`] (pure): enrolled? revoked? already connected?
//!                      │ [`tokens`] [`roster`]              │ welcome, roles turn round
//!                      v                                    v
//!                  state directory                    [`session`]: Hello under our [`epoch`], WatchHost until the end
//!                                                           │
//!                                 [`Hosts::events`], [`Hosts::list`], [`Hosts::handle`] -> [`HostHandle`]
//! ```
//!
//! Identity rules. A host id is enrolled with one key. The same key may connect again: when the older connection gives no
//! sign of life it is ended and the newer one takes its place (an agent that restarted); when it answers, two agents share
//! one identity (a cloned disk) and the newer is refused. Another key for an enrolled host id needs a token made for
//! re-joining; it ends the older key's connection and refuses its certificate from then on.
//!
//! On disk, in `STATE_DIR/hosts/` (0700; each file 0600, replaced whole, changed under `LOCK` by several processes):
//!
//! ```text
//! ca.pem       the CA's certificate and key, made once
//! tokens.json  join tokens: SHA-256, expiry, uses left, rejoin
//! hosts.json   enrolled hosts: key hash, certificate's serial and end; revoked: when
//! epoch.json   the last epoch taken
//! ```
//!
//! This module knows nothing of pods.

mod admission;
mod connections;
mod enrollment;
pub mod epoch;
mod handle;
mod listener;
mod locked_file;
pub mod roster;
mod session;
pub mod tokens;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::identity::{Authority, AuthorityError, SpkiHash};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub use connections::{ConnectedHost, HostEvent};
pub use epoch::{EpochError, EpochSource, FileEpoch};
pub use handle::HostHandle;
pub use locked_file::StateError;

use connections::Connections;

/// What the agent listener needs to know.
#[derive(Debug, Clone)]
pub struct HostsConfig {
    /// Address and port; port 0 is allowed.
    pub listen: SocketAddr,
    /// vkubelet's state directory; ours is `hosts/` in it.
    pub state_dir: PathBuf,
    /// Our node name: `vkubelet_id` in Hello, told to joining agents.
    pub node_name: String,
    /// Our version, for people.
    pub version: String,
}

/// The listener could not start.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The port could not be bound.
    #[error("listen for agents on {address} (--agent-listen)")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The CA could not be opened or made.
    #[error("open the CA of the agent listener")]
    Authority(#[source] AuthorityError),
    /// TLS could not be configured.
    #[error("configure TLS of the agent listener")]
    Tls(#[source] agent_api::identity::tls::TlsError),
    /// No epoch could be had.
    #[error("take an epoch")]
    Epoch(#[source] EpochError),
    /// The state directory does not work.
    #[error("open the state of the agent listener")]
    State(#[source] StateError),
}

/// The connected hosts. Cheap to clone; the listener ends with the token given to [`Hosts::listen`].
#[derive(Debug, Clone)]
pub struct Hosts {
    connections: Arc<Connections>,
    local_addr: SocketAddr,
    ca_hash: SpkiHash,
    roster: Arc<roster::Watched>,
}

impl Hosts {
    /// Binds the port, takes an epoch and accepts agents until `shutdown` is cancelled.
    pub async fn listen(
        config: HostsConfig,
        epochs: Arc<dyn EpochSource>,
        shutdown: CancellationToken,
    ) -> Result<Hosts, HostsError> {
        let dir = directory(&config.state_dir);
        let authority = Arc::new(Authority::open_or_create(&dir).map_err(HostsError::Authority)?);
        let ca_hash = authority.hash();
        roster::read(&config.state_dir).map_err(HostsError::State)?;
        let socket = tokio::net::TcpListener::bind(config.listen)
            .await
            .map_err(|source| HostsError::Bind { address: config.listen, source })?;
        let bind = |source| HostsError::Bind { address: config.listen, source };
        let local_addr = socket.local_addr().map_err(bind)?;
        let epoch = epochs.next().await.map_err(HostsError::Epoch)?;
        let connections = Arc::new(Connections::new(epoch));
        listener::start(socket, &config, authority, Arc::clone(&connections), shutdown).map_err(HostsError::Tls)?;
        tracing::info!(address = %local_addr, epoch, ca_hash = %ca_hash, "agents may connect");
        Ok(Hosts { connections, local_addr, ca_hash, roster: Arc::new(roster::Watched::new(&config.state_dir)) })
    }

    /// The address that the port was bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The epoch under which this process speaks.
    pub fn epoch(&self) -> u64 {
        self.connections.epoch()
    }

    /// The hash by which agents pin our CA.
    pub fn ca_hash(&self) -> SpkiHash {
        self.ca_hash
    }

    /// Ids of the hosts that have joined and are not revoked, connected or not.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn enrolled(&self) -> Result<Arc<BTreeSet<String>>, StateError> {
        self.roster.enrolled()
    }

    /// The handle of a connected host. `None`: not connected now, which says nothing about its pods.
    pub fn handle(&self, host_id: &str) -> Option<HostHandle> {
        self.connections.handle(host_id)
    }

    /// All connected hosts, by host id.
    pub fn list(&self) -> Vec<ConnectedHost> {
        self.connections.list()
    }

    /// Events from now on. Subscribe before [`Hosts::list`], so that nothing falls between; after a lag, list again.
    pub fn events(&self) -> broadcast::Receiver<HostEvent> {
        self.connections.events()
    }
}

/// The hash that agents pin, for `vkubelet ca-hash`: `sha256:` and 64 hexadecimal digits. Makes the CA when there is none.
pub fn ca_hash(state_dir: &Path) -> Result<SpkiHash, AuthorityError> {
    Authority::open_or_create(&directory(state_dir)).map(|authority| authority.hash())
}

/// Where this module keeps its state.
pub(crate) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("hosts")
}

#[cfg(test)]
mod tests;
