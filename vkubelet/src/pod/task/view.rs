//! What [`next`](super::super::reconcile::next) decides from.

use super::{MadeFor, Task};
use crate::pod::reconcile::{IntentState, Presence, View, Wanted};

impl Task {
    pub(super) fn view(&self) -> View {
        let wanted = match (self.gone, self.pod.deletion) {
            (true, _) => Wanted::Gone,
            (false, Some(_)) => Wanted::Delete,
            (false, None) => Wanted::Run,
        };
        let up = self.host.as_deref().and_then(|host| self.shared.agents.up(host));
        let presence = match self.presence {
            Presence::Absent if up != Some(self.absent_on) => Presence::Unheard,
            presence => presence,
        };
        View {
            wanted,
            ended_in_source: self.pod.is_terminal() || self.refused,
            placed: self.host.is_some(),
            host_up: up.is_some(),
            presence,
            resolved: self.resolution.is_some() && !self.outdated,
            intent: self.intent_state(wanted, up),
            removal_done: self.removal_done,
        }
    }

    fn intent_state(&self, wanted: Wanted, up: Option<u64>) -> IntentState {
        if self.made_for != Some(self.purpose(wanted)) {
            return IntentState::Stale;
        }
        let entry = self.shared.board.get(self.pod.uid());
        let applied = entry.is_some_and(|e| {
            e.intent.is_some_and(|i| i.generation == e.applied.generation) && up == Some(e.applied.connection)
        });
        if applied { IntentState::Applied } else { IntentState::Made }
    }

    pub(super) fn purpose(&self, wanted: Wanted) -> MadeFor {
        match wanted {
            Wanted::Run => MadeFor::Run { digest: self.digest, resolution: self.resolution_number },
            Wanted::Delete | Wanted::Gone => MadeFor::Delete { grace_seconds: self.grace_seconds() },
        }
    }

    pub(super) fn grace_seconds(&self) -> i64 {
        let own = self.pod.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        self.pod.deletion.map_or(own, |d| d.grace_seconds)
    }
}
