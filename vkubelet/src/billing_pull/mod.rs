//! Pulls usage records from the hosts into the ledger.
//!
//! ```text
//! host (spool) ── records after the ledger's cursor ──> decode, ingest (durable, atomic with the cursor) ── acknowledge ──> host (spool)
//! ```
//! Each connected host has one puller. It takes old boots first, to their end; then it tells the ledger that they are over, and
//! follows the running one. The cursor is what the ledger has, so whatever is delivered again is skipped, and a record is
//! acknowledged only when it is durable here.
//!
//! Nothing is skipped in silence: a gap, a broken chain, an altered record, or records that the host has lost stop the pull of that host
//! with an alarm (log at error, `nodeless_billing_pull_halted`), until the host connects again or [`RECHECK`] has passed. Its records stay where they are.

mod live;
mod metrics;
mod pull;
mod source;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use billing::store::Store;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::hosts::{HostEvent, HostHandle, Hosts};

pub use live::HostsLive;
pub use metrics::PullMetrics;
pub use pull::{Halt, pull};
pub use source::{Boot, SourceError, UsageSource};

/// A stopped pull looks again after this time: somebody may have repaired what was wrong.
pub const RECHECK: Duration = Duration::from_secs(300);

/// Pulls from every host that connects, until `shutdown`.
pub async fn run(hosts: Hosts, store: Arc<dyn Store>, metrics: PullMetrics, shutdown: CancellationToken) {
    let mut events = hosts.events();
    let tasks = TaskTracker::new();
    // Host id to the connection that is being pulled from.
    let mut pulled: HashMap<String, u64> = HashMap::new();
    let begin = |pulled: &mut HashMap<String, u64>, handle: HostHandle| {
        let known = pulled.insert(handle.host_id().to_owned(), handle.connection());
        if known != Some(handle.connection()) {
            tasks.spawn(pull_connection(handle, Arc::clone(&store), metrics.clone(), shutdown.clone()));
        }
    };
    for host in hosts.list() {
        begin(&mut pulled, host.handle);
    }
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => break,
            event = events.recv() => event,
        };
        match event {
            Ok(HostEvent::Connected(host)) => begin(&mut pulled, host.handle),
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => hosts.list().into_iter().for_each(|host| begin(&mut pulled, host.handle)),
            Err(RecvError::Closed) => break,
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// One connection's pull; it ends with the connection.
async fn pull_connection(handle: HostHandle, store: Arc<dyn Store>, metrics: PullMetrics, shutdown: CancellationToken) {
    let host = handle.host_id().to_owned();
    let work = async {
        loop {
            let halt = pull(&host, &handle, store.as_ref(), &metrics).await;
            metrics.halted(&host, true);
            tracing::error!(host.id = %host, error = &halt as &dyn std::error::Error, "billing pull is stopped for this host; its records are kept there");
            tokio::time::sleep(RECHECK).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = handle.disconnected() => {}
        () = shutdown.cancelled() => {}
    }
}
