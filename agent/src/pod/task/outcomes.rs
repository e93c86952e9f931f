//! What effects and the sandbox send back, and what each answer means to the pod.

use std::collections::BTreeSet;

use sandbox::contract::{SandboxEvent, Started};
use sandbox::spec::User;

use super::volume_images::Missing;
use super::{PodTask, context};
use crate::pod::spec::security;
use crate::pod::state::{Event, ExitFacts, ImageFacts, StartFailure};
use crate::ports::{Address, Metered, ReadyImage};

/// What effects send back.
pub(super) enum Outcome {
    Prepared { incarnation: u32, image_ids: BTreeSet<u32>, result: Result<Address, String> },
    Held { metered: Metered },
    Configured { at: u64 },
    Image { slot: usize, reference: String, result: Box<Result<ReadyImage, Missing>> },
    Started { slot: usize, attempt: u32, result: Result<Started, StartFailure> },
    Identified { container: String, user: User },
    Sandbox { incarnation: u32, event: SandboxEvent },
    Exited { slot: usize, attempt: u32, exit: ExitFacts },
    Released { metered: Option<Metered> },
    Refreshed,
    OverLimit { message: String },
    Resized { generation: u64, result: Result<Vec<String>, String> },
}

impl PodTask {
    pub(super) async fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Held { metered } => {
                // Said again after an agent's restart, with the same instant.
                tracing::info!(sandbox.id = %self.sandbox(), boottime_ns = metered.boottime_ns, "resources are held");
                // Held again, in another sandbox: not released any more.
                self.record.timeline.released_ns = 0;
                self.record.timeline.released_boottime_ns = 0;
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
            Outcome::Prepared { incarnation, image_ids, result } => {
                if incarnation != self.record.state.incarnation {
                    return;
                }
                self.record.state.sandbox_ids = image_ids;
                let event = match result {
                    Ok(address) => {
                        self.watch_sandbox().await;
                        Event::SandboxReady { ip: Some(address.ip) }
                    }
                    Err(message) => Event::SandboxFailed { message },
                };
                self.happened(event).await;
                // Resources may have been changed while it was made.
                self.actuate();
            }
            // The pod may want another image by now.
            Outcome::Image { slot, reference, .. } if self.plan.slots[slot].image != reference => {}
            Outcome::Image { slot, result, .. } => self.image(slot, *result).await,
            Outcome::Started { slot, attempt, result } => {
                let runs = result.is_ok();
                let event = match result {
                    Ok(started) => self.started(slot, attempt, started),
                    Err(failure) => Event::StartFailed { slot, attempt, failure },
                };
                self.happened(event).await;
                if runs {
                    // CPUs may have been given to others meanwhile.
                    self.settle_on_cpus().await;
                }
            }
            // Told with the container's start, which comes next.
            Outcome::Identified { container, user } => drop(self.record.users.insert(container, user)),
            Outcome::Sandbox { incarnation, event } => {
                if incarnation == self.record.state.incarnation {
                    self.sandbox_event(event).await;
                }
            }
            Outcome::Exited { slot, attempt, exit } => {
                self.happened(Event::Exited { slot, attempt, exit }).await;
                self.reading = self.reading.saturating_sub(1);
                if self.reading == 0 && std::mem::take(&mut self.lost) {
                    self.happened(Event::Lost).await;
                }
            }
            Outcome::Released { metered } => {
                if let Some(metered) = metered {
                    let sandbox = self.sandbox();
                    tracing::info!(sandbox.id = %sandbox, boottime_ns = metered.boottime_ns, "resources are released");
                    self.record.timeline.released_ns = metered.wall_ns;
                    self.record.timeline.released_boottime_ns = metered.boottime_ns;
                }
                self.record.holding = false;
                self.happened(Event::Released).await;
                if self.record.state.is_terminal() {
                    self.images.clear();
                    self.volume_images.clear();
                    self.adopted.clear();
                    self.saver.flush().await;
                }
            }
            Outcome::Refreshed => self.happened(Event::Refreshed).await,
            // Overtaken by a newer version of the pod: carried out again with that.
            Outcome::Resized { generation, .. } if generation != self.intent.generation => self.actuate(),
            Outcome::Resized { result, .. } => self.resized(result).await,
            Outcome::OverLimit { message } => self.happened(Event::Evict { message, disrupted: false }).await,
        }
    }

    fn started(&mut self, slot: usize, attempt: u32, started: Started) -> Event {
        if self.record.timeline.started_ns == 0 {
            self.record.timeline.started_ns = self.label(started.boottime_ns);
            let seconds = started.boottime_ns.saturating_sub(self.accepted.boottime_ns) as f64 / 1e9;
            self.world.metrics.started(seconds);
            self.start_span = tracing::Span::none();
        }
        Event::Started { slot, attempt, wall_ns: started.wall_ns }
    }

    async fn image(&mut self, slot: usize, result: Result<ReadyImage, Missing>) {
        let event = match result {
            Ok(image) => {
                let container = context(&self.intent, &self.world, None).container(&self.plan.slots[slot].name);
                let of_volumes = container.map(|own| self.volume_images.layers_of(&self.intent.pod, &own));
                let own = image.layers.iter().map(|layer| layer.id.clone());
                let facts = ImageFacts {
                    reference: image.reference.clone(),
                    image_id: image.image_id.clone(),
                    layers: own.chain(of_volumes.into_iter().flatten()).collect(),
                    high_ids: self.image_ids(slot, &image),
                };
                self.images.insert(slot, image);
                Event::ImageReady { slot, facts }
            }
            Err(Missing { reference, failure }) => Event::ImageFailed {
                slot,
                reference,
                reason: failure.reason.to_owned(),
                message: failure.message,
                retry_after: failure.retry_after,
            },
        };
        self.happened(event).await;
        self.image_ids.send_replace(self.record.state.image_ids());
    }

    fn image_ids(&self, slot: usize, image: &ReadyImage) -> BTreeSet<u32> {
        let container = context(&self.intent, &self.world, None).container(&self.plan.slots[slot].name);
        let spec = self.intent.pod.spec.as_ref();
        spec.zip(container).map(|(spec, own)| security::image_ids(spec, &own, &image.config.user)).unwrap_or_default()
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
                    self.reading += 1;
                    self.read_exit(slot, attempt, exit);
                }
            }
            // What ended before the sandbox did ended as it says, not by the sandbox's death.
            SandboxEvent::Lost { .. } if self.reading > 0 => self.lost = true,
            SandboxEvent::Lost { .. } => self.happened(Event::Lost).await,
        }
    }
}
