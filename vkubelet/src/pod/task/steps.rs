//! Carries one step out. Each answers whether the next may follow at once.

use std::sync::Arc;

use agent_api::trace::traceparent;
use tracing::{Instrument, Span};

use super::{RETRY_FIRST, Task, now_ns};
use crate::placement::Request;
use crate::pod::agents::AgentError;
use crate::pod::board::Applied;
use crate::pod::intent;
use crate::pod::reconcile::{Presence, Step, Wanted, next};
use crate::ports::PortError;

impl Task {
    /// Steps until there is nothing to do. False: the task is over.
    pub(super) async fn advance(&mut self) -> bool {
        loop {
            let step = next(&self.view());
            tracing::debug!(?step, "next step");
            let done = match step {
                Step::Wait => return true,
                Step::Finish => return false,
                Step::Prepare { place, resolve } => {
                    let span = self.part(|start| tracing::info_span!(parent: start, "pod.prepare", place, resolve));
                    self.prepare(place, resolve).instrument(span).await
                }
                Step::Intend => self.intend(),
                Step::Apply => {
                    let span = self.part(|start| tracing::info_span!(parent: start, "intent.apply"));
                    self.apply().instrument(span).await
                }
                Step::RemoveObject => self.remove_object().await,
                Step::Forget => match self.forget().await {
                    true => return false,
                    false => false,
                },
            };
            if !done {
                return true;
            }
        }
    }

    /// A span of the pod's start; none once the pod has started.
    fn part(&self, make: impl FnOnce(&Span) -> Span) -> Span {
        if self.start.is_none() { Span::current() } else { make(&self.start) }
    }

    fn intend(&mut self) -> bool {
        let wanted = self.view().wanted;
        let generation = self.shared.generations.next();
        let made = match wanted {
            Wanted::Run => {
                let resolved = self.resolution.as_ref().map(|r| r.resolved.clone()).unwrap_or_default();
                intent::run(&self.pod, resolved, generation, traceparent(&self.start))
            }
            Wanted::Delete | Wanted::Gone => Ok(intent::delete(&self.pod, self.grace_seconds(), generation)),
        };
        if let (Wanted::Run, Some(host), Ok(request)) = (wanted, &self.host, Request::of(&self.pod.pod)) {
            // Its resources may be others than those it was placed with.
            self.shared.reservations.hold(self.pod.uid(), host, &request);
        }
        match made {
            Ok(intent) => {
                self.shared.board.update(self.pod.uid(), |entry| entry.intent = Some(Arc::new(intent)));
                self.made_for = Some(self.purpose(wanted));
                true
            }
            Err(error) => {
                self.wait_for("IntentTooLarge", "CreateContainerConfigError", &error.to_string(), "");
                self.retry();
                false
            }
        }
    }

    async fn apply(&mut self) -> bool {
        let entry = self.shared.board.get(self.pod.uid());
        let (Some(host), Some(intent)) = (self.host.clone(), entry.and_then(|e| e.intent)) else { return false };
        let generation = intent.generation;
        match self.shared.agents.apply(&host, (*intent).clone()).await {
            Ok((connection, reply)) => {
                self.shared.board.update(self.pod.uid(), |entry| {
                    entry.applied = Applied { connection, generation };
                    if entry.times.sent_ns == 0 {
                        entry.times.sent_ns = now_ns();
                    }
                    entry.waiting = None;
                });
                self.last_words.clear();
                if let Some(refusal) = reply.refused.filter(|_| !reply.accepted) {
                    self.take_refusal(&refusal);
                    return false;
                }
                tracing::info!(generation, delete = intent.delete, "intent applied");
                self.shared.metrics.applied();
                self.retry_after = RETRY_FIRST;
                if self.presence != Presence::Terminated {
                    self.presence = Presence::Present;
                }
                true
            }
            Err(AgentError::Unknown { .. }) if intent.delete => {
                self.presence = Presence::Terminated;
                true
            }
            Err(AgentError::Down { .. }) => false,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    generation,
                    "intent could not be sent; trying again"
                );
                self.retry();
                false
            }
        }
    }

    async fn remove_object(&mut self) -> bool {
        match self.ports.status.remove(&self.pod).await {
            Ok(()) | Err(PortError::Stale { .. }) => {
                tracing::info!("pod ended; its object is removed");
                self.removal_done = true;
                true
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "object could not be removed; trying again");
                self.retry();
                false
            }
        }
    }

    async fn forget(&mut self) -> bool {
        let Some(host) = self.host.clone() else { return true };
        match self.shared.agents.forget(&host, self.pod.uid()).await {
            Ok(()) => true,
            Err(AgentError::Down { .. }) => false,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "agent could not be told to forget; trying again"
                );
                self.retry();
                false
            }
        }
    }
}
