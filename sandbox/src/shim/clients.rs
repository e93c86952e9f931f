//! Connections: who is there, who listens to events.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::net::SocketFlags;

use super::container::Waiter;
use super::poller::{Key, Poller};
use crate::contract::SandboxEvent;
use crate::protocol::shim::{Notice, Reply};
use crate::protocol::{Answer, Connection, Refusal};

/// Connections at a time: the agent's one or two, and a few tools.
const MAX_CLIENTS: usize = 64;

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) connection: Connection,
    /// What was agreed on, once it has said hello.
    pub(crate) version: Option<u32>,
    pub(crate) subscribed: bool,
    write_wanted: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    pub(crate) map: BTreeMap<Key, Client>,
}

impl Clients {
    /// Who makes room when there is none for one more: the oldest that has not even said hello. Whoever only connects never
    /// keeps the agent out.
    pub(crate) fn surplus(&self) -> Option<Key> {
        let full = self.map.len() >= MAX_CLIENTS;
        full.then(|| self.map.iter().find(|(_, client)| client.version.is_none()).map(|(key, _)| *key)).flatten()
    }

    /// Takes a new connection; one of another user than the shim's own is dropped, and one too many.
    pub(crate) fn accept(&mut self, listener: &OwnedFd, key: Key, poller: &Poller) -> rustix::io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::accept_with(listener, flags)?;
        // Not rustix's: the agent is outside this PID namespace, and its number, 0, is none that rustix can hold.
        let peer = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials);
        if !peer.is_ok_and(|peer| peer.uid() == rustix::process::getuid().as_raw()) {
            return Err(rustix::io::Errno::PERM);
        }
        if self.map.len() >= MAX_CLIENTS {
            return Err(rustix::io::Errno::MFILE);
        }
        poller.add(&socket, key)?;
        let connection = Connection::new(socket);
        self.map.insert(key, Client { connection, version: None, subscribed: false, write_wanted: false });
        Ok(())
    }

    /// Answers a call. A client that has gone, or reads too slowly, is dropped.
    pub(crate) fn answer(
        &mut self,
        poller: &Poller,
        waiter: Waiter,
        result: Result<Reply, Refusal>,
        fds: Vec<OwnedFd>,
    ) {
        let Some(client) = self.map.get_mut(&waiter.client) else { return };
        let queued = client.connection.queue(&Answer { id: waiter.call, result }, fds);
        if queued.is_err() || !self.flush(poller, waiter.client) {
            self.drop_client(poller, waiter.client);
        }
    }

    /// Tells one client something unasked.
    pub(crate) fn notify(&mut self, poller: &Poller, key: Key, notice: &Notice) {
        let Some(client) = self.map.get_mut(&key) else { return };
        if client.connection.queue(notice, vec![]).is_err() || !self.flush(poller, key) {
            self.drop_client(poller, key);
        }
    }

    /// Tells an event to all who subscribed.
    pub(crate) fn publish(&mut self, poller: &Poller, event: &SandboxEvent) {
        let subscribed: Vec<Key> =
            self.map.iter().filter(|(_, client)| client.subscribed).map(|(key, _)| *key).collect();
        for key in subscribed {
            self.notify(poller, key, &Notice::Event(event.clone()));
        }
    }

    /// Sends what can be sent; false when the connection is broken.
    pub(crate) fn flush(&mut self, poller: &Poller, key: Key) -> bool {
        let Some(client) = self.map.get_mut(&key) else { return true };
        let Ok(done) = client.connection.flush() else { return false };
        if client.write_wanted == done {
            client.write_wanted = !done;
            return poller.modify(client.connection.socket(), key, true, !done).is_ok();
        }
        true
    }

    /// Forgets a client.
    pub(crate) fn drop_client(&mut self, poller: &Poller, key: Key) {
        if let Some(client) = self.map.remove(&key) {
            poller.remove(client.connection.socket());
        }
    }
}
