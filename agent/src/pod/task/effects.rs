//! Carries effects out. Each is a task of its own and answers with an [`Outcome`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sandbox::contract::{Exit, SandboxError, SandboxEvent};
use sandbox::spec::SandboxId;
use tracing::Instrument as _;

use super::pull::{self, Teller};
use super::volume_images::Missing;
use super::{Outcome, PodTask, World, context, start};
use crate::clock::Now;
use crate::pod::spec::signal;
use crate::pod::state::{Effect, ExitFacts, Picture};
use crate::pod::volumes::{PodDirs, disk};
use crate::ports::{ImageWish, Metered, PullPolicy};

/// First pause between tries of a release step; doubles.
const RELEASE_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause between tries of a release step.
const RELEASE_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A kubelet reads this much of a termination message.
const MESSAGE_BYTES: u64 = 4096;
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

impl PodTask {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Prepare => self.prepare(),
            Effect::Pull { slot } => self.pull(slot),
            Effect::Start { slot, attempt } => self.start(slot, attempt),
            Effect::Stop { slot } => self.signal(slot, self.stop_signal(slot), false),
            Effect::Kill { slot } => self.signal(slot, SIGKILL, true),
            Effect::Release => self.release(),
            Effect::Tell { slot, warning, reason, message } => self.tell(slot, warning, reason, message),
        }
    }

    fn prepare(&mut self) {
        let incarnation = self.record.state.incarnation;
        let mut preparation = start::Preparation {
            world: self.world.clone(),
            sandbox: self.sandbox(),
            own_cpus: !self.record.assigned.cpus.is_empty(),
            dirs: self.dirs.clone(),
            material: self.material.subscribe(),
            ending: self.ending.clone(),
            wanted_ids: self.image_ids.subscribe(),
            image_ids: BTreeSet::new(),
            outcomes: self.outcomes.clone(),
        };
        let outcomes = self.outcomes.clone();
        let span = tracing::info_span!(parent: &self.start_span, "sandbox.prepare", sandbox.id = %self.sandbox());
        tokio::spawn(
            async move {
                let result = preparation.run().await;
                let image_ids = preparation.image_ids;
                let _ = outcomes.send(Outcome::Prepared { incarnation, image_ids, result });
            }
            .instrument(span),
        );
    }

    /// Follows what happens in the present sandbox, from its beginning.
    pub(super) async fn watch_sandbox(&mut self) {
        let incarnation = self.record.state.incarnation;
        let id = self.sandbox();
        let outcomes = self.outcomes.clone();
        match self.world.sandboxes.events(&id).await {
            Ok(mut events) => {
                tokio::spawn(async move {
                    while let Some(event) = events.recv().await {
                        if outcomes.send(Outcome::Sandbox { incarnation, event }).is_err() {
                            return;
                        }
                    }
                });
            }
            Err(error) => {
                tracing::warn!(error = crate::errors::chain(&error), sandbox.id = %id, "sandbox cannot be followed");
                if matches!(error, SandboxError::NotFound { .. }) {
                    let boottime_ns = Now::read().boottime_ns;
                    let _ = outcomes.send(Outcome::Sandbox { incarnation, event: SandboxEvent::Lost { boottime_ns } });
                } else {
                    self.watch_again(id, incarnation);
                }
            }
        }
    }

    /// Could not ask: the sandbox may well live. Asked again until there is an answer.
    fn watch_again(&self, id: SandboxId, incarnation: u32) {
        let (world, outcomes) = (self.world.clone(), self.outcomes.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let lost = SandboxEvent::Lost { boottime_ns: Now::read().boottime_ns };
                match world.sandboxes.events(&id).await {
                    Ok(mut events) => {
                        while let Some(event) = events.recv().await {
                            if outcomes.send(Outcome::Sandbox { incarnation, event }).is_err() {
                                return;
                            }
                        }
                        return;
                    }
                    Err(SandboxError::NotFound { .. }) => {
                        let _ = outcomes.send(Outcome::Sandbox { incarnation, event: lost });
                        return;
                    }
                    Err(_) if outcomes.is_closed() => return,
                    Err(_) => {}
                }
            }
        });
    }

    fn pull(&mut self, slot: usize) {
        let planned = &self.plan.slots[slot];
        let wish = ImageWish {
            reference: planned.image.clone(),
            policy: planned.pull,
            credentials: self.intent.resolved.credentials.clone(),
            trusted: self.intent.source == crate::intent::Source::Manifest,
            domain: self.intent.namespace().to_owned(),
        };
        let teller = self.teller(slot);
        let of_pod = Teller::of_pod(&self.world.journal, &self.intent);
        let (world, outcomes) = (self.world.clone(), self.outcomes.clone());
        let ending = self.ending.clone();
        let (volume_images, intent) = (self.volume_images.clone(), Arc::new(self.intent.clone()));
        let container = planned.name.clone();
        let span = tracing::info_span!(parent: &self.start_span, "image.ensure", image = wish.reference);
        let work = async move {
            // Images of volumes come first, as with a kubelet.
            let both = async {
                if let Some(container) = context(&intent, &world, None).container(&container) {
                    volume_images.bring(&world, &intent, &container, &of_pod).await?;
                }
                let own = pull::image(&world, &wish, &teller).await;
                own.map_err(|failure| Missing { reference: wish.reference.clone(), failure })
            };
            let result = tokio::select! {
                result = both => result,
                () = ending.cancelled() => return,
            };
            let _ = outcomes.send(Outcome::Image { slot, reference: wish.reference, result: Box::new(result) });
        };
        tokio::spawn(work.instrument(span));
    }

    fn teller(&self, slot: usize) -> Teller {
        Teller {
            journal: self.world.journal.clone(),
            uid: self.intent.uid.clone(),
            namespace: self.intent.namespace().to_owned(),
            name: self.intent.name().to_owned(),
            field_path: self.plan.slots[slot].field_path(),
        }
    }

    fn start(&mut self, slot: usize, attempt: u32) {
        let planned = &self.plan.slots[slot];
        let image = self.images.get(&slot).cloned();
        let wish = ImageWish {
            reference: match &self.record.state.containers[slot].image {
                Picture::Ready(facts) => facts.reference.clone(),
                _ => planned.image.clone(),
            },
            policy: PullPolicy::IfNotPresent,
            credentials: self.intent.resolved.credentials.clone(),
            trusted: self.intent.source == crate::intent::Source::Manifest,
            domain: self.intent.namespace().to_owned(),
        };
        let launch = start::Launch {
            world: self.world.clone(),
            sandbox: self.sandbox(),
            dirs: self.dirs.clone(),
            material: self.material.subscribe(),
            ending: self.ending.clone(),
            container: planned.name.clone(),
            attempt,
            own_cpus: self.record.assigned.cpus.get(&planned.name).cloned(),
            units: self.record.assigned.devices.get(&planned.name).cloned().unwrap_or_default(),
            ip: self.record.state.ip,
            image_ids: self.record.state.sandbox_ids.clone(),
            image,
            wish,
            volume_images: self.volume_images.clone(),
            teller: Teller::of_pod(&self.world.journal, &self.intent),
            outcomes: self.outcomes.clone(),
        };
        let outcomes = self.outcomes.clone();
        let span = tracing::info_span!(parent: &self.start_span, "container.start", container = planned.name, attempt);
        tokio::spawn(
            async move {
                let result = launch.run().await;
                let _ = outcomes.send(Outcome::Started { slot, attempt, result });
            }
            .instrument(span),
        );
    }

    fn stop_signal(&self, slot: usize) -> i32 {
        let name = &self.plan.slots[slot].name;
        let chosen = self.intent.pod.spec.as_ref().and_then(|spec| {
            let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
            all.find(|c| c.name == *name)?.lifecycle.as_ref()?.stop_signal.clone()
        });
        let from_image = || self.images.get(&slot).and_then(|image| image.config.stop_signal.clone());
        chosen.or_else(from_image).as_deref().and_then(signal::parse).unwrap_or(SIGTERM)
    }

    fn signal(&self, slot: usize, signal: i32, all: bool) {
        let (world, id) = (self.world.clone(), self.sandbox());
        let container = self.plan.slots[slot].name.clone();
        let work = async move {
            match world.sandboxes.signal(&id, &container, signal, all).await {
                Ok(()) | Err(SandboxError::NotFound { .. }) => {}
                Err(error) => {
                    // The grace period goes on: what is not asked will be killed.
                    tracing::warn!(error = crate::errors::chain(&error), container, signal, "signal was not sent");
                }
            }
        };
        tokio::spawn(work.in_current_span());
    }

    /// Reads the termination message, then tells the machine.
    pub(super) fn read_exit(&self, slot: usize, attempt: u32, exit: Exit) {
        let name = self.plan.slots[slot].name.clone();
        let path = self.dirs.message(&name, attempt);
        let log = self.dirs.logs().join(&name);
        let from_log = exit.code != 0
            && context(&self.intent, &self.world, None)
                .container(&name)
                .is_some_and(|c| c.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"));
        let outcomes = self.outcomes.clone();
        tokio::spawn(async move {
            let read = tokio::task::spawn_blocking(move || {
                let message = read_message(&path);
                if message.is_empty() && from_log { crate::logs::last_words(&log, attempt) } else { message }
            });
            let message = read.await.unwrap_or_default();
            let exit = ExitFacts {
                code: exit.code,
                signal: exit.signal,
                oom_killed: exit.oom_killed,
                at: Now { boottime_ns: exit.boottime_ns, wall_ns: exit.wall_ns },
                message,
            };
            let _ = outcomes.send(Outcome::Exited { slot, attempt, exit });
        });
    }

    fn release(&mut self) {
        let (world, id, dirs) = (self.world.clone(), self.sandbox(), self.dirs.clone());
        let holding = self.record.holding;
        let last = matches!(self.record.state.stage, crate::pod::state::Stage::Releasing);
        let outcomes = self.outcomes.clone();
        let work = async move {
            let metered = if holding { Some(let_go(&world, &id).await) } else { None };
            if last {
                clean(dirs).await;
            }
            let _ = outcomes.send(Outcome::Released { metered });
        };
        tokio::spawn(work.in_current_span());
    }

    /// Layers of before the agent's restart stay.
    pub(super) fn adopt_images(&mut self) {
        let layers = self.record.state.layers();
        if layers.is_empty() || self.record.state.is_terminal() {
            return;
        }
        match self.world.images.adopt(&layers) {
            Ok(lease) => self.adopted.push(lease),
            Err(error) => tracing::warn!(%error, "layers of a running pod are missing in the store"),
        }
    }

    /// New values reach the volumes of a pod that is up.
    pub(super) fn refresh_volumes(&self) {
        if !self.is_up() {
            let _ = self.outcomes.send(Outcome::Refreshed);
            return;
        }
        let (world, intent, dirs) = (self.world.clone(), Arc::new(self.intent.clone()), self.dirs.clone());
        let ip = self.record.state.ip;
        let outcomes = self.outcomes.clone();
        let work = async move {
            let done = tokio::task::spawn_blocking(move || {
                disk::prepare(context(&intent, &world, ip), &dirs, &world.resolver, Now::read().wall_ns)
            });
            match done.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = crate::errors::chain(&error), "volumes were not brought up to date")
                }
                Err(error) => tracing::warn!(%error, "volumes were not brought up to date"),
            }
            let _ = outcomes.send(Outcome::Refreshed);
        };
        tokio::spawn(work.in_current_span());
    }
}

