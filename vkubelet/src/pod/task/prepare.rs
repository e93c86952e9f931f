//! Finding a host and looking references up, side by side.

use std::sync::Arc;

use super::{Shared, Task, now_ns, now_unix};
use crate::desired::{DesiredPod, SourceKind};
use crate::placement::oversize::Excess;
use crate::placement::{Request, Unfit};
use crate::ports::{EventType, PortError, SourcePorts};
use crate::resolve::{Outcome, fetch};

impl Task {
    /// Resolves and places side by side. False: wait.
    pub(super) async fn prepare(&mut self, place: bool, resolve: bool) -> bool {
        let needs = self.needs.clone();
        let (pod, ports, shared) = (Arc::clone(&self.pod), self.ports.clone(), Arc::clone(&self.shared));
        let held = self.held.clone();
        let resolving = async {
            if !resolve {
                return None;
            }
            let references = &*ports.references;
            Some(fetch(references, &pod.pod_ref, &pod.pod, &needs, &held, &shared.cluster, now_unix()).await)
        };
        let placing = async {
            if !place {
                return None;
            }
            Some(choose_and_record(&shared, &ports, &pod).await)
        };
        let (resolved, placed) = futures::join!(resolving, placing);
        let mut done = true;
        if let Some(placed) = placed {
            done &= self.take_placement(placed);
        }
        if let Some(outcome) = resolved {
            done &= self.take_resolution(outcome);
        }
        done
    }

    fn take_placement(&mut self, placed: Result<String, Unplaced>) -> bool {
        match placed {
            Ok(host) => {
                tracing::Span::current().record("host.id", &host);
                tracing::info!("pod placed");
                self.shared.board.update(self.pod.uid(), |entry| {
                    entry.host = Some(host.clone());
                    entry.times.placed_ns = now_ns();
                    entry.waiting = None;
                });
                self.host = Some(host);
                true
            }
            Err(Unplaced::Unfit { reason, message }) => {
                self.wait_for(reason, "WaitingForHost", &message, "");
                false
            }
            Err(Unplaced::Oversize(excess)) => {
                self.take_excess(&excess);
                false
            }
            Err(Unplaced::NotRecorded(error)) => {
                if matches!(error, PortError::Stale { .. }) {
                    tracing::info!("the pod is another one by now");
                } else {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "placement could not be written down; trying again"
                    );
                }
                self.retry();
                false
            }
        }
    }

    fn take_resolution(&mut self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Resolved(resolution) => {
                for warning in &resolution.warnings {
                    if self.warned.insert(warning.message.clone()) {
                        self.event(EventType::Warning, warning.reason, &warning.message, &warning.field);
                    }
                }
                if self.resolution.as_ref().is_none_or(|old| old.resolved != resolution.resolved) {
                    self.resolution_number += 1;
                }
                self.held.clone_from(&resolution.tokens);
                self.resolution = Some(*resolution);
                self.outdated = false;
                self.look_or_not();
                true
            }
            Outcome::Waiting(waits) => {
                self.tell_waits(&waits);
                self.retry();
                false
            }
        }
    }
}

enum Unplaced {
    Unfit {
        reason: &'static str,
        message: String,
    },
    /// The whole node has less.
    Oversize(Excess),
    NotRecorded(PortError),
}

async fn choose_and_record(shared: &Shared, ports: &SourcePorts, pod: &DesiredPod) -> Result<String, Unplaced> {
    let request = Request::of(&pod.pod).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
        Unplaced::Unfit { reason: "InvalidResources", message: format!("{error}{cause}") }
    })?;
    let host =
        shared.reservations.place(pod.uid(), &request).map_err(|unfit| unplaced(shared, pod, &request, unfit))?;
    // The reservation stays while the write is tried again: the write may have been done, and its answer lost.
    ports.status.place(pod, &host).await.map_err(Unplaced::NotRecorded)?;
    Ok(host)
}

/// Who writes a manifest may add a host as well; a pod of the API server's is refused as a kubelet refuses it, so that its owner
/// learns of it and makes another.
fn unplaced(shared: &Shared, pod: &DesiredPod, request: &Request, unfit: Unfit) -> Unplaced {
    let excess = (pod.source == SourceKind::Kubernetes)
        .then(|| shared.agents.enrolled())
        .flatten()
        .and_then(|hosts| shared.reservations.excess(request, &hosts));
    match excess {
        Some(excess) => Unplaced::Oversize(excess),
        None => Unplaced::Unfit { reason: "FailedScheduling", message: unfit.message },
    }
}
