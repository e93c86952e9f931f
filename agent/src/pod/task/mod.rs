//! The one owner of a pod's state. Others send requests or read the [board](crate::board).
//!
//! ```text
//! requests ──┐                                  ┌─> effects, each a task of its own; answers come back as outcomes
//! outcomes ──┼──> state.step(event) ── effects ─┤
//! time ──────┘          │                       └─> Events (journal)
//!                       ├─> board: status, when it differs
//!                       └─> ledger: state, when it differs; awaited before the kernel is touched and before a sandbox is destroyed
//! ```
//! Durable before the kernel is touched: the intent (before it is acknowledged), that a sandbox of this incarnation may exist (same
//! write for the first one), the meter's start. Container starts need no write of their own: the shim remembers attempts, and
//! asking again with the same number changes nothing.

mod effects;
mod parts;
mod publish;
mod saver;
mod start;

use std::collections::BTreeMap;
use std::sync::Arc;

use agent_api::proto::PodEvent;
use sandbox::contract::SandboxEvent;
use sandbox::spec::SandboxId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use self::parts::{Beginning, Handle, Names, Request, World};
use self::saver::Saver;
use super::plan::Plan;
use super::spec::Context;
use super::state::{Effect, Event, ExitFacts, ImageFacts, Picture, PodState, Run, StartFailure};
use super::volumes::PodDirs;
use crate::clock::Now;
use crate::intent::Intent;
use crate::ledger::PodRecord;
use crate::ports::{Address, Metered, ReadyImage};

/// What effects send back.
enum Outcome {
    Prepared { incarnation: u32, result: Result<Address, String> },
    Held { metered: Metered },
    Configured { at: u64 },
    Image { slot: usize, result: Box<Result<ReadyImage, crate::ports::ImageFailure>> },
    Started { slot: usize, attempt: u32, result: Result<sandbox::contract::Started, StartFailure> },
    Sandbox { incarnation: u32, event: SandboxEvent },
    Exited { slot: usize, attempt: u32, exit: ExitFacts },
    Released { metered: Option<Metered> },
    Refreshed,
}

/// A pod's owner.
pub struct PodTask {
    world: Arc<World>,
    intent: Intent,
    plan: Plan,
    record: PodRecord,
    names: Names,
    dirs: PodDirs,
    /// Images of slots, held while the pod may start containers.
    images: BTreeMap<usize, ReadyImage>,
    /// Layers held since an agent restart.
    adopted: Vec<Box<dyn Send + Sync>>,
    /// The newest intent with secret material, for effects that wait for it.
    material: watch::Sender<Option<Arc<Intent>>>,
    generation: watch::Sender<u64>,
    outcomes: mpsc::UnboundedSender<Outcome>,
    /// Cancelled when nothing new is to be started.
    ending: CancellationToken,
    saver: Saver,
    start_span: tracing::Span,
    accepted: Now,
}

