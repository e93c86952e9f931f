//! The machine's state as a core/v1 PodStatus, as a kubelet writes it. Pure.

mod conditions;
mod containers;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use sandbox::spec::User;

use self::containers::Statuses;
use super::plan::{Plan, Role};
use super::resize::{Resizing, Waiting};
use super::spec::resources::qos;
use super::state::{PodState, Run, Stage};

/// What a status is made of.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The pod as the API server wrote it.
    pub pod: &'a Pod,
    /// The same for the machine.
    pub plan: &'a Plan,
    /// Where it is.
    pub state: &'a PodState,
    /// The host's addresses, preferred first.
    pub host_ips: &'a [String],
    /// Names the sandbox of an incarnation.
    pub sandbox_id: &'a dyn SandboxName,
    /// The conditions of the status before, for their transition times.
    pub previous: &'a [PodCondition],
    /// A change of resources that is being carried out.
    pub resizing: Option<&'a Resizing>,
    /// A change of resources that waits for room.
    pub waiting: Option<&'a Waiting>,
    /// Who runs each container, once it was started.
    pub users: &'a BTreeMap<String, User>,
    /// CLOCK_REALTIME nanoseconds: when something changed just now.
    pub wall_ns: u64,
}

/// Names the sandbox of an incarnation.
pub trait SandboxName: std::fmt::Debug + Sync {
    /// Its id.
    fn of(&self, incarnation: u32) -> String;
}

/// Phase of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

pub(crate) fn phase(plan: &Plan, state: &PodState) -> Phase {
    let over =
        matches!(state.stage, Stage::Releasing | Stage::Released) && !state.containers.iter().any(|c| c.is_alive());
    if over {
        return if state.has_succeeded(plan) { Phase::Succeeded } else { Phase::Failed };
    }
    let mut mains = state.containers.iter().zip(&plan.slots).filter(|(_, s)| s.role == Role::Main);
    if mains.any(|(c, _)| matches!(c.run, Run::Running { .. }) || c.latest.is_some()) {
        Phase::Running
    } else {
        Phase::Pending
    }
}

/// Writes the status.
pub fn write(view: View<'_>) -> PodStatus {
    let View { pod, plan, state, .. } = view;
    let spec = pod.spec.as_ref();
    let phase = phase(plan, state);
    let mut status = PodStatus {
        phase: Some(phase.name().to_owned()),
        qos_class: spec.map(|s| qos(s).name().to_owned()),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    };
    if let Some(verdict) = &state.verdict {
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
        if was_never_admitted(state) {
            status.phase = Some(Phase::Failed.name().to_owned());
            status.start_time = state.begun.and_then(|b| time(b.wall_ns));
            return status;
        }
    }
    status.start_time = state.begun.and_then(|b| time(b.wall_ns));
    status.host_ip = view.host_ips.first().cloned();
    status.host_ips =
        (!view.host_ips.is_empty()).then(|| view.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    status.pod_ip = state.ip.map(|ip| ip.to_string());
    status.pod_ips = state.ip.map(|ip| vec![PodIP { ip: ip.to_string() }]);
    let Statuses { init, main, ephemeral } = containers::write(view);
    status.conditions = Some(conditions::write(view, phase, &init, &main));
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.container_statuses = Some(main);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    status
}

/// Refused at admission: nothing was ever asked for.
fn was_never_admitted(state: &PodState) -> bool {
    state.verdict.as_ref().is_some_and(|v| !["DeadlineExceeded", "Evicted"].contains(&v.reason.as_str()))
        && state.containers.iter().all(|c| !c.created && c.latest.is_none())
}

/// Nanoseconds since 1970 as Kubernetes writes times; 0 is no time.
pub(crate) fn time(wall_ns: u64) -> Option<Time> {
    if wall_ns == 0 {
        return None;
    }
    let seconds = i64::try_from(wall_ns / crate::clock::SECOND).ok()?;
    Timestamp::from_second(seconds).ok().map(Time)
}
