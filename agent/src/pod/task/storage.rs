//! What the pod keeps on disk: watched while it may write, and told to whoever must choose who makes way.

use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::outcomes::Outcome;
use super::{PodTask, Standing};
use crate::pod::spec::resources::pod_requests;
use crate::pod::storage::{limits, watch};

/// Priorities from here on are critical: such pods never make way.
const CRITICAL: i32 = 2_000_000_000;

impl PodTask {
    /// Looks at the pod's disk as long as the pod may write to it, if it has a limit at all.
    pub(super) fn watch_storage(&self) {
        let limited = self.intent.pod.spec.as_ref().is_some_and(|spec| limits::any(spec) && !self.is_critical());
        if !limited || self.ending.is_cancelled() {
            return;
        }
        let watched = self.watched();
        let (turn, ending) = (self.world.measuring.clone(), self.ending.clone());
        let outcomes = self.outcomes.clone();
        let work = async move {
            tokio::select! {
                message = watch::until_exceeded(watched, turn) => {
                    let _ = outcomes.send(Outcome::OverLimit { message });
                }
                () = ending.cancelled() => {}
                // The agent stops; pods go on.
                () = outcomes.closed() => {}
            }
        };
        tokio::spawn(work.in_current_span());
    }

    pub(super) fn tell_standing(&self, answer: oneshot::Sender<Standing>) {
        let Some(spec) = self.intent.pod.spec.clone() else { return };
        if self.record.state.is_ending(&self.plan) || !self.record.holding || self.is_critical() {
            return;
        }
        let watched = self.watched();
        let turn = self.world.measuring.clone();
        let work = async move {
            let usage = match watch::look(&watched, &turn).await.0 {
                Ok(usage) => usage,
                Err(error) => return tracing::warn!(error, "what a pod keeps on disk could not be measured"),
            };
            let requested = |container: &k8s_openapi::api::core::v1::Container| {
                let requests = container.resources.as_ref()?.requests.as_ref()?;
                Some((container.name.clone(), requests.get("ephemeral-storage")?.0.clone()))
            };
            let _ = answer.send(Standing {
                priority: spec.priority.unwrap_or(0),
                usage,
                request: pod_requests(&spec).map(|requests| requests.ephemeral).unwrap_or(0),
                container_requests: spec
                    .init_containers
                    .iter()
                    .flatten()
                    .chain(&spec.containers)
                    .filter_map(requested)
                    .collect(),
            });
        };
        tokio::spawn(work.in_current_span());
    }

    fn watched(&self) -> watch::Watched {
        let (sandboxes, id) = (self.world.sandboxes.clone(), self.sandbox());
        let written = Arc::new(move || sandboxes.written(&id));
        watch::Watched { pod: self.intent.pod.clone(), dirs: self.dirs.clone(), written }
    }

    fn is_critical(&self) -> bool {
        self.intent.pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= CRITICAL)
    }
}
