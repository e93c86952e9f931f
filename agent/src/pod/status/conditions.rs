//! Conditions: PodReadyToStartContainers, Initialized, Ready, ContainersReady; PodResizePending and PodResizeInProgress while resources change; DisruptionTarget when the pod had to make way. (PodScheduled belongs to the scheduler.)

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};

use super::{Phase, View, time};
use crate::pod::plan::Role;
use crate::pod::state::Stage;

struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self { holds: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self { holds: false, reason: Some(reason), message }
    }
}

pub(super) fn write(
    view: View<'_>,
    phase: Phase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let has_sandbox = view.state.stage == Stage::Up && view.state.ip.is_some();
    let ready_to_start = Verdict { holds: has_sandbox, reason: None, message: None };
    let ready = || containers_ready(view, phase, init, main);
    let pending = view
        .waiting
        .and_then(|waiting| {
            Some((waiting.message.clone()?, if waiting.infeasible { "Infeasible" } else { "Deferred" }))
        })
        .map(|(message, why)| ("PodResizePending", Verdict { holds: true, reason: Some(why), message: Some(message) }));
    let resize = view.resizing.map(|resizing| {
        let reason = resizing.error.is_some().then_some("Error");
        ("PodResizeInProgress", Verdict { holds: true, reason, message: resizing.error.clone() })
    });
    let disruption = view.state.verdict.as_ref().filter(|verdict| verdict.disrupted).map(|verdict| {
        let (reason, message) = (Some("TerminationByKubelet"), Some(verdict.message.clone()));
        ("DisruptionTarget", Verdict { holds: true, reason, message })
    });
    [
        ("PodReadyToStartContainers", ready_to_start),
        ("Initialized", initialized(view, phase)),
        ("Ready", ready()),
        ("ContainersReady", ready()),
    ]
    .into_iter()
    .chain(pending)
    .chain(resize)
    .chain(disruption)
    .map(|(name, verdict)| condition(view, name, verdict))
    .collect()
}

fn initialized(view: View<'_>, phase: Phase) -> Verdict {
    if phase == Phase::Succeeded {
        return Verdict { holds: true, reason: Some("PodCompleted"), message: None };
    }
    let incomplete: Vec<&str> = view
        .state
        .containers
        .iter()
        .zip(&view.plan.slots)
        .filter(|(c, s)| match s.role {
            Role::Init => !c.has_succeeded(),
            Role::Sidecar => !c.begun,
            Role::Main | Role::Ephemeral => false,
        })
        .map(|(_, s)| s.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return Verdict::yes();
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    Verdict::no("ContainersNotInitialized", Some(message))
}

fn containers_ready(view: View<'_>, phase: Phase, init: &[ContainerStatus], main: &[ContainerStatus]) -> Verdict {
    match phase {
        Phase::Succeeded => return Verdict::no("PodCompleted", None),
        Phase::Failed => return Verdict::no("PodFailed", None),
        Phase::Pending | Phase::Running => {}
    }
    let is_sidecar = |name: &str| view.plan.index(name).is_some_and(|slot| view.plan.slots[slot].role == Role::Sidecar);
    let unready: Vec<&str> =
        init.iter().filter(|c| is_sidecar(&c.name)).chain(main).filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
    if unready.is_empty() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotReady", Some(format!("containers with unready status: [{}]", unready.join(" "))))
}

fn condition(view: View<'_>, name: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = view.previous.iter().find(|c| c.type_ == name && c.status == status);
    let since = before.and_then(|c| c.last_transition_time.clone()).or_else(|| time(view.wall_ns));
    PodCondition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: since,
        observed_generation: view.pod.metadata.generation,
        ..PodCondition::default()
    }
}
