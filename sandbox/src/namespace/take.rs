//! Taking a sandbox: from the pool, or made for whoever asks.

use std::io;
use std::sync::Arc;

use super::Inner;
use super::slots::{greet, io_failed};
use crate::contract::{Prepared, SandboxError};
use crate::spec::{Namespaces, SandboxId};

impl Inner {
    /// See [`Sandboxes::prepare_as`](crate::contract::Sandboxes::prepare_as).
    pub(crate) async fn take(
        self: &Arc<Self>,
        id: &SandboxId,
        namespaces: &Namespaces,
    ) -> Result<Prepared, SandboxError> {
        let failed = |error: io::Error| io_failed("taking of a sandbox", error);
        if let Some(slot) = self.layout.slot(id).map_err(failed)? {
            if slot.namespaces != *namespaces {
                return Err(SandboxError::Invalid { message: format!("sandbox {id} has other namespaces") });
            }
            let (client, _, netns) = greet(&self.layout.sandbox(id)).await?;
            self.shims.keep(id, client);
            return Ok(Prepared { id: id.clone(), netns });
        }
        let warm = loop {
            if *namespaces != Namespaces::default() {
                break self.make_slot(namespaces, true).await?;
            }
            let waiting = self.pool.lock().await.pop_front();
            match waiting {
                Some(warm) if warm.client.is_closed() => {
                    // Of no use to this pod. One that cannot be cleared is left over.
                    let _ = self.discard(warm.slot, None).await;
                }
                Some(warm) => break warm,
                None => break self.make_slot(namespaces, true).await?,
            }
        };
        crate::sys::failpoint::failpoint!(SlotChosen);
        if let Err(error) = std::fs::rename(self.layout.warm(&warm.slot), self.layout.sandbox(id)) {
            let _ = self.discard(warm.slot, None).await;
            return Err(failed(error));
        }
        crate::sys::failpoint::failpoint!(SlotTaken);
        self.shims.add(id, warm.client, Some((warm.slot, warm.events)), warm.ahead);
        self.taken();
        Ok(Prepared { id: id.clone(), netns: warm.netns })
    }
}
