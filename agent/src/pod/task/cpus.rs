//! Which CPUs the pod's containers run on, where some containers have CPUs for themselves: the others follow what is left.

use std::time::Duration;

use sandbox::contract::SandboxError;
use sandbox::spec::Resources;
use tokio::time::Instant;

use super::PodTask;
use crate::cpus;
use crate::errors::chain;
use crate::pod::ephemeral;
use crate::pod::spec::resources;
use crate::pod::state::{Run, Stage};

/// Pause before a change that could not be made is tried again.
const AGAIN: Duration = Duration::from_secs(5);

impl PodTask {
    /// Puts the running containers that have no CPUs of their own on those that are nobody's.
    pub(super) async fn settle_on_cpus(&mut self) {
        self.cpus_at = None;
        let Some(host) = &self.world.host.cpus else { return };
        let shared = cpus::list(&host.shared(&self.exclusive_cpus.borrow_and_update()));
        // A change of resources that is under way ends with this.
        if self.record.resizing.is_some() || self.record.state.stage != Stage::Up {
            return;
        }
        let Some(spec) = &self.intent.pod.spec else { return };
        let added: Vec<_> = spec.ephemeral_containers.iter().flatten().map(ephemeral::as_container).collect();
        for container in spec.init_containers.iter().flatten().chain(&spec.containers).chain(&added) {
            let runs = self.plan.index(&container.name).and_then(|slot| self.record.state.containers.get(slot));
            let runs = runs.is_some_and(|state| matches!(state.run, Run::Running { .. }));
            if !runs || self.record.assigned.cpus.contains_key(&container.name) {
                continue;
            }
            let (memory, policy) = (self.world.host.memory, self.world.host.policy);
            let Ok(limits) = resources::of_container(spec, container, memory, &policy) else { continue };
            let limits = Resources { cpuset: Some(shared.clone()), ..limits };
            match self.world.sandboxes.update(&self.sandbox(), Some(&container.name), &limits).await {
                // It has ended meanwhile; the next attempt starts on the right ones.
                Ok(()) | Err(SandboxError::NotFound { .. }) => {}
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(
                        error,
                        container = container.name,
                        cpus = shared,
                        "a container was not moved to its CPUs"
                    );
                    self.cpus_at = Some(Instant::now() + AGAIN);
                }
            }
        }
    }
}