impl PodTask {
    /// Starts the task of a pod.
    pub fn spawn(world: Arc<World>, intent: Intent, record: PodRecord, beginning: Beginning) -> Handle {
        let (requests, inbox) = mpsc::channel(16);
        let (outcomes, answers) = mpsc::unbounded_channel();
        let generation = watch::Sender::new(intent.generation);
        let seen = generation.subscribe();
        let span = tracing::info_span!(
            "pod",
            pod.uid = %intent.uid,
            pod.name = %intent.name(),
            pod.namespace = %intent.namespace(),
        );
        let start_span = match &beginning {
            Beginning::New { .. } => tracing::info_span!(
                parent: None,
                "pod.start",
                pod.uid = %intent.uid,
                pod.name = %intent.name(),
                pod.namespace = %intent.namespace(),
                generation = intent.generation,
            ),
            Beginning::Recovered { .. } => tracing::Span::none(),
        };
        let has_material = match &beginning {
            Beginning::New { .. } => true,
            Beginning::Recovered { material, .. } => *material,
        };
        let task = PodTask {
            plan: Plan::of(&intent.pod),
            names: Names::new(&intent.uid),
            dirs: PodDirs::new(&world.state_dir, &world.run_dir, &intent.uid),
            images: BTreeMap::new(),
            adopted: Vec::new(),
            material: watch::Sender::new(has_material.then(|| Arc::new(intent.clone()))),
            generation,
            outcomes,
            ending: CancellationToken::new(),
            saver: Saver::new(world.ledger.clone()),
            start_span,
            accepted: record.state.begun.unwrap_or_else(Now::read),
            intent,
            record,
            world,
        };
        tokio::spawn(task.run(inbox, answers, beginning).instrument(span));
        Handle { requests, generation: seen }
    }

    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Request>,
        mut answers: mpsc::UnboundedReceiver<Outcome>,
        beginning: Beginning,
    ) {
        if !self.begin(beginning).await {
            return;
        }
        loop {
            let now = Now::read();
            let wake = self.record.state.next_wake(&self.plan, now);
            let pause = wake.map(|at| std::time::Duration::from_nanos(at.saturating_sub(now.boottime_ns)));
            tokio::select! {
                biased;
                Some(outcome) = answers.recv() => self.take(outcome).await,
                request = inbox.recv() => match request {
                    Some(Request::Intent(intent, done)) => self.new_intent(*intent, done).await,
                    Some(Request::Remove) => {
                        let grace_seconds = self.plan.grace_seconds;
                        self.happened(Event::Delete { grace_seconds }).await;
                    }
                    Some(Request::Forget(done)) => {
                        if self.forget().await {
                            let _ = done.send(true);
                            return;
                        }
                        let _ = done.send(false);
                    }
                    // The agent stops; pods go on.
                    None => {
                        self.saver.flush().await;
                        return;
                    }
                },
                () = sleep(pause) => self.happened(Event::Tick).await,
            }
        }
    }

    async fn begin(&mut self, beginning: Beginning) -> bool {
        match beginning {
            Beginning::New { verdict, notes, accepted } => {
                let now = Now::read();
                self.accepted = now;
                self.record.timeline.accepted_ns = now.wall_ns;
                // One write covers the intent and the sandbox that is about to exist.
                self.record.holding = verdict.is_none();
                if let Err(message) = self.write_down().await {
                    // Nothing was touched, and nothing is remembered.
                    self.world.board.remove(&self.intent.uid);
                    let _ = accepted.send(Err(message));
                    return false;
                }
                let _ = accepted.send(Ok(()));
                for (reason, message) in notes {
                    self.tell(None, true, reason, message);
                }
                match verdict {
                    Some(verdict) => {
                        self.world.metrics.refused(&verdict.reason);
                        let (reason, message) = (verdict.reason.clone(), verdict.message.clone());
                        self.tell_owned(None, true, reason, message);
                        self.happened(Event::Deny(verdict)).await;
                    }
                    None => self.happened(Event::Begin).await,
                }
                if let Some(deletion) = self.intent.deletion {
                    self.happened(Event::Delete { grace_seconds: deletion.grace_seconds }).await;
                }
            }
            Beginning::Recovered { alive, rebooted, .. } => {
                self.adopt_images();
                self.record.boot_id.clone_from(&self.world.boot_id);
                if alive {
                    self.watch_sandbox().await;
                }
                self.happened(Event::Recovered { alive, rebooted }).await;
                if self.record.state.begun.is_none() {
                    self.happened(Event::Begin).await;
                }
                if let Some(deletion) = self.intent.deletion
                    && !self.record.state.deleting
                {
                    self.happened(Event::Delete { grace_seconds: deletion.grace_seconds }).await;
                }
                self.publish();
            }
        }
        true
    }

    /// Writes material and record; the pod is not touched before.
    async fn write_down(&mut self) -> Result<(), String> {
        start::write_material(&self.dirs, &self.intent).await?;
        self.saver.save_now(&self.record).await.map_err(|error| crate::errors::chain(&error))
    }

    /// One event: step, effects, board, ledger.
    async fn happened(&mut self, event: Event) {
        let now = Now::read();
        let before = self.record.state.clone();
        let effects = match self.record.state.step(&self.plan, event, now) {
            Ok(effects) => effects,
            Err(refused) => {
                tracing::debug!(%refused, "event changes nothing");
                return;
            }
        };
        tracing::debug!(?effects, stage = ?self.record.state.stage, "step");
        if self.record.state.is_ending(&self.plan) {
            self.ending.cancel();
        }
        self.milestones();
        let releases = effects.contains(&Effect::Release);
        let prepares_anew = effects.contains(&Effect::Prepare) && !self.record.holding;
        if prepares_anew {
            self.record.holding = true;
        }
        if self.record.state != before {
            self.publish();
            self.saver.save_soon(&self.record);
        }
        if releases || prepares_anew {
            // Exits leave the shim's memory with the sandbox, and a sandbox must be known before it exists.
            self.saver.flush().await;
        }
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn milestones(&mut self) {
        let state = &self.record.state;
        let finished = state.is_ending(&self.plan) && !state.containers.iter().any(|c| c.is_alive());
        if finished && self.record.timeline.finished_ns == 0 {
            let last = state.containers.iter().filter_map(|c| c.latest.as_ref()).map(|e| e.finished_wall_ns).max();
            self.record.timeline.finished_ns = last.unwrap_or_else(|| Now::read().wall_ns);
        }
        let ready = |c: &super::state::ContainerState| matches!(c.image, Picture::Ready(_));
        if self.record.timeline.image_ready_ns == 0 && state.containers.iter().all(ready) {
            self.record.timeline.image_ready_ns = self.label(Now::read().boottime_ns);
        }
    }

    /// The wall time of a boot time, by its distance from acceptance.
    fn label(&self, boottime_ns: u64) -> u64 {
        self.accepted.wall_of(boottime_ns)
    }

    async fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Held { metered } => {
                if self.record.timeline.held_ns == 0 {
                    self.record.timeline.held_ns = metered.wall_ns;
                    self.record.timeline.held_boottime_ns = metered.boottime_ns;
                }
            }
            Outcome::Configured { at } => {
                if self.record.timeline.sandbox_ready_ns == 0 {
                    self.record.timeline.sandbox_ready_ns = self.label(at);
                }
            }
            Outcome::Prepared { incarnation, result } => {
                if incarnation != self.record.state.incarnation {
                    return;
                }
                let event = match result {
                    Ok(address) => {
                        self.watch_sandbox().await;
                        Event::SandboxReady { ip: Some(address.ip) }
                    }
                    Err(message) => Event::SandboxFailed { message },
                };
                self.happened(event).await;
            }
            Outcome::Image { slot, result } => self.image(slot, *result).await,
            Outcome::Started { slot, attempt, result } => {
                let event = match result {
                    Ok(started) => self.started(slot, attempt, started),
                    Err(failure) => Event::StartFailed { slot, attempt, failure },
                };
                self.happened(event).await;
            }
            Outcome::Sandbox { incarnation, event } => {
                if incarnation == self.record.state.incarnation {
                    self.sandbox_event(event).await;
                }
            }
            Outcome::Exited { slot, attempt, exit } => self.happened(Event::Exited { slot, attempt, exit }).await,
            Outcome::Released { metered } => {
                if let Some(metered) = metered {
                    self.record.timeline.released_ns = metered.wall_ns;
                    self.record.timeline.released_boottime_ns = metered.boottime_ns;
                }
                self.record.holding = false;
                self.happened(Event::Released).await;
                if self.record.state.is_terminal() {
                    self.images.clear();
                    self.adopted.clear();
                    self.saver.flush().await;
                }
            }
            Outcome::Refreshed => self.happened(Event::Refreshed).await,
        }
    }

    fn started(&mut self, slot: usize, attempt: u32, started: sandbox::contract::Started) -> Event {
        if self.record.timeline.started_ns == 0 {
            self.record.timeline.started_ns = self.label(started.boottime_ns);
            let seconds = started.boottime_ns.saturating_sub(self.accepted.boottime_ns) as f64 / 1e9;
            self.world.metrics.started(seconds);
            self.start_span = tracing::Span::none();
        }
        Event::Started { slot, attempt, wall_ns: started.wall_ns }
    }

    async fn image(&mut self, slot: usize, result: Result<ReadyImage, crate::ports::ImageFailure>) {
        let event = match result {
            Ok(image) => {
                let facts = ImageFacts {
                    reference: image.reference.clone(),
                    image_id: image.image_id.clone(),
                    layers: image.layers.iter().map(|layer| layer.id.clone()).collect(),
                };
                self.images.insert(slot, image);
                Event::ImageReady { slot, facts }
            }
            Err(failure) => Event::ImageFailed { slot, reason: failure.reason.to_owned(), message: failure.message },
        };
        self.happened(event).await;
    }

    async fn sandbox_event(&mut self, event: SandboxEvent) {
        match event {
            SandboxEvent::Started { container, attempt, started } => {
                if let Some(slot) = self.plan.index(&container) {
                    let event = self.started(slot, attempt, started);
                    self.happened(event).await;
                }
            }
            SandboxEvent::FirstByte { boottime_ns, .. } => {
                if self.record.timeline.first_byte_ns == 0 {
                    self.record.timeline.first_byte_ns = self.label(boottime_ns);
                    self.publish();
                }
            }
            SandboxEvent::Exited { container, attempt, exit } => {
                if let Some(slot) = self.plan.index(&container) {
                    self.read_exit(slot, attempt, exit);
                }
            }
            SandboxEvent::Lost { .. } => self.happened(Event::Lost).await,
        }
    }

    async fn new_intent(&mut self, intent: Intent, done: oneshot::Sender<Result<(), String>>) {
        let newer = intent.generation > self.intent.generation;
        let awaited = self.material.borrow().is_none();
        let deletes = intent.deletion.is_some() && self.intent.deletion != intent.deletion;
        if intent.generation < self.intent.generation || !(newer || awaited || deletes) {
            let _ = done.send(Ok(()));
            return;
        }
        let old = std::mem::replace(&mut self.intent, intent);
        let (resolved, secrets) = self.intent.resolved.without_secrets();
        self.record.generation = self.intent.generation;
        self.record.pod = (*self.intent.raw).clone();
        self.record.resolved = resolved;
        self.record.secrets = secrets;
        // Deletion cannot be taken back.
        self.intent.deletion = self.intent.deletion.or(old.deletion);
        self.record.deletion = self.intent.deletion;
        let plan = Plan::of(&self.intent.pod);
        let same = |new: &Plan| {
            new.slots.len() == self.plan.slots.len()
                && new.slots.iter().zip(&self.plan.slots).all(|(a, b)| a.name == b.name && a.image == b.image)
        };
        if same(&plan) {
            self.plan = plan;
        } else {
            let message =
                "containers or images of a running pod were changed; this version keeps what it started".to_owned();
            self.tell(None, true, "UnsupportedPodChange", message);
        }
        if self.record.state.is_terminal() {
            self.publish();
        }
        let result = self.write_down().await;
        self.generation.send_replace(self.intent.generation);
        self.material.send_replace(Some(Arc::new(self.intent.clone())));
        let _ = done.send(result);
        if let Some(deletion) = self.intent.deletion {
            self.happened(Event::Delete { grace_seconds: deletion.grace_seconds }).await;
        }
        self.publish();
        if !self.record.state.is_ending(&self.plan) {
            self.refresh_volumes();
        }
    }

    async fn forget(&mut self) -> bool {
        if !self.record.state.is_terminal() {
            return false;
        }
        self.saver.flush().await;
        let (ledger, dirs, uid) = (self.world.ledger.clone(), self.dirs.clone(), self.intent.uid.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let files = super::volumes::disk::forget(&dirs).map_err(|e| crate::errors::chain(&e));
            files.and_then(|()| ledger.remove(&uid).map_err(|e| crate::errors::chain(&e)))
        })
        .await;
        match removed {
            Ok(Ok(())) => {
                self.world.board.remove(&self.intent.uid);
                true
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "pod could not be forgotten; it will be tried again");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "pod could not be forgotten; it will be tried again");
                false
            }
        }
    }

    fn tell(&self, slot: Option<usize>, warning: bool, reason: &'static str, message: String) {
        self.tell_owned(slot, warning, reason.to_owned(), message);
    }

    fn tell_owned(&self, slot: Option<usize>, warning: bool, reason: String, message: String) {
        tracing::info!(reason, text = message, "event");
        self.world.journal.add(PodEvent {
            seq: 0,
            uid: self.intent.uid.clone(),
            namespace: self.intent.namespace().to_owned(),
            name: self.intent.name().to_owned(),
            field_path: slot.map(|s| self.plan.slots[s].field_path()).unwrap_or_default(),
            r#type: if warning { "Warning" } else { "Normal" }.to_owned(),
            reason,
            message,
            unix_ns: i64::try_from(Now::read().wall_ns).unwrap_or_default(),
        });
    }

    /// The present sandbox.
    fn sandbox(&self) -> SandboxId {
        self.names.id(self.record.state.incarnation)
    }

    fn is_up(&self) -> bool {
        self.record.state.containers.iter().any(|c| matches!(c.run, Run::Running { .. }))
    }
}

impl PodState {
    /// Layers that containers of this pod use.
    pub fn layers(&self) -> Vec<String> {
        let mut layers: Vec<String> = self
            .containers
            .iter()
            .filter_map(|c| match &c.image {
                Picture::Ready(facts) => Some(facts.layers.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        layers.sort();
        layers.dedup();
        layers
    }
}

async fn sleep(pause: Option<std::time::Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// What specifications are made of.
fn context<'a>(intent: &'a Intent, world: &'a World, ip: Option<std::net::IpAddr>) -> Context<'a> {
    Context { pod: &intent.pod, resolved: &intent.resolved, host: &world.host, ip }
}
