//! The table of connected hosts. One entry per host id; whoever changes it also tells by an event, under the same lock.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_api::codes::Code;
use agent_api::identity::SpkiHash;
use agent_api::proto::HostStatus;
use tokio::sync::broadcast;

use super::handle::HostHandle;

/// Events kept for a slow reader before it lags.
const EVENT_BACKLOG: usize = 1024;

/// A host that is connected.
#[derive(Debug, Clone)]
pub struct ConnectedHost {
    /// To call it.
    pub handle: HostHandle,
    /// The newest that it said of itself.
    pub status: HostStatus,
    /// From where it dialled.
    pub peer: SocketAddr,
    pub(super) key: SpkiHash,
}

/// What changed. Within one host, events come in order: connected, changed (any number), disconnected.
#[derive(Debug, Clone)]
pub enum HostEvent {
    /// A host is connected and has answered Hello.
    Connected(ConnectedHost),
    /// It said something new of itself.
    Changed {
        /// Which host.
        host_id: String,
        /// What it says now.
        status: HostStatus,
    },
    /// Its connection is over. Its pods go on.
    Disconnected {
        /// Which host.
        host_id: String,
        /// Which connection ([`HostHandle::connection`]).
        connection: u64,
        /// Why, for people.
        reason: String,
    },
    /// A connection or an enrolment of this host was refused.
    Refused {
        /// Which host.
        host_id: String,
        /// Why, for programs. [`Code::EpochFenced`]: the *agent* refused us, since another vkubelet has taken over.
        code: Code,
        /// Why, for people.
        message: String,
    },
}

#[derive(Debug)]
pub(super) struct Connections {
    epoch: u64,
    next: AtomicU64,
    table: Mutex<BTreeMap<String, ConnectedHost>>,
    admitting: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    events: broadcast::Sender<HostEvent>,
}

impl Connections {
    pub(super) fn new(epoch: u64) -> Connections {
        Connections {
            epoch,
            next: AtomicU64::new(1),
            table: Mutex::default(),
            admitting: Mutex::default(),
            events: broadcast::Sender::new(EVENT_BACKLOG),
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn next_connection(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn events(&self) -> broadcast::Receiver<HostEvent> {
        self.events.subscribe()
    }

    pub(super) fn handle(&self, host_id: &str) -> Option<HostHandle> {
        self.table().get(host_id).filter(|host| host.handle.is_connected()).map(|host| host.handle.clone())
    }

    pub(super) fn get(&self, host_id: &str) -> Option<ConnectedHost> {
        self.table().get(host_id).cloned()
    }

    pub(super) fn list(&self) -> Vec<ConnectedHost> {
        self.table().values().filter(|host| host.handle.is_connected()).cloned().collect()
    }

    /// Serialises the admissions of one host id. Only enrolled ids come here, so the map stays small.
    pub(super) fn admission(&self, host_id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut admitting = self.admitting.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(admitting.entry(host_id.to_owned()).or_default())
    }

    pub(super) fn connected(&self, host: ConnectedHost) {
        let mut table = self.table();
        table.insert(host.handle.host_id().to_owned(), host.clone());
        self.tell(HostEvent::Connected(host));
    }

    pub(super) fn changed(&self, host_id: &str, connection: u64, status: HostStatus) {
        let mut table = self.table();
        let Some(host) = table.get_mut(host_id).filter(|host| host.handle.connection() == connection) else {
            return;
        };
        if host.status != status {
            host.status = status.clone();
            self.tell(HostEvent::Changed { host_id: host_id.to_owned(), status });
        }
    }

    /// Removes this connection's entry, once.
    pub(super) fn disconnected(&self, host_id: &str, connection: u64, reason: &str) {
        let mut table = self.table();
        if table.get(host_id).is_some_and(|host| host.handle.connection() == connection) {
            table.remove(host_id);
            let (host_id, reason) = (host_id.to_owned(), reason.to_owned());
            self.tell(HostEvent::Disconnected { host_id, connection, reason });
        }
    }

    pub(super) fn refused(&self, host_id: &str, code: Code, message: &str) {
        self.tell(HostEvent::Refused { host_id: host_id.to_owned(), code, message: message.to_owned() });
    }

    fn tell(&self, event: HostEvent) {
        // No subscriber is no failure.
        let _ = self.events.send(event);
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, ConnectedHost>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