/// Destroys, stops the bill, frees the address; each until it succeeds.
async fn let_go(world: &World, id: &SandboxId) -> Metered {
    world.meter.look(id).await;
    retry("destroy the sandbox", || async {
        match world.sandboxes.destroy(id).await {
            Ok(()) | Err(SandboxError::NotFound { .. }) => Ok(()),
            Err(error) => Err(crate::errors::chain(&error)),
        }
    })
    .await;
    let detach = retry("detach from the network", || async {
        world.network.detach(id).await.map_err(|e| crate::errors::chain(&e))
    });
    let stop = retry("stop the meter", || async { world.meter.stop(id).await.map_err(|e| crate::errors::chain(&e)) });
    let ((), metered) = tokio::join!(detach, stop);
    metered
}

async fn clean(dirs: PodDirs) {
    retry("remove the pod's files", || {
        let dirs = dirs.clone();
        async move {
            match tokio::task::spawn_blocking(move || disk::remove(&dirs)).await {
                Ok(result) => result.map_err(|e| crate::errors::chain(&e)),
                Err(error) => Err(error.to_string()),
            }
        }
    })
    .await;
}

async fn retry<T, F: Future<Output = Result<T, String>>>(what: &'static str, attempt: impl Fn() -> F) -> T {
    let mut pause = RELEASE_PAUSE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => tracing::warn!(what, error, "release step failed; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RELEASE_PAUSE_MAX);
    }
}

fn read_message(path: &std::path::Path) -> String {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let open = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let Ok(file) = open else { return String::new() };
    let mut bytes = Vec::new();
    if file.take(MESSAGE_BYTES).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
