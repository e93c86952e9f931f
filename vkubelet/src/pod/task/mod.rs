//! The owner of one pod: asks [`super::reconcile`] what to do and does it, one step at a time: [`view`] is what is
//! known, [`steps`] does, [`prepare`] resolves and places, [`tell`] says what stands in the way.

mod prepare;
mod steps;
mod tell;
mod view;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::desired::{Desired, DesiredPod};
use crate::observe::Metrics;
use crate::placement::Reservations;
use crate::pod::agents::Agents;
use crate::pod::board::{Board, Input};
use crate::pod::intent::{self, Generations};
use crate::pod::reconcile::Presence;
use crate::ports::{ReferenceChanged, SourcePorts};
use crate::resolve::{ClusterSettings, HeldToken, Needs, Resolution};

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// While an image cannot be had, or a container waits for an object, what the pod refers to is read again this often: somebody
/// may have corrected it.
const LOOK_EVERY: Duration = Duration::from_secs(8);

/// What every task shares.
pub(super) struct Shared {
    pub(super) desired: Desired,
    pub(super) board: Board,
    pub(super) reservations: Reservations,
    pub(super) agents: Arc<dyn Agents>,
    pub(super) generations: Generations,
    pub(super) cluster: ClusterSettings,
    pub(super) metrics: Metrics,
    /// Every pod of the first complete lists has its entry on the board.
    pub(super) entered: CancellationToken,
}

/// An intent and what it was made for.
#[derive(PartialEq, Eq, Clone, Copy)]
enum MadeFor {
    Run { digest: [u8; 32], resolution: u64 },
    Delete { grace_seconds: i64 },
}

pub(super) struct Task {
    shared: Arc<Shared>,
    ports: SourcePorts,
    pod: Arc<DesiredPod>,
    gone: bool,
    digest: [u8; 32],
    needs: Needs,
    host: Option<String>,
    presence: Presence,
    /// `Absent` holds only on this connection.
    absent_on: u64,
    resolution: Option<Resolution>,
    resolution_number: u64,
    outdated: bool,
    /// When the references are read again, although nothing told of a change.
    look_again: Option<Instant>,
    /// An image could not be had, by its agent's last word.
    lacks_image: bool,
    held: Vec<HeldToken>,
    made_for: Option<MadeFor>,
    removal_done: bool,
    refused: bool,
    retry_at: Option<Instant>,
    retry_after: Duration,
    last_words: String,
    start_counted: bool,
    /// From the pod's discovery until its start is told; none afterwards.
    start: Span,
    /// What was told of references that do not stop the pod.
    warned: HashSet<String>,
}

/// Runs until nothing is left of the pod.
pub(super) async fn run(
    shared: Arc<Shared>,
    ports: SourcePorts,
    pod: Arc<DesiredPod>,
    mailbox: mpsc::UnboundedReceiver<Input>,
) {
    let span = tracing::info_span!(
        "pod",
        pod.uid = pod.uid(),
        pod.namespace = pod.pod_ref.namespace,
        pod.name = pod.pod_ref.name,
        host.id = pod.placement,
    );
    let mut task = Task::new(shared, ports, pod);
    let body = async move {
        task.live(mailbox).await;
        task.shared.reservations.release(task.pod.uid());
        task.shared.board.leave(task.pod.uid());
    };
    body.instrument(span).await;
}

impl Task {
    fn new(shared: Arc<Shared>, ports: SourcePorts, pod: Arc<DesiredPod>) -> Self {
        Self {
            digest: intent::digest(&pod),
            needs: Needs::of(&pod.pod),
            host: pod.placement.clone(),
            gone: false,
            presence: Presence::Unheard,
            absent_on: 0,
            resolution: None,
            resolution_number: 0,
            outdated: false,
            look_again: None,
            lacks_image: false,
            held: Vec::new(),
            made_for: None,
            removal_done: false,
            refused: false,
            retry_at: None,
            retry_after: RETRY_FIRST,
            last_words: String::new(),
            start_counted: false,
            start: start_span(&pod),
            warned: HashSet::new(),
            shared,
            ports,
            pod,
        }
    }

    async fn live(&mut self, mut mailbox: mpsc::UnboundedReceiver<Input>) {
        let mut changes = Some(self.ports.references.changes());
        let mut room = self.shared.reservations.changed();
        // The pod may have changed between its discovery and now.
        self.take_desired();
        loop {
            if self.retry_at.is_none() && !Box::pin(self.advance()).await {
                return;
            }
            if !self.wait(&mut mailbox, &mut changes, &mut room).await {
                return;
            }
            while let Ok(input) = mailbox.try_recv() {
                self.take(input);
            }
        }
    }

