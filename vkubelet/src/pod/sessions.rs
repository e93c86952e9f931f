//! Follows the hosts. For each connection: the complete set first, then statuses and events until it is over.
//!
//! ```text
//!   Connected ─> [gate closed] Sync(board) [gate open at this connection] ─> HostUp to its pods
//!                 └─ WatchStatus: snapshot (Absent to those not in it), then each change ─> tasks
//!                 └─ WatchEvents(after) ─> event sinks
//!   Changed ───> reservations                Disconnected ─> not ready; after HOST_LOST_AFTER: HostLost to its pods
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_api::codes::StatusExt;
use agent_api::proto::{HostStatus, Intent, PodEvent, SyncReply};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::agents::Fleet;
use super::board::{Applied, Input};
use super::cursors::Cursors;
use super::held::{Held, ReleaseError};
use super::intent;
use super::task::Shared;
use crate::desired::{PodRef, SourceKind};
use crate::hosts::{ConnectedHost, HostEvent, HostHandle};
use crate::placement::HostView;
use crate::placement::choose::Amounts;
use crate::placement::request::canonical_image;
use crate::ports::{Event, EventType, SourcePorts};

/// A host that has been away for so long is told to its pods' status (Kubernetes' node-monitor-grace-period).
const HOST_LOST_AFTER: Duration = Duration::from_secs(40);
/// How often event cursors are written.
const SAVE_EVERY: Duration = Duration::from_secs(2);
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(super) struct Sessions {
    fleet: Fleet,
    shared: Arc<Shared>,
    sources: Arc<HashMap<SourceKind, SourcePorts>>,
    cursors: Arc<Cursors>,
    held: Held,
}

impl Sessions {
    pub(super) fn new(
        fleet: Fleet,
        shared: Arc<Shared>,
        sources: Arc<HashMap<SourceKind, SourcePorts>>,
        state_dir: &Path,
    ) -> Self {
        Self { fleet, shared, sources, cursors: Arc::new(Cursors::open(state_dir)), held: Held::default() }
    }

    /// The pods of a host whose removal its agent holds.
    pub(super) fn held(&self, host: &str) -> Vec<String> {
        self.held.of(host)
    }

    /// Confirms the removal of the pods that a host's agent holds: those, and no others. Which they are.
    pub(super) async fn release(&self, host: &str) -> Result<Vec<String>, ReleaseError> {
        let host = host.to_owned();
        let Some(handle) = self.fleet.hosts().handle(&host) else { return Err(ReleaseError::Away { host }) };
        let pods = self.held.of(&host);
        if pods.is_empty() {
            return Err(ReleaseError::NothingHeld { host });
        }
        tracing::warn!(host.id = host, ?pods, "an operator confirms the removal of held pods");
        let synced = self.sync(&handle, pods.clone()).await;
        synced.map_err(|status| ReleaseError::Call { host, source: Box::new(status) })?;
        Ok(pods)
    }

