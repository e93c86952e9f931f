//! After an agent's restart, whatever ended it: what was written down meets what is there.
//!
//! | ledger | host | then |
//! | --- | --- | --- |
//! | pod, sandbox may exist | sandbox lives | the pod goes on; exits are replayed by the shim with their true times |
//! | pod, sandbox may exist | shim dead, or another boot | sandbox destroyed, pod restarted or failed as its policy says |
//! | pod, being released | anything | release is completed |
//! | nothing | sandbox | destroyed: nobody knows it |
//! | damaged document | sandbox | kept, with an alarm: could not ask is not "nobody knows it" |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sandbox::contract::SandboxError;
use sandbox::spec::SandboxId;

use crate::errors::chain;
use crate::ledger::{LedgerError, Loaded, PodRecord};
use crate::pod::task::{Names, World};
use crate::pod::volumes::PodDirs;
use crate::ports::PortError;
use crate::resolved::Resolved;
use crate::roster::Survivor;

/// Why recovery could not be done.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The ledger cannot be read.
    #[error("could not read the ledger")]
    Ledger(#[source] LedgerError),
    /// Nobody could say which sandboxes exist.
    #[error("could not list the sandboxes")]
    List(#[source] SandboxError),
    /// Network or meter cannot be brought in line.
    #[error("could not reconcile")]
    Reconcile(#[source] PortError),
    /// A thread ended early.
    #[error("recovery was interrupted")]
    Interrupted,
}

/// Finds what survived, and removes what nobody knows. Nothing that runs is touched.
pub async fn run(world: &Arc<World>) -> Result<Vec<Survivor>, RecoverError> {
    let reader = world.clone();
    let loaded = tokio::task::spawn_blocking(move || reader.ledger.load())
        .await
        .map_err(|_| RecoverError::Interrupted)?
        .map_err(RecoverError::Ledger)?;
    let Loaded { pods, damaged } = loaded;
    for error in &damaged {
        tracing::error!(error = chain(error), "a ledger document cannot be read: its pod is left as it is");
    }
    let listed = world.sandboxes.list().await.map_err(RecoverError::List)?;
    let known: BTreeSet<SandboxId> = pods.iter().filter(|p| p.holding).map(sandbox_of).collect();
    let mut live: Vec<SandboxId> = Vec::new();
    for found in &listed {
        if known.contains(&found.id) {
            if found.alive {
                live.push(found.id.clone());
            }
        } else if damaged.is_empty() {
            tracing::warn!(sandbox.id = %found.id, "destroying a sandbox that no pod knows");
            if let Err(error) = world.sandboxes.destroy(&found.id).await {
                tracing::error!(sandbox.id = %found.id, error = chain(&error), "an unknown sandbox was not destroyed");
            }
        } else {
            live.push(found.id.clone());
        }
    }
    let mut survivors = Vec::new();
    for record in pods {
        match survivor(world, record, &live).await {
            Ok(survivor) => survivors.push(survivor),
            Err(message) => tracing::error!(message, "a pod of the ledger cannot be taken back"),
        }
    }
    // A sandbox that its pod still has to destroy keeps its address and its bill until then.
    let held: Vec<SandboxId> =
        survivors.iter().filter(|s| s.record.holding && !s.rebooted).map(|s| sandbox_of(&s.record)).collect();
    let held: Vec<SandboxId> = held.into_iter().chain(live).collect::<BTreeSet<_>>().into_iter().collect();
    world.network.reconcile(&held).await.map_err(RecoverError::Reconcile)?;
    world.meter.adopt(&held).await.map_err(RecoverError::Reconcile)?;
    Ok(survivors)
}

fn sandbox_of(record: &PodRecord) -> SandboxId {
    Names::new(&record.uid).id(record.state.incarnation)
}

async fn survivor(world: &Arc<World>, record: PodRecord, live: &[SandboxId]) -> Result<Survivor, String> {
    let rebooted = record.boot_id != world.boot_id;
    let alive = !rebooted && record.holding && live.contains(&sandbox_of(&record));
    let dirs = PodDirs::new(&world.state_dir, &world.run_dir, &record.uid);
    let needs = !record.secrets.is_empty();
    let found = tokio::task::spawn_blocking(move || std::fs::read(dirs.material()).ok())
        .await
        .map_err(|error| error.to_string())?;
    let material: Option<Resolved> = found.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let at_hand = !needs || material.is_some();
    let intent = record.intent(material).map_err(|error| chain(&error))?;
    Ok(Survivor { intent, alive, rebooted, material: at_hand, record })
}

/// Lists until it can: "could not ask" is no answer. Gives up after `patience`.
pub async fn run_patiently(world: &Arc<World>, patience: Duration) -> Result<Vec<Survivor>, RecoverError> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        match run(world).await {
            Err(RecoverError::List(error)) if tokio::time::Instant::now() < deadline => {
                tracing::warn!(error = chain(&error), "sandboxes cannot be listed yet");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            other => return other,
        }
    }
}
