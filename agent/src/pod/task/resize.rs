//! Changes of the pod's resources while it runs: allocated when there is room, written down, carried out, told.
//!
//! ```text
//! wanted ── no room ──> Waiting (PodResizePending: Deferred), tried again
//!    ├── more than the host has, or CPUs of its own ──> Waiting (Infeasible) until something else is wanted
//!    └── room ──> allocated, written down (PodResizeInProgress) ──> meter and kernel ──> done, or an error that is tried again
//! ```
//! What is held grows before the kernel's limits do, and shrinks after them: nobody has what is not billed, and each change is
//! billed from its instant. After a crash of the agent a change that was written down is carried out again from its beginning.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sandbox::contract::SandboxError;
use tracing::Instrument as _;

use super::outcomes::Outcome;
use super::{PodTask, World, start};
use crate::errors::chain;
use crate::host::admission;
use crate::intent::Intent;
use crate::pod::resize::{self, Resizing, Steps};
use crate::pod::spec::resources::pod_requests;
use crate::pod::state::{Event, Run, Stage};
use crate::ports::Interval;

/// Pause before a change that could not be made is tried again.
const AGAIN: Duration = Duration::from_secs(5);

impl PodTask {
    /// Allocates what is wanted, if there is room and nothing else is being carried out.
    pub(super) async fn allocate(&mut self) {
        if self.record.resizing.is_some() || self.record.state.is_ending(&self.plan) {
            return;
        }
        let Some(waiting) = self.record.waiting.clone() else { return };
        let wanted = Intent::new(
            self.intent.uid.clone(),
            self.intent.generation,
            waiting.pod,
            (*self.intent.resolved).clone(),
            self.intent.source,
            self.intent.deletion,
        );
        let wanted = match wanted {
            Ok(wanted) => Intent { traceparent: self.intent.traceparent.clone(), ..wanted },
            Err(error) => {
                tracing::error!(%error, "a pod with its new resources is no pod");
                self.record.waiting = None;
                return;
            }
        };
        let (Some(old), Some(new)) = (self.intent.pod.spec.clone(), wanted.pod.spec.as_ref()) else { return };
        if !self.record.assigned.cpus.is_empty() {
            let words = "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy";
            self.put_off(&wanted, words.to_owned(), true);
            return;
        }
        let has = self.world.host.capacity;
        let asked = pod_requests(new);
        if let Some(words) = asked.as_ref().ok().and_then(|asked| resize::infeasible(has, *asked)) {
            self.put_off(&wanted, words, true);
            return;
        }
        let room = match asked {
            Ok(asked) => self.world.board.resize(&self.intent.uid, asked, |used| admission::shortage(has, used, asked)),
            Err(error) => Some(error.to_string()),
        };
        if let Some(message) = room {
            self.put_off(&wanted, message, false);
            return;
        }
        let before = std::mem::replace(&mut self.intent, wanted);
        self.record.pod = (*self.intent.raw).clone();
        self.record.resizing = Some(Resizing {
            generation: self.intent.pod.metadata.generation.unwrap_or_default(),
            before: resize::by_container(&old),
            pod: old.resources,
            error: None,
        });
        let waiting = self.record.waiting.take();
        if let Err(error) = self.write_down().await {
            tracing::warn!(error, "a change of resources could not be written down");
            self.intent = before;
            self.record.pod = (*self.intent.raw).clone();
            (self.record.resizing, self.record.waiting) = (None, waiting);
            self.try_again();
            self.publish();
            return;
        }
        self.material.send_if_modified(|material| {
            let known = material.is_some();
            if known {
                *material = Some(Arc::new(self.intent.clone()));
            }
            known
        });
        self.tell(None, false, "ResizeStarted", resize::message("started", &self.intent.pod, None));
        self.publish();
        self.actuate();
    }

    /// Not now, or never on this host.
    fn put_off(&mut self, wanted: &Intent, message: String, infeasible: bool) {
        let Some(waiting) = &mut self.record.waiting else { return };
        let told = waiting.message.replace(message.clone()).as_ref() == Some(&message);
        if std::mem::replace(&mut waiting.infeasible, infeasible) != infeasible || !told {
            let (reason, what) = match infeasible {
                true => ("ResizeInfeasible", "Infeasible"),
                false => ("ResizeDeferred", "Deferred"),
            };
            self.tell(None, true, reason, resize::message(what, &wanted.pod, Some(&message)));
        }
        if !infeasible {
            self.try_again();
        }
        self.publish();
    }

    fn try_again(&mut self) {
        self.resize_at = Some(tokio::time::Instant::now() + AGAIN);
    }

    /// The pause is over.
    pub(super) async fn resize_again(&mut self) {
        self.resize_at = None;
        if self.record.resizing.is_some() {
            self.actuate();
        } else {
            self.allocate().await;
        }
    }

