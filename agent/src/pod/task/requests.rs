//! What others ask of the pod: its beginning, a newer intent, to be forgotten.

use std::sync::Arc;

use sandbox::contract::SandboxEvent;
use tokio::sync::oneshot;

use super::outcomes::Outcome;
use super::{Beginning, PodTask, start};
use crate::clock::Now;
use crate::intent::Intent;
use crate::pod::changes;
use crate::pod::plan::{Plan, Role};
use crate::pod::resize::Waiting;
use crate::pod::state::{Event, Stage};
use crate::pod::volumes;

impl PodTask {
    /// Whether the pod is remembered: a new one that could not be written down is not.
    pub(super) async fn begin(&mut self, beginning: Beginning) -> bool {
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
                let dead = !alive && !rebooted && self.record.holding;
                if dead && matches!(self.record.state.stage, Stage::New | Stage::Preparing) && self.has_begun().await {
                    // The last thing written down is older than what ran.
                    self.record.state.stage = Stage::Up;
                    self.ask_since_when_held().await;
                }
                // A dead shim's record is still told to its end, and then that it is dead: see `SandboxEvent::Lost`.
                let told = alive || (dead && self.record.state.stage == Stage::Up);
                if told {
                    self.watch_sandbox().await;
                }
                self.happened(Event::Recovered { alive: told, rebooted }).await;
                if self.record.state.begun.is_none() {
                    self.happened(Event::Begin).await;
                }
                if let Some(deletion) = self.intent.deletion
                    && !self.record.state.deleting
                {
                    self.happened(Event::Delete { grace_seconds: deletion.grace_seconds }).await;
                }
                self.publish();
                self.actuate();
                self.allocate().await;
            }
        }
        true
    }

    /// The present sandbox is held, but the record does not say since when; the meter does.
    async fn ask_since_when_held(&mut self) {
        let held = match start::interval(&self.intent, &self.sandbox()) {
            Ok(interval) => self.world.meter.start(&interval).await.map_err(|error| crate::errors::chain(&error)),
            Err(message) => Err(message),
        };
        match held {
            Ok(metered) => self.take(Outcome::Held { metered }).await,
            Err(error) => tracing::warn!(error, "nobody knows since when the pod is held"),
        }
    }

    /// Whether the record of the present sandbox, whose shim is dead, tells of a container that ran.
    async fn has_begun(&self) -> bool {
        let Ok(mut events) = self.world.sandboxes.events(&self.sandbox()).await else { return false };
        while let Some(event) = events.recv().await {
            match event {
                SandboxEvent::Started { .. } => return true,
                SandboxEvent::Lost { .. } => return false,
                _ => {}
            }
        }
        false
    }

    pub(super) async fn new_intent(&mut self, intent: Intent, done: oneshot::Sender<Result<(), String>>) {
        let newer = intent.generation > self.intent.generation;
        let awaited = self.material.borrow().is_none();
        let deletes = intent.deletion.is_some() && self.intent.deletion != intent.deletion;
        if intent.generation < self.intent.generation || !(newer || awaited || deletes) {
            let _ = done.send(Ok(()));
            return;
        }
        // Before anything else of it is looked at: an edited image must not hold up what else is asked for.
        let (intent, mut kept) = intent.keeping_images(&self.intent, |name| self.has_made(name));
        let mut wanted = (*intent.raw).clone();
        changes::keep_scalars(&self.intent.raw, &mut wanted);
        let (intent, others) = intent.keeping(&self.intent);
        let resizes = changes::has_resize(&others);
        kept.extend(others.into_iter().filter(|path| !changes::is_resize(path)));
        let before = self.record.waiting.take();
        let (message, infeasible) = before.map_or((None, false), |before| (before.message, before.infeasible));
        self.record.waiting = resizes.then_some(Waiting { pod: wanted, message, infeasible });
        if kept != self.record.kept && !kept.is_empty() {
            self.tell(None, true, "UnsupportedPodChange", changes::message(&kept));
        }
        self.record.kept = kept;
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
        let changed = self.changed_images(&plan);
        if let Some(changed) = &changed {
            self.record.state.grow(plan.slots.len());
            self.plan = plan;
            for slot in changed {
                self.images.remove(slot);
            }
        } else {
            let message = "containers of a running pod were changed; this version keeps what it started".to_owned();
            self.tell(None, true, "UnsupportedPodChange", message);
        }
        if self.record.state.is_terminal() {
            self.publish();
        }
        let result = self.write_down().await;
        self.generation.send_replace(self.intent.generation);
        self.material.send_replace(Some(Arc::new(self.intent.clone())));
        let _ = done.send(result);
        for slot in changed.into_iter().flatten() {
            self.happened(Event::ImageChanged { slot }).await;
        }
        // Containers that were added have their turn.
        self.happened(Event::Tick).await;
        if let Some(deletion) = self.intent.deletion {
            self.happened(Event::Delete { grace_seconds: deletion.grace_seconds }).await;
        }
        self.publish();
        if !self.record.state.is_ending(&self.plan) {
            self.allocate().await;
            self.refresh_volumes();
        }
    }

    /// Whether a container of this name was made.
    fn has_made(&self, name: &str) -> bool {
        let container = self.plan.index(name).and_then(|slot| self.record.state.containers.get(slot));
        container.is_some_and(|container| container.created)
    }

    /// The slots whose images `new` changes, when it changes no more than images of containers that were never made: an author
    /// corrects a name that could not be had. Ephemeral containers may be added. `None`: it changes more.
    fn changed_images(&self, new: &Plan) -> Option<Vec<usize>> {
        let slots = || new.slots.iter().zip(&self.plan.slots);
        let added = new.slots.iter().skip(self.plan.slots.len());
        let same_names = new.slots.len() >= self.plan.slots.len()
            && slots().all(|(a, b)| a.name == b.name)
            && added.into_iter().all(|slot| slot.role == Role::Ephemeral);
        let changed: Vec<usize> =
            slots().enumerate().filter(|(_, (a, b))| a.image != b.image).map(|(slot, _)| slot).collect();
        let never_made = |slot: &usize| self.record.state.containers.get(*slot).is_some_and(|c| !c.created);
        (same_names && changed.iter().all(never_made)).then_some(changed)
    }

    /// Whether nothing is left of it.
    pub(super) async fn forget(&mut self) -> bool {
        if !self.record.state.is_terminal() {
            return false;
        }
        self.saver.flush().await;
        let (ledger, dirs, uid) = (self.world.ledger.clone(), self.dirs.clone(), self.intent.uid.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let files = volumes::disk::forget(&dirs).map_err(|e| crate::errors::chain(&e));
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
}
