//! Spawns a task for each desired pod and wakes it; starts the sessions.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::agents::{Agents, Fleet};
use super::board::{Board, Input};
use super::held::ReleaseError;
use super::intent::Generations;
use super::sessions::Sessions;
use super::task::{self, Shared};
use crate::desired::{Desired, DesiredPod, SourceKind};
use crate::hosts::Hosts;
use crate::observe::Metrics;
use crate::placement::{Request, Reservations};
use crate::ports::SourcePorts;
use crate::resolve::ClusterSettings;

/// What the controller is made of.
#[derive(Debug)]
pub struct ControllerSettings {
    /// The desired pods.
    pub desired: Desired,
    /// One bundle per source.
    pub sources: Vec<SourcePorts>,
    /// What the operator says of the cluster.
    pub cluster: ClusterSettings,
    /// What it counts into.
    pub metrics: Metrics,
}

/// The controller. Cheap to clone.
#[derive(Clone)]
pub struct Controller {
    shared: Arc<Shared>,
    sources: Arc<HashMap<SourceKind, SourcePorts>>,
    /// Of a controller that was started.
    sessions: Option<Sessions>,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("sources", &self.sources).finish_non_exhaustive()
    }
}

impl Controller {
    /// Starts everything; it ends with `stop`. Pods go on running.
    pub fn start(
        settings: ControllerSettings,
        hosts: Hosts,
        state_dir: &Path,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let fleet = Fleet::new(hosts.clone());
        let mut controller = Self::new(settings, Arc::new(fleet.clone()), hosts.epoch());
        let sessions = Sessions::new(fleet, Arc::clone(&controller.shared), Arc::clone(&controller.sources), state_dir);
        controller.sessions = Some(sessions.clone());
        tracker.spawn(sessions.run(tracker.clone(), stop.clone()));
        tracker.spawn(controller.clone().dispatch(tracker.clone(), stop.clone()));
        controller
    }

    pub(super) fn new(settings: ControllerSettings, agents: Arc<dyn Agents>, epoch: u64) -> Self {
        let sources = settings.sources.into_iter().map(|ports| (ports.kind, ports)).collect();
        let shared = Shared {
            desired: settings.desired,
            board: Board::default(),
            reservations: Reservations::default(),
            agents,
            generations: Generations::new(epoch),
            cluster: settings.cluster,
            metrics: settings.metrics,
            entered: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared), sources: Arc::new(sources), sessions: None }
    }

    /// The pods of a host that are not wanted any more and that its agent keeps, since so many have no deletion mark.
    #[must_use]
    pub fn held(&self, host: &str) -> Vec<String> {
        self.sessions.as_ref().map(|sessions| sessions.held(host)).unwrap_or_default()
    }

    /// Confirms the removal of those pods, and of no others. Which they are.
    pub async fn release(&self, host: &str) -> Result<Vec<String>, ReleaseError> {
        match &self.sessions {
            Some(sessions) => sessions.release(host).await,
            None => Err(ReleaseError::Away { host: host.to_owned() }),
        }
    }

    /// What is known of every pod.
    #[must_use]
    pub fn board(&self) -> &Board {
        &self.shared.board
    }

    /// Who holds what where.
    #[must_use]
    pub fn reservations(&self) -> &Reservations {
        &self.shared.reservations
    }

    /// The bundle of a source.
    #[must_use]
    pub fn source(&self, kind: SourceKind) -> Option<&SourcePorts> {
        self.sources.get(&kind)
    }

    pub(super) async fn dispatch(self, tracker: TaskTracker, stop: CancellationToken) {
        // Before every source has listed, reservations would be incomplete.
        tokio::select! {
            () = self.shared.desired.complete() => {}
            () = stop.cancelled() => return,
        }
        let mut subscription = self.shared.desired.subscribe();
        self.reserve(&subscription.pods);
        for pod in std::mem::take(&mut subscription.pods) {
            self.wake(&tracker, &stop, pod.uid());
        }
        self.shared.entered.cancel();
        loop {
            let change = tokio::select! {
                change = subscription.changes.recv() => change,
                () = stop.cancelled() => return,
            };
            match change {
                Ok(change) => self.wake(&tracker, &stop, &change.uid),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    for pod in self.shared.desired.all() {
                        self.wake(&tracker, &stop, pod.uid());
                    }
                    for entry in self.shared.board.all() {
                        self.shared.board.send(entry.pod.uid(), Input::Desired);
                    }
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Every durable placement holds its room before anybody places anything.
    fn reserve(&self, pods: &[Arc<DesiredPod>]) {
        for pod in pods {
            if let (Some(host), false) = (&pod.placement, pod.is_terminal()) {
                let request = Request::of(&pod.pod).unwrap_or_default();
                self.shared.reservations.hold(pod.uid(), host, &request);
            }
        }
    }

    fn wake(&self, tracker: &TaskTracker, stop: &CancellationToken, uid: &str) {
        if self.shared.board.send(uid, Input::Desired) {
            return;
        }
        let Some(pod) = self.shared.desired.get(uid) else { return };
        let Some(ports) = self.sources.get(&pod.source).cloned() else {
            tracing::error!(pod.uid = uid, source = pod.source.as_str(), "a pod of a source that is not configured");
            return;
        };
        let (sender, mailbox) = mpsc::unbounded_channel();
        // A pod that is placed already was seen in an earlier life: when, nobody knows any more.
        let seen_ns = if pod.placement.is_some() { 0 } else { now_ns() };
        self.shared.board.enter(Arc::clone(&pod), seen_ns, sender);
        let (shared, stop) = (Arc::clone(&self.shared), stop.clone());
        tracker.spawn(async move {
            tokio::select! {
                () = Box::pin(task::run(shared, ports, pod, mailbox)) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