    /// Waits for whatever may change the decision. False: nobody can tell anything any more.
    async fn wait(
        &mut self,
        mailbox: &mut mpsc::UnboundedReceiver<Input>,
        changes: &mut Option<broadcast::Receiver<ReferenceChanged>>,
        room: &mut watch::Receiver<u64>,
    ) -> bool {
        let unplaced = self.host.is_none();
        let deadline = self.deadline();
        tokio::select! {
            input = mailbox.recv() => match input {
                Some(input) => self.take(input),
                None => return false,
            },
            changed = next_change(changes) => match changed {
                Ok(changed) => {
                    let ours = changed.namespace == self.pod.pod_ref.namespace
                        && self.needs.concerns(changed.kind, &changed.name);
                    if ours { self.take(Input::References) }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => self.take(Input::References),
                Err(broadcast::error::RecvError::Closed) => *changes = None,
            },
            changed = room.changed(), if unplaced => {
                if changed.is_ok() { self.retry_at = None }
            }
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                self.retry_at = None;
                self.outdated |= self.token_age().is_some_and(|left| left.is_zero());
                if self.look_again.is_some_and(|at| at <= Instant::now()) {
                    self.outdated = true;
                    self.look_again = Some(Instant::now() + LOOK_EVERY);
                }
            }
        }
        true
    }

    fn deadline(&self) -> Option<Instant> {
        let token = self.token_age().map(|left| Instant::now() + left);
        match self.retry_at {
            Some(retry) => Some(retry),
            None => [token, self.look_again].into_iter().flatten().min().filter(|_| !self.outdated),
        }
    }

    /// How long until a token has to be asked for again.
    fn token_age(&self) -> Option<Duration> {
        let refresh = self.resolution.as_ref()?.refresh_unix?;
        Some(Duration::from_secs(u64::try_from(refresh - now_unix()).unwrap_or(0)))
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Desired => {
                self.take_desired();
                self.retry_at = None;
            }
            Input::Status(update) => self.take_status(*update),
            Input::Refused(refusal) => self.take_refusal(&refusal),
            Input::HostUp => self.retry_at = None,
            Input::Absent { connection } => {
                let entry = self.shared.board.get(self.pod.uid());
                let started = entry.is_some_and(|e| {
                    e.applied.connection == connection && e.intent.is_some_and(|intent| !intent.delete)
                });
                if !started {
                    self.presence = Presence::Absent;
                    self.absent_on = connection;
                }
            }
            Input::HostLost => self.tell_host_lost(),
            Input::References => {
                self.outdated = true;
                self.retry_at = None;
            }
        }
    }

    fn take_desired(&mut self) {
        match self.shared.desired.get(self.pod.uid()) {
            Some(pod) => {
                self.digest = intent::digest(&pod);
                let needs = Needs::of(&pod.pod);
                self.outdated |= needs != self.needs;
                self.needs = needs;
                self.pod = pod;
                let newest = Arc::clone(&self.pod);
                self.shared.board.update(newest.uid(), |entry| entry.pod = Arc::clone(&newest));
            }
            None => {
                self.gone = true;
                if let Some(deletion) = self.shared.desired.take_deletion(self.pod.uid()) {
                    self.pod = Arc::new(DesiredPod { deletion: Some(deletion), ..DesiredPod::clone(&self.pod) });
                }
                self.shared.board.update(self.pod.uid(), |entry| entry.gone = true);
            }
        }
    }

    fn retry(&mut self) {
        self.retry_at = Some(Instant::now() + self.retry_after);
        self.retry_after = (self.retry_after * 2).min(RETRY_MOST);
    }
}

/// The root of the trace of a pod's start; none for a pod that has started before.
fn start_span(pod: &DesiredPod) -> Span {
    let phase = pod.pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if !matches!(phase, None | Some("Pending")) {
        return Span::none();
    }
    tracing::info_span!(
        parent: None,
        "pod.start",
        pod.uid = pod.uid(),
        pod.namespace = pod.pod_ref.namespace,
        pod.name = pod.pod_ref.name,
    )
}

async fn next_change(
    changes: &mut Option<broadcast::Receiver<ReferenceChanged>>,
) -> Result<ReferenceChanged, broadcast::error::RecvError> {
    match changes {
        Some(changes) => changes.recv().await,
        None => std::future::pending().await,
    }
}

fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn now_unix() -> i64 {
    i64::try_from(now_ns() / 1_000_000_000).unwrap_or(i64::MAX)
}

/// RFC 3339 in whole seconds, as Kubernetes writes times.
fn now_text() -> String {
    jiff::Timestamp::from_second(now_unix()).map(|t| t.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
