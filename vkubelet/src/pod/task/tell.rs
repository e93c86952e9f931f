//! What the task says: statuses, events, why it waits; and what it hears from agents.

use std::sync::Arc;

use agent_api::proto::{Refusal, StatusUpdate, Timeline};
use tokio::time::Instant;
use tracing::Span;

use super::{LOOK_EVERY, Task, now_ns, now_text};
use crate::placement::oversize::Excess;
use crate::pod::reconcile::Presence;
use crate::pod::status;
use crate::ports::{Event, EventType, StatusReport};
use crate::resolve::Wait;

impl Task {
    pub(super) fn tell_waits(&mut self, waits: &[Wait]) {
        let Some(first) = waits.first() else { return };
        let words: Vec<&str> = waits.iter().map(|w| w.message.as_str()).collect();
        self.wait_for(first.reason, first.container_reason, &words.join("; "), &first.field);
    }

    /// Says once why the pod waits: an event, a status, a line for people.
    pub(super) fn wait_for(&mut self, reason: &str, container_reason: &str, message: &str, field: &str) {
        let words = format!("{reason}: {message}");
        if self.last_words == words {
            return;
        }
        self.event(EventType::Warning, reason, message, field);
        if self.made_for.is_none() {
            let json = status::waiting(&self.pod.pod, container_reason, message, &now_text());
            self.report(json, false);
        }
        self.shared.board.update(self.pod.uid(), |entry| entry.waiting = Some(words.clone()));
        self.last_words = words;
    }

    /// An agent will not run it. Lack of room undoes the placement (the agent never had the pod); anything else is final.
    pub(super) fn take_refusal(&mut self, refusal: &Refusal) {
        tracing::warn!(reason = refusal.reason, detail = refusal.message, "the agent refused the pod");
        self.shared.metrics.refused(&refusal.reason);
        self.event(EventType::Warning, &refusal.reason, &refusal.message, "");
        if self.presence == Presence::Present {
            // A change of a pod that it runs: the pod goes on as it is.
            return;
        }
        if refusal.reason.starts_with("OutOf") {
            self.host = None;
            self.made_for = None;
            self.shared.reservations.release(self.pod.uid());
            self.shared.board.update(self.pod.uid(), |entry| {
                entry.host = None;
                entry.intent = None;
            });
            self.retry();
            return;
        }
        let json = status::refused(&self.pod.pod, &refusal.reason, &refusal.message, &now_text());
        self.fail(json);
    }

    /// No host will ever take it.
    pub(super) fn take_excess(&mut self, excess: &Excess) {
        tracing::warn!(reason = excess.reason, detail = excess.message, "the pod is larger than the node");
        self.shared.metrics.refused(&excess.reason);
        self.event(EventType::Warning, &excess.reason, &excess.message, "");
        self.fail(status::rejected(&self.pod.pod, &excess.reason, &excess.message));
    }

    fn fail(&mut self, json: serde_json::Value) {
        self.refused = true;
        self.presence = Presence::Terminated;
        self.shared.reservations.release(self.pod.uid());
        self.report(json, true);
    }

    pub(super) fn take_status(&mut self, update: StatusUpdate) {
        self.presence = if update.terminated { Presence::Terminated } else { Presence::Present };
        if update.terminated {
            self.shared.reservations.release(self.pod.uid());
        }
        let status = match serde_json::from_slice(&update.status_json) {
            Ok(status) => status,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the agent's status is not JSON");
                return;
            }
        };
        self.lacks_image = status::lacks_image(&status);
        self.look_or_not();
        self.count_start(update.timeline.as_ref());
        let report = StatusReport {
            generation: update.generation,
            host: self.host.clone().unwrap_or_default(),
            status: Arc::new(status),
            terminated: update.terminated,
            timeline: update.timeline,
            start: self.start.clone(),
        };
        self.deliver(report);
        if self.start_counted {
            self.start = Span::none();
        }
    }

    /// Whether what the pod refers to is to be read again in a while.
    pub(super) fn look_or_not(&mut self) {
        let incomplete = self.resolution.as_ref().is_some_and(|resolution| resolution.incomplete);
        let may_help = incomplete || (self.lacks_image && !self.needs.pull_secrets.is_empty());
        self.look_again = may_help.then(|| self.look_again.unwrap_or_else(|| Instant::now() + LOOK_EVERY));
    }

    fn count_start(&mut self, timeline: Option<&Timeline>) {
        let started = timeline.map_or(0, |t| t.started_ns);
        let seen = self.shared.board.get(self.pod.uid()).map_or(0, |e| e.times.seen_ns);
        if started == 0 || self.start_counted {
            return;
        }
        self.start_counted = true;
        // A pod that started in an earlier life of ours says nothing about this one.
        if seen > 0 && started > seen {
            self.shared.metrics.started(started - seen);
        }
    }

    pub(super) fn tell_host_lost(&mut self) {
        let last = self.shared.board.get(self.pod.uid()).and_then(|e| e.report);
        let (Some(last), Some(host)) = (last, self.host.clone()) else { return };
        if last.terminated {
            return;
        }
        let json = status::host_lost(&last.status, &host, &now_text());
        self.event(EventType::Warning, "HostLost", &format!("host {host} does not answer"), "");
        self.deliver(StatusReport { status: Arc::new(json), start: Span::none(), ..last });
    }

    pub(super) fn report(&self, json: serde_json::Value, terminated: bool) {
        self.deliver(StatusReport {
            generation: 0,
            host: self.host.clone().unwrap_or_default(),
            status: Arc::new(json),
            terminated,
            timeline: None,
            start: self.start.clone(),
        });
    }

    pub(super) fn deliver(&self, report: StatusReport) {
        self.shared.board.update(self.pod.uid(), |entry| entry.report = Some(report.clone()));
        if !self.gone {
            self.ports.status.report(&self.pod, report);
        }
    }

    pub(super) fn event(&self, kind: EventType, reason: &str, message: &str, field_path: &str) {
        let event = Event {
            kind,
            reason: reason.to_owned(),
            message: message.to_owned(),
            field_path: field_path.to_owned(),
            unix_ns: i64::try_from(now_ns()).unwrap_or(i64::MAX),
        };
        self.shared.board.event(self.pod.uid(), event.clone());
        self.ports.events.event(&self.pod.pod_ref, event);
    }
}