    /// Brings what is held, the kernel's limits and the allocated resources in line, once there is a sandbox.
    pub(super) fn actuate(&mut self) {
        if self.record.state.stage != Stage::Up || self.record.state.is_ending(&self.plan) {
            return;
        }
        let (Some(resizing), Some(new)) = (self.record.resizing.clone(), self.intent.pod.spec.clone()) else { return };
        let running: Vec<String> = self
            .plan
            .slots
            .iter()
            .zip(&self.record.state.containers)
            .filter(|(_, container)| matches!(container.run, Run::Running { .. }))
            .map(|(slot, _)| slot.name.clone())
            .collect();
        let policy = self.world.host.policy;
        let old = resize::with_resources(&self.intent.pod, &resizing);
        let memory = self.world.host.memory;
        let steps = resize::steps(&resizing.before, &old, &new, &running, memory, &policy);
        let held = |spec| {
            let pod = k8s_openapi::api::core::v1::Pod { spec: Some(spec), ..(*self.intent.pod).clone() };
            let intent = Intent { pod: Arc::new(pod), ..self.intent.clone() };
            start::interval(&intent, &self.sandbox())
        };
        let sizes = resize::sizes(&old, &resizing.before, &policy);
        let ready = steps.map_err(|error| error.to_string()).and_then(|steps| Ok((steps, held(old)?, held(new)?)));
        let (world, generation) = (self.world.clone(), self.intent.generation);
        let outcomes = self.outcomes.clone();
        let work = async move {
            let result = match ready {
                Ok((steps, old, new)) => carry_out(&world, &steps, &sizes, &old, &new).await.map(|()| steps.restarted),
                Err(error) => Err(error),
            };
            let _ = outcomes.send(Outcome::Resized { generation, result });
        };
        tokio::spawn(work.in_current_span());
    }

    pub(super) async fn resized(&mut self, result: Result<Vec<String>, String>) {
        let Some(resizing) = &mut self.record.resizing else { return };
        match result {
            Ok(restarted) => {
                self.record.resizing = None;
                self.tell(None, false, "ResizeCompleted", resize::message("completed", &self.intent.pod, None));
                let slots: BTreeSet<usize> = restarted.iter().filter_map(|name| self.plan.index(name)).collect();
                for slot in slots {
                    self.happened(Event::Renew { slot }).await;
                    self.kill_later(slot);
                }
                self.saver.save_soon(&self.record);
                self.publish();
                self.settle_on_cpus().await;
                // Something newer may have come meanwhile.
                self.allocate().await;
            }
            Err(error) => {
                if resizing.error.replace(error.clone()).as_ref() != Some(&error) {
                    let text = resize::message("error", &self.intent.pod, Some(&error));
                    self.tell(None, true, "ResizeError", text);
                }
                self.try_again();
                self.saver.save_soon(&self.record);
                self.publish();
            }
        }
    }

    /// What was asked to end, to be started again, is killed when its grace period is over.
    fn kill_later(&self, slot: usize) {
        const SIGKILL: i32 = 9;
        let Some(container) = self.record.state.containers.get(slot).filter(|container| container.renewing) else {
            return;
        };
        let attempt = container.attempt;
        let name = self.plan.slots[slot].name.clone();
        let (world, id) = (self.world.clone(), self.sandbox());
        let uid = self.intent.uid.clone();
        let grace = Duration::from_secs(self.plan.grace_seconds);
        let work = async move {
            tokio::time::sleep(grace).await;
            let present = world.board.get(&uid).and_then(|pod| pod.containers.get(&name).copied());
            if present.is_some_and(|present| present.number == attempt && present.running)
                && let Err(error) = world.sandboxes.signal(&id, &name, SIGKILL, true).await
            {
                tracing::warn!(
                    error = chain(&error),
                    container = name,
                    "a container that is to be started again was not killed"
                );
            }
        };
        tokio::spawn(work.in_current_span());
    }
}

async fn carry_out(
    world: &World,
    steps: &Steps,
    sizes: &resize::Sizes,
    old: &Interval,
    new: &Interval,
) -> Result<(), String> {
    let id = &new.sandbox;
    let used = world.sandboxes.stats(id).await.map_err(|error| chain(&error))?;
    resize::check_memory(steps, sizes, &used)?;
    let most = Interval {
        milli_cpu: old.milli_cpu.max(new.milli_cpu),
        memory_bytes: old.memory_bytes.max(new.memory_bytes),
        ..new.clone()
    };
    world.meter.resize(&most).await.map_err(|error| chain(&error))?;
    let update = |container: Option<String>, limits: sandbox::spec::Resources| async move {
        match world.sandboxes.update(id, container.as_deref(), &limits).await {
            // It has ended meanwhile; the next attempt takes the new limits anyway.
            Err(SandboxError::NotFound { .. }) if container.is_some() => Ok(()),
            other => other.map_err(|error| chain(&error)),
        }
    };
    update(None, steps.wide.clone()).await?;
    for (name, limits) in &steps.in_place {
        update(Some(name.clone()), limits.clone()).await?;
    }
    update(None, steps.narrow.clone()).await?;
    world.meter.resize(new).await.map_err(|error| chain(&error))
}
