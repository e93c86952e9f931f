//! Writes the status and posts it, when it says something new.

use super::PodTask;
use crate::board::{Attempt, Posted};
use crate::clock::Now;
use crate::host::host_ports;
use crate::pod::spec::resources::pod_requests;
use crate::pod::spec::scalars;
use crate::pod::state::{Run, Stage};
use crate::pod::status::{self, View};

impl PodTask {
    pub(super) fn publish(&mut self) {
        let state = &self.record.state;
        let status = status::write(View {
            pod: &self.intent.pod,
            plan: &self.plan,
            state,
            host_ips: &self.world.host.ips,
            sandbox_id: &self.names,
            previous: &self.record.conditions,
            resizing: self.record.resizing.as_ref(),
            waiting: self.record.waiting.as_ref(),
            users: &self.record.users,
            wall_ns: Now::read().wall_ns,
        });
        self.record.conditions = status.conditions.clone().unwrap_or_default();
        let terminated = state.is_terminal();
        let json = match serde_json::to_vec(&status) {
            Ok(json) => json,
            Err(error) => {
                tracing::error!(%error, "status cannot be serialised");
                return;
            }
        };
        let attempt = |c: &crate::pod::state::ContainerState| Attempt {
            number: c.attempt,
            created: c.created,
            running: matches!(c.run, Run::Running { .. }),
            starting: c.run == Run::Starting,
        };
        let containers =
            self.plan.slots.iter().zip(&state.containers).map(|(slot, c)| (slot.name.clone(), attempt(c))).collect();
        let spec = self.intent.pod.spec.as_ref().filter(|_| self.record.takes_room());
        let has_sandbox = matches!(state.stage, Stage::Up | Stage::Releasing | Stage::Recycling { .. });
        self.world.board.post(Posted {
            uid: self.intent.uid.clone(),
            namespace: self.intent.namespace().to_owned(),
            name: self.intent.name().to_owned(),
            generation: self.intent.generation,
            status_json: json.into(),
            terminated,
            timeline: self.record.timeline,
            revision: 0,
            sandbox: has_sandbox.then(|| self.sandbox()),
            containers,
            requests: spec.and_then(|spec| pod_requests(spec).ok()).unwrap_or_default(),
            assigned: spec.map(|_| self.record.assigned.clone()).unwrap_or_default(),
            host_ports: spec.map(host_ports::claimed).unwrap_or_default(),
            scalars: spec.and_then(|spec| scalars::of_pod(spec).ok()).unwrap_or_default(),
            deleting: state.deleting,
        });
    }
}
