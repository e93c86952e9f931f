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

mod cpus;
mod effects;
mod outcomes;
mod parts;
mod publish;
mod pull;
mod requests;
mod resize;
mod saver;
mod start;
mod storage;
mod volume_images;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent_api::proto::PodEvent;
use agent_api::trace::adopt;
use sandbox::spec::SandboxId;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::outcomes::Outcome;
pub use self::parts::{Beginning, Handle, Names, Request, Standing, World};
use self::saver::Saver;
use self::volume_images::VolumeImages;
use super::plan::Plan;
use super::spec::Context;
use super::state::{Effect, Event, Picture, Run};
use super::volumes::PodDirs;
use crate::clock::Now;
use crate::cpus::CpuSet;
use crate::intent::Intent;
use crate::ledger::PodRecord;
use crate::ports::ReadyImage;

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
    /// Those of its volumes.
    volume_images: Arc<VolumeImages>,
    /// Layers held since an agent restart.
    adopted: Vec<Box<dyn Send + Sync>>,
    /// The newest intent with secret material, for effects that wait for it.
    material: watch::Sender<Option<Arc<Intent>>>,
    generation: watch::Sender<u64>,
    /// Ids of the images' users that a sandbox made now is to have.
    image_ids: watch::Sender<BTreeSet<u32>>,
    outcomes: mpsc::UnboundedSender<Outcome>,
    /// Cancelled when nothing new is to be started.
    ending: CancellationToken,
    saver: Saver,
    /// Exits whose termination messages are being read; the sandbox's end is told after them.
    reading: usize,
    /// The sandbox has died, and exits are still being read.
    lost: bool,
    start_span: tracing::Span,
    accepted: Now,
    /// When a change of resources is tried again.
    resize_at: Option<tokio::time::Instant>,
    /// CPUs that containers have for themselves, of any pod.
    exclusive_cpus: watch::Receiver<CpuSet>,
    /// When containers are put on their CPUs again.
    cpus_at: Option<tokio::time::Instant>,
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
        adopt(&start_span, &intent.traceparent);
        let has_material = match &beginning {
            Beginning::New { .. } => true,
            Beginning::Recovered { material, .. } => *material,
        };
        let mut exclusive_cpus = world.board.exclusive_cpus();
        // What runs already may have been put elsewhere by an earlier agent.
        exclusive_cpus.mark_changed();
        let plan = Plan::of(&intent.pod);
        let mut record = record;
        // An agent before this one may have run the pod without its ephemeral containers.
        record.state.grow(plan.slots.len());
        let task = PodTask {
            plan,
            names: Names::new(&intent.uid),
            dirs: PodDirs::new(&world.state_dir, &world.run_dir, &intent.uid),
            images: BTreeMap::new(),
            volume_images: Arc::default(),
            adopted: Vec::new(),
            material: watch::Sender::new(has_material.then(|| Arc::new(intent.clone()))),
            generation,
            image_ids: watch::Sender::new(record.state.image_ids()),
            outcomes,
            ending: CancellationToken::new(),
            saver: Saver::new(world.ledger.clone()),
            reading: 0,
            lost: false,
            start_span,
            resize_at: None,
            exclusive_cpus,
            cpus_at: None,
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
        self.watch_storage();
        loop {
            let now = Now::read();
            let wake = self.record.state.next_wake(&self.plan, now);
            let pause = wake.map(|at| std::time::Duration::from_nanos(at.saturating_sub(now.boottime_ns)));
            tokio::select! {
                biased;
                Some(outcome) = answers.recv() => self.take(outcome).await,
                request = inbox.recv() => match request {
                    Some(Request::Intent(intent, done)) => self.new_intent(*intent, done).await,
                    Some(Request::Evict { message }) => self.happened(Event::Evict { message, disrupted: true }).await,
                    Some(Request::Standing(answer)) => self.tell_standing(answer),
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
                () = until(self.resize_at) => self.resize_again().await,
                Ok(()) = self.exclusive_cpus.changed() => self.settle_on_cpus().await,
                () = until(self.cpus_at) => self.settle_on_cpus().await,
            }
        }
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

async fn sleep(pause: Option<std::time::Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What specifications are made of.
fn context<'a>(intent: &'a Intent, world: &'a World, ip: Option<std::net::IpAddr>) -> Context<'a> {
    Context { pod: &intent.pod, resolved: &intent.resolved, host: &world.host, ip }
}
