//! How a pod's task reaches an agent.
//!
//! A complete-set sync and single changes of the same host exclude each other: a pod that was applied while an older set is
//! still on its way would look unwanted to the agent. Each host has a gate: changes pass side by side, a sync alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use agent_api::codes::StatusExt;
use agent_api::proto::{ApplyReply, Intent};
use async_trait::async_trait;
use tokio::sync::RwLock;

use crate::hosts::{HostHandle, Hosts};

/// A change did not reach its agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The host is not connected, or its complete set is not there yet: it will be told when it is.
    #[error("host {host} is not connected")]
    Down {
        /// Which host.
        host: String,
    },
    /// Another vkubelet has taken over: this one commands nothing any more.
    #[error("host {host} obeys another vkubelet")]
    Fenced {
        /// Which host.
        host: String,
    },
    /// The agent does not know the pod: an answer.
    #[error("host {host} does not know the pod")]
    Unknown {
        /// Which host.
        host: String,
    },
    /// The call failed; whether it was done is unknown. Doing it again is harmless.
    #[error("call host {host}")]
    Call {
        /// Which host.
        host: String,
        /// Why.
        #[source]
        source: Box<tonic::Status>,
    },
}

/// What a pod's task asks of agents.
#[async_trait]
pub trait Agents: Send + Sync + 'static {
    /// The hosts that belong to the node, connected or not. `None`: that could not be read.
    fn enrolled(&self) -> Option<Arc<BTreeSet<String>>>;
    /// The connection on which the host has its complete set; `None`: it is away.
    fn up(&self, host: &str) -> Option<u64>;
    /// Tells one pod's desired state. Ok: on which connection, and what the agent said.
    async fn apply(&self, host: &str, intent: Intent) -> Result<(u64, ApplyReply), AgentError>;
    /// The pod's object is gone.
    async fn forget(&self, host: &str, uid: &str) -> Result<(), AgentError>;
}

/// The connection that was synced last; 0: none.
pub(super) type Gate = Arc<RwLock<u64>>;

/// The real agents.
#[derive(Debug, Clone)]
pub struct Fleet {
    hosts: Hosts,
    gates: Arc<Mutex<HashMap<String, Gate>>>,
}

impl Fleet {
    /// Over these connections.
    #[must_use]
    pub fn new(hosts: Hosts) -> Self {
        Self { hosts, gates: Arc::default() }
    }

    /// The connections.
    #[must_use]
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    pub(super) fn gate(&self, host: &str) -> Gate {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(gates.entry(host.to_owned()).or_default())
    }

    fn synced(&self, host: &str, connection: u64) -> Result<HostHandle, AgentError> {
        self.hosts
            .handle(host)
            .filter(|handle| handle.connection() == connection)
            .ok_or_else(|| AgentError::Down { host: host.to_owned() })
    }
}

fn call(host: &str, status: tonic::Status) -> AgentError {
    let host = host.to_owned();
    if status.is_fenced() {
        AgentError::Fenced { host }
    } else if status.is_not_found() {
        AgentError::Unknown { host }
    } else {
        AgentError::Call { host, source: Box::new(status) }
    }
}

#[async_trait]
impl Agents for Fleet {
    fn enrolled(&self) -> Option<Arc<BTreeSet<String>>> {
        self.hosts
            .enrolled()
            .inspect_err(|error| {
                tracing::warn!(error = error as &dyn std::error::Error, "enrolled hosts could not be read");
            })
            .ok()
    }

    fn up(&self, host: &str) -> Option<u64> {
        let gate = self.gate(host);
        // A gate that is held for writing belongs to a sync under way: not up yet, and told when it is.
        let connection = *gate.try_read().ok()?;
        self.synced(host, connection).ok().map(|handle| handle.connection())
    }

    async fn apply(&self, host: &str, intent: Intent) -> Result<(u64, ApplyReply), AgentError> {
        let gate = self.gate(host);
        let connection = gate.read().await;
        let handle = self.synced(host, *connection)?;
        let reply = handle.apply(intent).await.map_err(|status| call(host, status))?;
        Ok((handle.connection(), reply))
    }

    async fn forget(&self, host: &str, uid: &str) -> Result<(), AgentError> {
        let gate = self.gate(host);
        let connection = gate.read().await;
        let handle = self.synced(host, *connection)?;
        match handle.forget(uid).await.map_err(|status| call(host, status)) {
            Err(AgentError::Unknown { .. }) => Ok(()),
            answer => answer,
        }
    }
}
