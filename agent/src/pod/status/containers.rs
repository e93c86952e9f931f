//! Container statuses.

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, VolumeMountStatus,
};

use super::{View, time};
use crate::pod::ephemeral;
use crate::pod::plan::Role;
use crate::pod::state::{ContainerState, Ended, Picture, Run};

/// Statuses by list.
#[derive(Default)]
pub(super) struct Statuses {
    pub(super) init: Vec<ContainerStatus>,
    pub(super) main: Vec<ContainerStatus>,
    pub(super) ephemeral: Vec<ContainerStatus>,
}

/// All containers, each in its list.
pub(super) fn write(view: View<'_>) -> Statuses {
    let spec = view.pod.spec.as_ref();
    let added: Vec<Container> =
        spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten()).map(ephemeral::as_container).collect();
    let find = |name: &str| {
        let plain = spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
        plain.chain(&added).find(|c| c.name == name)
    };
    let has_init = view.plan.slots.iter().any(|s| matches!(s.role, Role::Init | Role::Sidecar));
    let mut statuses = Statuses::default();
    for (slot, (planned, container)) in view.plan.slots.iter().zip(&view.state.containers).enumerate() {
        // Nobody waits for another to see an ephemeral container start.
        let has_init = has_init && planned.role != Role::Ephemeral;
        let mut status = one(view, slot, container, find(&planned.name), has_init);
        match planned.role {
            Role::Main => statuses.main.push(status),
            Role::Init | Role::Sidecar => statuses.init.push(status),
            Role::Ephemeral => {
                // As a kubelet reports them: never ready, nor started.
                (status.ready, status.started) = (false, None);
                statuses.ephemeral.push(status);
            }
        }
    }
    statuses
}

fn one(
    view: View<'_>,
    slot: usize,
    container: &ContainerState,
    spec: Option<&Container>,
    has_init: bool,
) -> ContainerStatus {
    let planned = &view.plan.slots[slot];
    let running = matches!(container.run, Run::Running { .. });
    let ended = |e: &Ended| terminated(view, &planned.name, e);
    let latest = container.latest.as_ref();
    let (state, last) = match &container.run {
        Run::Running { started_wall_ns } => {
            let running = ContainerStateRunning { started_at: time(*started_wall_ns) };
            (ApiState { running: Some(running), ..ApiState::default() }, latest)
        }
        // The end of the last attempt stands until the next one runs.
        Run::Done | Run::Starting | Run::BackOff { told: false, .. } => match latest {
            Some(e) => (ended(e), container.before.as_ref()),
            None => (waiting(default_reason(has_init), None), None),
        },
        Run::Blocked { reason, message, .. } => (waiting(reason, Some(message.clone())), latest),
        Run::BackOff { .. } => {
            let message = format!(
                "back-off {} restarting failed container={} pod={}",
                go_duration(container.backoff.seconds()),
                planned.name,
                view.plan.display
            );
            (waiting("CrashLoopBackOff", Some(message)), latest)
        }
        Run::Idle => (idle(view, slot, container, has_init), latest),
    };
    let ready = match planned.role {
        Role::Main | Role::Sidecar | Role::Ephemeral => running,
        Role::Init => container.has_succeeded(),
    };
    let id = if running {
        Some(container_id(view, &planned.name, view.state.incarnation, container.attempt))
    } else {
        latest.filter(|e| e.started_wall_ns != 0).map(|e| container_id(view, &planned.name, e.incarnation, e.attempt))
    };
    let identity = view.users.get(&planned.name).filter(|_| id.is_some()).map(user);
    let (image, image_id) = match &container.image {
        Picture::Ready(facts) if container.created => (facts.reference.clone(), facts.image_id.clone()),
        Picture::Ready(facts) => (facts.reference.clone(), String::new()),
        _ => (planned.image.clone(), String::new()),
    };
    ContainerStatus {
        name: planned.name.clone(),
        state: Some(state),
        last_state: last.map(ended),
        ready,
        started: Some(running),
        restart_count: i32::try_from(restart_count(container)).unwrap_or(i32::MAX),
        image,
        image_id,
        container_id: id,
        allocated_resources: spec
            .and_then(|c| c.resources.as_ref())
            .and_then(|r| r.requests.clone())
            .filter(|_| running),
        resources: view
            .resizing
            .and_then(|resizing| resizing.before.get(&planned.name).cloned())
            .or_else(|| spec.and_then(|c| c.resources.clone()))
            .filter(|r| r.limits.is_some() || r.requests.is_some())
            .filter(|_| running),
        volume_mounts: spec.and_then(mounts),
        user: identity,
        ..ContainerStatus::default()
    }
}

/// As a runtime reports it: the ids that the first process began with.
fn user(user: &sandbox::spec::User) -> ContainerUser {
    let groups = user.additional_gids.iter().map(|gid| i64::from(*gid)).collect();
    let linux = LinuxContainerUser { uid: user.uid.into(), gid: user.gid.into(), supplemental_groups: Some(groups) };
    ContainerUser { linux: Some(linux) }
}

/// An attempt counts once it has been made.
fn restart_count(container: &ContainerState) -> u32 {
    match container.run {
        Run::Starting => container.latest.as_ref().map_or(container.attempt, |e| e.attempt),
        _ => container.attempt,
    }
}

fn mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?;
    let status = |m: &k8s_openapi::api::core::v1::VolumeMount| VolumeMountStatus {
        name: m.name.clone(),
        mount_path: m.mount_path.clone(),
        read_only: m.read_only.filter(|r| *r),
        recursive_read_only: m.read_only.filter(|r| *r).map(|_| "Disabled".to_owned()),
        ..VolumeMountStatus::default()
    };
    Some(mounts.iter().map(status).collect())
}

fn idle(view: View<'_>, slot: usize, container: &ContainerState, has_init: bool) -> ApiState {
    // An image that cannot be had is told even while the container's turn has not come, except behind init containers.
    let its_turn = view.plan.slots[slot].role != Role::Main || view.state.is_initialized(view.plan);
    match &container.image {
        Picture::Failed { reason, message, backing_off, of_volume, .. } if its_turn => {
            let image = of_volume.as_ref().unwrap_or(&view.plan.slots[slot].image);
            if *backing_off {
                let message = format!("Back-off pulling image \"{image}\": {reason}: {message}");
                waiting("ImagePullBackOff", Some(message))
            } else {
                waiting(reason, Some(message.clone()))
            }
        }
        _ => waiting(default_reason(has_init), None),
    }
}

fn default_reason(has_init: bool) -> &'static str {
    if has_init { "PodInitializing" } else { "ContainerCreating" }
}

fn waiting(reason: &str, message: Option<String>) -> ApiState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ApiState { waiting: Some(waiting), ..ApiState::default() }
}

fn terminated(view: View<'_>, name: &str, ended: &Ended) -> ApiState {
    let terminated = ContainerStateTerminated {
        container_id: Some(container_id(view, name, ended.incarnation, ended.attempt)),
        exit_code: ended.code,
        signal: ended.signal,
        reason: Some(ended.reason.clone()),
        message: (!ended.message.is_empty()).then(|| ended.message.clone()),
        started_at: time(ended.started_wall_ns),
        finished_at: time(ended.finished_wall_ns),
    };
    ApiState { terminated: Some(terminated), ..ApiState::default() }
}

fn container_id(view: View<'_>, name: &str, incarnation: u32, attempt: u32) -> String {
    format!("nodeless://{}/{name}/{attempt}", view.sandbox_id.of(incarnation))
}

/// `10s`, `1m20s`, `5m0s`: as Go prints a duration.
fn go_duration(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}
