//! A sandbox's events: the shim's, and what is left of them when it is dead.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::client::{Client, Listener, connect_in};
use super::layout::Slot;
use super::slots::hello;
use super::wire::ShimWire;
use super::{Inner, RECORD, SHIM_SOCKET};
use crate::contract::{SandboxError, SandboxEvent};
use crate::protocol::shim::Request;
use crate::shim::history;
use crate::spec::SandboxId;
use crate::sys::clock;

/// The pause before a shim that has no room for a connection is asked again.
const FULL: Duration = Duration::from_millis(500);

/// Events that may wait for a slow reader.
pub(crate) const BUFFER: usize = 256;

/// Hands events on until either side ends, passing over the first `told` of them.
async fn pass_on(mut received: mpsc::Receiver<SandboxEvent>, events: &mpsc::Sender<SandboxEvent>, told: &mut usize) {
    let mut index = 0;
    loop {
        let event = tokio::select! {
            event = received.recv() => event,
            () = events.closed() => None,
        };
        let Some(event) = event else { return };
        index += 1;
        if index > *told {
            *told = index;
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

impl Inner {
    /// All events from the beginning; ends with `Lost` when the shim is dead, without when the sandbox is destroyed.
    /// `ready`: what a connection that subscribed before has brought so far, and brings.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        id: SandboxId,
        slot: Slot,
        mut ready: Option<mpsc::Receiver<SandboxEvent>>,
    ) -> mpsc::Receiver<SandboxEvent> {
        let (events, receiver) = mpsc::channel(BUFFER);
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let mut told = 0;
            loop {
                let went_on = match ready.take() {
                    Some(received) => {
                        pass_on(received, &events, &mut told).await;
                        Ok(())
                    }
                    None => inner.follow(&id, &events, &mut told).await,
                };
                if events.is_closed() || inner.is_dying(&id) || !inner.exists_as(&id, &slot) {
                    return;
                }
                if went_on.is_err() {
                    return inner.bury(&id, &slot, &events, told).await;
                }
            }
        });
        receiver
    }

    /// Follows one connection to its end, passing over what was told already.
    async fn follow(
        &self,
        id: &SandboxId,
        events: &mpsc::Sender<SandboxEvent>,
        told: &mut usize,
    ) -> Result<(), SandboxError> {
        let unavailable = |source| SandboxError::Unavailable { operation: "connection to a shim".to_owned(), source };
        let connection = loop {
            match connect_in(&self.layout.sandbox(id), SHIM_SOCKET) {
                // It lives, and takes nobody in: what happened meanwhile it will tell.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => tokio::time::sleep(FULL).await,
                other => break other.map_err(unavailable)?,
            }
        };
        let (sender, received) = mpsc::channel(BUFFER);
        let client: Client<ShimWire> = Client::new(connection, Listener::Subscriber(sender)).map_err(unavailable)?;
        hello(&client).await?;
        client.call("subscription to a shim", Request::Subscribe, vec![]).await?;
        pass_on(received, events, told).await;
        Ok(())
    }

    /// The shim is dead: its record is told to the end, then that it is lost.
    async fn bury(&self, id: &SandboxId, slot: &Slot, events: &mpsc::Sender<SandboxEvent>, told: usize) {
        if slot.namespaces.host_pid {
            // Its containers' processes did not die with it.
            let killed = self.tree.pod(&SandboxId(slot.name.clone())).and_then(|pod| pod.kill());
            if let Err(error) = killed {
                tracing::warn!(slot = slot.name, %error, "processes of a lost sandbox could not be killed");
            }
        }
        let path = self.layout.sandbox(id).join(RECORD).join(history::FILE);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        for event in history::parse(&text).into_iter().skip(told) {
            if events.send(event).await.is_err() {
                return;
            }
        }
        let _ = events.send(SandboxEvent::Lost { boottime_ns: clock::boottime_ns() }).await;
    }

    pub(super) fn set_dying(&self, id: &SandboxId, dying: bool) {
        let mut all = self.dying.lock().unwrap_or_else(PoisonError::into_inner);
        if dying {
            all.insert(id.clone());
        } else {
            all.remove(id);
        }
    }

    fn is_dying(&self, id: &SandboxId) -> bool {
        self.dying.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    fn exists_as(&self, id: &SandboxId, slot: &Slot) -> bool {
        self.layout.slot(id).is_ok_and(|found| found.as_ref() == Some(slot))
    }
}
