//! Connections to the shims of sandboxes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use super::client::Client;
use super::layout::Slot;
use super::slots::{greet, io_failed};
use super::wire::ShimWire;
use super::{Inner, not_found};
use crate::contract::{SandboxError, SandboxEvent};
use crate::spec::SandboxId;

/// What a sandbox's first subscriber gets.
pub(crate) type Ready = (Slot, mpsc::Receiver<SandboxEvent>);

/// A sandbox's shim.
#[derive(Debug)]
struct Known {
    client: Client<ShimWire>,
    /// The slot, and its events since it was warm, until somebody asks for them.
    events: Option<Ready>,
}

/// The shims that are connected.
#[derive(Debug, Default)]
pub(crate) struct Shims(Mutex<HashMap<SandboxId, Known>>);

impl Shims {
    /// One that was just taken from the pool, or greeted.
    pub(crate) fn add(&self, id: &SandboxId, client: Client<ShimWire>, events: Option<Ready>) {
        self.known().insert(id.clone(), Known { client, events });
    }

    /// The sandbox's connection, while it is open.
    fn open(&self, id: &SandboxId) -> Option<Client<ShimWire>> {
        self.known().get(id).map(|known| known.client.clone()).filter(|client| !client.is_closed())
    }

    /// The sandbox's events, once.
    pub(crate) fn take_events(&self, id: &SandboxId) -> Option<Ready> {
        self.known().get_mut(id)?.events.take()
    }

    /// Forgets a sandbox; its connection, if it had one.
    pub(crate) fn remove(&self, id: &SandboxId) -> Option<Client<ShimWire>> {
        self.known().remove(id).map(|known| known.client).filter(|client| !client.is_closed())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The sandbox's shim; `NotFound` when there is no such sandbox, `Unavailable` when its shim is dead.
    pub(crate) async fn shim(&self, id: &SandboxId) -> Result<Client<ShimWire>, SandboxError> {
        if let Some(client) = self.shims.open(id) {
            return Ok(client);
        }
        if self.layout.slot(id).map_err(|error| io_failed("reading of a sandbox's record", error))?.is_none() {
            return Err(not_found(id));
        }
        let (client, _, _) = greet(&self.layout.sandbox(id)).await?;
        self.shims.add(id, client.clone(), None);
        Ok(client)
    }
}
