//! Connections to the shims of sandboxes.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use super::ahead::Ahead;
use super::client::Client;
use super::layout::Slot;
use super::slots::{greet, in_time, io_failed};
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
    /// Its first container's root, made ahead.
    ahead: Option<Ahead>,
    /// It has no container yet.
    fresh: bool,
}

/// The shims that are connected.
#[derive(Debug, Default)]
pub(crate) struct Shims(Mutex<HashMap<SandboxId, Known>>);

impl Shims {
    /// One that was just taken from the pool, or greeted.
    pub(crate) fn add(&self, id: &SandboxId, client: Client<ShimWire>, events: Option<Ready>, ahead: Option<Ahead>) {
        let fresh = events.is_some();
        self.known().insert(id.clone(), Known { client, events, ahead, fresh });
    }

    /// One of a sandbox that was taken before; another one that is open is as good.
    pub(crate) fn keep(&self, id: &SandboxId, client: Client<ShimWire>) {
        if self.open(id).is_none() {
            self.add(id, client, None, None);
        }
    }

    /// A container is being started: the root that was made ahead, and whether it is the sandbox's first.
    pub(crate) fn begin(&self, id: &SandboxId) -> (Option<Ahead>, bool) {
        match self.known().get_mut(id) {
            Some(known) => (known.ahead.take(), std::mem::take(&mut known.fresh)),
            None => (None, false),
        }
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
    /// Whether the sandbox's shim lives: answers, or takes its time to.
    pub(crate) async fn is_alive(&self, id: &SandboxId) -> bool {
        match self.shim(id).await {
            Err(SandboxError::Unavailable { source, .. }) => {
                matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
            }
            answered => answered.is_ok(),
        }
    }

    /// The sandbox's shim; `NotFound` when there is no such sandbox, `Unavailable` when its shim is dead or does not answer.
    pub(crate) async fn shim(&self, id: &SandboxId) -> Result<Client<ShimWire>, SandboxError> {
        if let Some(client) = self.shims.open(id) {
            return Ok(client);
        }
        if self.layout.slot(id).map_err(|error| io_failed("reading of a sandbox's record", error))?.is_none() {
            return Err(not_found(id));
        }
        let (client, _, _) = in_time(greet(&self.layout.sandbox(id))).await?;
        self.shims.add(id, client.clone(), None, None);
        Ok(client)
    }
}