    pub(super) async fn run(self, tracker: TaskTracker, stop: CancellationToken) {
        // Subscribed before the list, so that nothing falls between.
        let mut events = self.fleet.hosts().events();
        let mut known: HashMap<String, u64> = HashMap::new();
        self.list(&mut known, &tracker, &stop);
        let mut tick = tokio::time::interval(SAVE_EVERY);
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                _ = tick.tick() => {
                    self.save_cursors().await;
                    continue;
                }
                () = stop.cancelled() => {
                    self.save_cursors().await;
                    return;
                }
            };
            match event {
                Ok(HostEvent::Connected(host)) => self.connected(host, &mut known, &tracker, &stop),
                Ok(HostEvent::Changed { host_id, status }) => self.changed(&host_id, &status),
                Ok(HostEvent::Disconnected { host_id, connection, .. }) => {
                    self.disconnected(host_id, connection, &tracker, &stop);
                }
                Ok(HostEvent::Refused { host_id, code, message }) => {
                    tracing::warn!(
                        host.id = host_id,
                        code = code.name(),
                        detail = message,
                        "a host was refused or refuses us"
                    );
                }
                Err(broadcast::error::RecvError::Lagged(_)) => self.list(&mut known, &tracker, &stop),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    async fn save_cursors(&self) {
        let cursors = Arc::clone(&self.cursors);
        // A failed join is a panic, which has been told already.
        let _ = tokio::task::spawn_blocking(move || cursors.save()).await;
    }

    fn list(&self, known: &mut HashMap<String, u64>, tracker: &TaskTracker, stop: &CancellationToken) {
        for host in self.fleet.hosts().list() {
            self.connected(host, known, tracker, stop);
        }
    }

    fn connected(
        &self,
        host: ConnectedHost,
        known: &mut HashMap<String, u64>,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let (id, connection) = (host.handle.host_id().to_owned(), host.handle.connection());
        if known.insert(id, connection) == Some(connection) {
            return;
        }
        let (sessions, stop) = (self.clone(), stop.clone());
        tracker.spawn(async move {
            let handle = host.handle.clone();
            tokio::select! {
                () = Box::pin(sessions.session(host)) => {}
                () = handle.disconnected() => {}
                () = stop.cancelled() => {}
            }
        });
    }

    fn changed(&self, host_id: &str, status: &HostStatus) {
        let up = self.shared.agents.up(host_id).is_some();
        self.shared.reservations.host(view(host_id, status, up));
    }

    fn disconnected(&self, host: String, connection: u64, tracker: &TaskTracker, stop: &CancellationToken) {
        let newer = self.fleet.hosts().handle(&host).is_some_and(|handle| handle.connection() > connection);
        if newer {
            return;
        }
        self.shared.reservations.host_lost(&host);
        let (sessions, stop) = (self.clone(), stop.clone());
        tracker.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(HOST_LOST_AFTER) => {}
                () = stop.cancelled() => return,
            }
            if sessions.fleet.hosts().handle(&host).is_none() {
                tracing::error!(host.id = host, "host does not answer; its pods may still run there");
                sessions.tell_pods(&host, &Input::HostLost);
            }
        });
    }

    fn tell_pods(&self, host: &str, input: &Input) {
        for entry in self.shared.board.on_host(host) {
            self.shared.board.send(entry.pod.uid(), input.clone());
        }
    }

    #[tracing::instrument(name = "host", skip_all, fields(host.id = host.handle.host_id()))]
    async fn session(&self, host: ConnectedHost) {
        // Before, absence means nothing, and statuses would find nobody.
        self.shared.entered.cancelled().await;
        let handle = &host.handle;
        let mut pause = RETRY_FIRST;
        while let Err(status) = self.sync(handle, vec![]).await {
            if status.is_fenced() {
                tracing::error!(detail = status.message(), "another vkubelet has taken over this host");
                return;
            }
            tracing::warn!(code = %status.error_code(), detail = status.message(), "complete-set sync failed; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
        let newest = self.fleet.hosts().list().into_iter().find(|h| h.handle.connection() == handle.connection());
        self.shared.reservations.host(view(handle.host_id(), &newest.unwrap_or(host.clone()).status, true));
        self.tell_pods(handle.host_id(), &Input::HostUp);
        futures::join!(self.follow_statuses(handle), self.follow_events(handle));
    }

    /// Tells the complete set while no single change passes; then opens the gate for this connection.
    async fn sync(&self, handle: &HostHandle, confirmed: Vec<String>) -> Result<(), tonic::Status> {
        let host = handle.host_id();
        let gate = self.fleet.gate(host);
        let mut open_for = gate.write().await;
        let intents = self.complete_set(host);
        let sent: Vec<(String, u64)> = intents.iter().map(|i| (i.uid.clone(), i.generation)).collect();
        let reply = handle.sync(intents, confirmed).await?;
        tracing::info!(pods = sent.len(), held = reply.held, refused = reply.refused.len(), "complete set synced");
        let connection = handle.connection();
        for (uid, generation) in sent.iter().filter(|(_, generation)| *generation > 0) {
            self.shared.board.update(uid, |entry| {
                entry.applied = Applied { connection, generation: *generation };
            });
        }
        *open_for = connection;
        drop(open_for);
        self.take_reply(host, reply);
        Ok(())
    }

    fn take_reply(&self, host: &str, reply: SyncReply) {
        if reply.held {
            tracing::error!(
                host.id = host,
                pods = ?reply.held_pods,
                detail = reply.message,
                "the agent holds a mass deletion: these pods are not desired any more and have no deletion mark; they go on until \
                 `nodeless hosts release` confirms it"
            );
        }
        self.shared.metrics.synced(self.held.set(host, reply.held_pods));
        for refusal in reply.refused {
            let uid = refusal.uid.clone();
            self.shared.board.send(&uid, Input::Refused(refusal));
        }
    }

    /// Every pod that is placed on the host: with its intent when there is one, else "keep what you have".
    fn complete_set(&self, host: &str) -> Vec<Intent> {
        let mut set: HashMap<String, Intent> = self
            .shared
            .desired
            .all()
            .iter()
            .filter(|pod| pod.placement.as_deref() == Some(host))
            .map(|pod| (pod.uid().to_owned(), intent::keep(pod)))
            .collect();
        for entry in self.shared.board.all() {
            let uid = entry.pod.uid().to_owned();
            if entry.host.as_deref() == Some(host) {
                // The intent of a pod that has ended since is not to be said again: an agent that lost it would start it.
                let current = entry.intent.filter(|intent| intent.delete || !entry.pod.is_terminal());
                let intent = current.map_or_else(|| intent::keep(&entry.pod), |intent| (*intent).clone());
                set.insert(uid, intent);
            } else if entry.host.is_some() {
                set.remove(&uid);
            }
        }
        set.into_values().collect()
    }

    async fn follow_statuses(&self, handle: &HostHandle) {
        let mut pause = RETRY_FIRST;
        loop {
            match handle.watch_status().await {
                Ok(mut stream) => {
                    let mut heard: Option<HashSet<String>> = Some(HashSet::new());
                    while let Ok(Some(update)) = stream.message().await {
                        pause = RETRY_FIRST;
                        if update.snapshot_end {
                            self.tell_absent(handle, &heard.take().unwrap_or_default());
                            continue;
                        }
                        let uid = update.uid.clone();
                        if let Some(heard) = &mut heard {
                            heard.insert(uid.clone());
                        }
                        if !self.shared.board.send(&uid, Input::Status(Box::new(update))) {
                            tracing::debug!(pod.uid = uid, "status of a pod that is not desired here");
                        }
                    }
                }
                Err(status) => tracing::warn!(detail = status.message(), "statuses cannot be followed; trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    fn tell_absent(&self, handle: &HostHandle, heard: &HashSet<String>) {
        let connection = handle.connection();
        for entry in self.shared.board.on_host(handle.host_id()) {
            if !heard.contains(entry.pod.uid()) {
                self.shared.board.send(entry.pod.uid(), Input::Absent { connection });
            }
        }
    }

    async fn follow_events(&self, handle: &HostHandle) {
        let key = format!("{}/{}", handle.host_id(), handle.boot_id());
        self.cursors.forget_other_boots(handle.host_id(), &key);
        let mut pause = RETRY_FIRST;
        loop {
            let after = self.cursors.get(&key);
            match handle.watch_events(after).await {
                Ok(mut stream) => {
                    while let Ok(Some(event)) = stream.message().await {
                        pause = RETRY_FIRST;
                        let seq = event.seq;
                        self.take_event(event);
                        self.cursors.advance(&key, seq);
                    }
                }
                Err(status) => tracing::warn!(detail = status.message(), "events cannot be followed; trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    fn take_event(&self, event: PodEvent) {
        let source = self.shared.board.get(&event.uid).map(|entry| entry.pod.source);
        let pod = PodRef { uid: event.uid, namespace: event.namespace, name: event.name };
        let kind = if event.r#type == "Normal" { EventType::Normal } else { EventType::Warning };
        let told = Event {
            kind,
            reason: event.reason,
            message: event.message,
            field_path: event.field_path,
            unix_ns: event.unix_ns,
        };
        self.shared.board.event(&pod.uid, told.clone());
        // A pod that is gone by now: its events still belong to whoever may know it.
        for (kind, ports) in self.sources.iter() {
            if source.is_none_or(|source| source == *kind) {
                ports.events.event(&pod, told.clone());
            }
        }
    }
}

fn view(id: &str, status: &HostStatus, up: bool) -> HostView {
    let (ready, pressures): (Vec<_>, Vec<_>) = status.conditions.iter().partition(|c| c.r#type == "Ready");
    HostView {
        id: id.to_owned(),
        ready: up && ready.iter().all(|c| c.status),
        pressed: pressures.iter().any(|c| c.status),
        architecture: status.architecture.clone(),
        capacity: Amounts {
            milli_cpu: status.capacity_milli_cpu,
            memory_bytes: status.allocatable_memory_bytes.unwrap_or(status.capacity_memory_bytes),
            ephemeral_bytes: status.capacity_ephemeral_bytes,
            pods: status.capacity_pods,
        },
        used: Amounts {
            milli_cpu: status.allocated_milli_cpu,
            memory_bytes: status.allocated_memory_bytes,
            // Not told by hosts: what is reserved here counts.
            ephemeral_bytes: 0,
            pods: status.allocated_pods,
        },
        scalars: status.capacity_scalars.clone().into_iter().collect(),
        used_scalars: status.allocated_scalars.clone().into_iter().collect(),
        // Not told by hosts either.
        used_ports: Vec::new(),
        sandbox_kinds: status.sandbox_kinds.iter().cloned().collect(),
        images: status.images.iter().flat_map(|i| &i.names).map(|n| canonical_image(n)).collect::<BTreeSet<_>>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_api::proto::Condition;

    fn condition(type_: &str, status: bool) -> Condition {
        Condition { r#type: type_.to_owned(), status, ..Condition::default() }
    }

    #[test]
    fn a_host_under_pressure_or_not_ready_takes_no_new_pods() {
        let mut status = HostStatus {
            conditions: vec![condition("Ready", true), condition("DiskPressure", false)],
            ..HostStatus::default()
        };
        assert!(view("h", &status, true).ready && !view("h", &status, true).pressed);
        assert!(!view("h", &status, false).ready);
        status.conditions[1].status = true;
        assert!(view("h", &status, true).pressed);
        status.conditions = vec![condition("Ready", false)];
        assert!(!view("h", &status, true).ready);
    }
}
