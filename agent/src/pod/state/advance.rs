//! What can be done now.

use super::step::tell;
use super::{Effect, Picture, PodState, Run, Stage, Stopping};
use crate::clock::{Now, SECOND};
use crate::pod::plan::{Plan, Role};

/// How long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
const SHOW_PULL_ERROR: u64 = SECOND;
/// A killed container that is not reaped within this time goes with its sandbox.
const REAP: u64 = 5 * SECOND;

impl PodState {
    /// Every init container has succeeded and every sidecar is up.
    pub fn is_initialized(&self, plan: &Plan) -> bool {
        self.containers.iter().zip(&plan.slots).all(|(container, slot)| match slot.role {
            Role::Init => container.has_succeeded(),
            Role::Sidecar => container.begun,
            Role::Main | Role::Ephemeral => true,
        })
    }

    /// Nothing of the pod's own work is left: an init container has failed for good, or all main containers are done.
    pub fn is_finished(&self, plan: &Plan) -> bool {
        let slots = || self.containers.iter().zip(&plan.slots);
        let init_failed = slots().any(|(c, s)| s.role == Role::Init && c.run == Run::Done && !c.has_succeeded());
        let mut mains = slots().filter(|(_, s)| s.role == Role::Main).peekable();
        init_failed || (mains.peek().is_some() && mains.all(|(c, _)| c.run == Run::Done))
    }

    /// Nothing new is started any more.
    pub fn is_ending(&self, plan: &Plan) -> bool {
        self.deleting || self.verdict.is_some() || self.is_finished(plan)
    }

    /// Everything that ended, ended well.
    pub fn has_succeeded(&self, plan: &Plan) -> bool {
        self.verdict.is_none()
            && self.is_initialized_once(plan)
            && self
                .containers
                .iter()
                .zip(&plan.slots)
                .filter(|(_, s)| s.role == Role::Main)
                .all(|(c, _)| c.latest.as_ref().is_some_and(|e| e.code == 0) && !c.is_alive())
    }

    fn is_initialized_once(&self, plan: &Plan) -> bool {
        self.containers
            .iter()
            .zip(&plan.slots)
            .all(|(c, s)| s.role != Role::Init || c.latest.as_ref().is_some_and(|e| e.code == 0))
    }

    /// When `Tick` is due next, CLOCK_BOOTTIME nanoseconds; always later than `now`, at which the last step was made.
    pub fn next_wake(&self, plan: &Plan, now: Now) -> Option<u64> {
        let mut due: Vec<u64> = Vec::new();
        match self.stage {
            Stage::Released | Stage::Releasing | Stage::Recycling { .. } => return None,
            Stage::Retrying { until } => due.push(until),
            Stage::New | Stage::Preparing | Stage::Up => {}
        }
        if self.is_ending(plan) {
            if let Some(deadline) = self.stop_deadline {
                due.extend([deadline, deadline.saturating_add(REAP)]);
            }
        } else {
            if let (Some(begun), Some(seconds)) = (self.begun, plan.active_deadline_seconds) {
                due.push(begun.boottime_ns.saturating_add(seconds.saturating_mul(SECOND)));
            }
            for container in &self.containers {
                if let Run::Blocked { until, .. } | Run::BackOff { until, .. } = container.run {
                    due.push(until);
                }
                if let Picture::Failed { since, until, backing_off, ref reason, .. } = container.image {
                    if !backing_off && reason == "ErrImagePull" {
                        due.push(since + SHOW_PULL_ERROR);
                    }
                    due.push(until);
                }
            }
        }
        due.into_iter().filter(|at| *at > now.boottime_ns).min()
    }

    pub(super) fn advance(&mut self, plan: &Plan, now: Now, out: &mut Vec<Effect>) {
        let at = now.boottime_ns;
        if let (Some(begun), Some(seconds)) = (self.begun, plan.active_deadline_seconds) {
            let deadline = begun.boottime_ns.saturating_add(seconds.saturating_mul(SECOND));
            if at >= deadline && !self.is_ending(plan) {
                self.condemn("DeadlineExceeded", "Pod was active on the node longer than the specified deadline");
                out.push(tell(
                    None,
                    false,
                    "DeadlineExceeded",
                    "Pod was active on the node longer than the specified deadline".to_owned(),
                ));
            }
        }
        if self.is_ending(plan) {
            self.wind_down(plan, at, out);
            return;
        }
        if self.begun.is_none() {
            return;
        }
        self.pull(plan, at, out);
        match self.stage {
            Stage::New => {
                self.stage = Stage::Preparing;
                out.push(Effect::Prepare);
            }
            Stage::Retrying { until } if at >= until => {
                self.stage = Stage::Preparing;
                out.push(Effect::Prepare);
            }
            Stage::Up if self.is_made_anew() => {
                self.stage = Stage::Recycling { until: at };
                for container in &mut self.containers {
                    if matches!(container.run, Run::Blocked { .. }) {
                        container.run = Run::Idle;
                    }
                }
                out.push(Effect::Release);
            }
            Stage::Up => self.run(plan, at, out),
            _ => {}
        }
    }

    /// The sandbox lacks ids of an image's user, and nothing has run in it.
    fn is_made_anew(&self) -> bool {
        let untouched = !self.containers.iter().any(|container| container.begun || container.is_alive());
        untouched && !self.image_ids().is_subset(&self.sandbox_ids)
    }

    fn pull(&mut self, plan: &Plan, at: u64, out: &mut Vec<Effect>) {
        for (slot, container) in self.containers.iter_mut().enumerate() {
            match &mut container.image {
                Picture::Unasked if container.run != Run::Done => {
                    container.image = Picture::Pulling;
                    out.push(Effect::Pull { slot });
                }
                Picture::Failed { until, .. } if at >= *until => {
                    container.image = Picture::Pulling;
                    out.push(Effect::Pull { slot });
                }
                Picture::Failed { since, backing_off, reason, of_volume, .. }
                    if !*backing_off && reason == "ErrImagePull" && at >= *since + SHOW_PULL_ERROR =>
                {
                    *backing_off = true;
                    let image = of_volume.as_ref().unwrap_or(&plan.slots[slot].image);
                    out.push(tell(Some(slot), false, "BackOff", format!("Back-off pulling image \"{image}\"")));
                    out.push(tell(Some(slot), true, "Failed", "Error: ImagePullBackOff".to_owned()));
                }
                _ => {}
            }
        }
    }

    fn run(&mut self, plan: &Plan, at: u64, out: &mut Vec<Effect>) {
        // Before all others, as a kubelet does: they may be there to find out why an init container fails.
        for slot in 0..self.containers.len() {
            if plan.slots[slot].role == Role::Ephemeral {
                self.start(plan, slot, at, out);
            }
        }
        for slot in 0..self.containers.len() {
            match plan.slots[slot].role {
                Role::Init => {
                    if self.containers[slot].run != Run::Done {
                        self.start(plan, slot, at, out);
                        return;
                    }
                }
                Role::Sidecar => {
                    self.start(plan, slot, at, out);
                    if !self.containers[slot].begun {
                        return;
                    }
                }
                Role::Main => self.start(plan, slot, at, out),
                Role::Ephemeral => {}
            }
        }
    }

    /// Starts a container if nothing stands in its way.
    fn start(&mut self, plan: &Plan, slot: usize, at: u64, out: &mut Vec<Effect>) {
        let container = &mut self.containers[slot];
        match &mut container.run {
            Run::Idle => {}
            Run::Blocked { until, .. } if at >= *until => {}
            Run::BackOff { until, told } => {
                if at < *until {
                    if !*told {
                        *told = true;
                        out.push(tell(
                            Some(slot),
                            true,
                            "BackOff",
                            format!(
                                "Back-off restarting failed container {} in pod {}",
                                plan.slots[slot].name, plan.display
                            ),
                        ));
                    }
                    return;
                }
                container.backoff.tried(at);
                container.run = Run::Idle;
            }
            Run::Blocked { .. } | Run::Starting | Run::Running { .. } | Run::Done => return,
        }
        if !matches!(container.image, Picture::Ready(_)) {
            return;
        }
        if container.created {
            container.attempt += 1;
        }
        container.created = true;
        container.run = Run::Starting;
        container.stopping = Stopping::No;
        out.push(Effect::Start { slot, attempt: container.attempt });
    }

    /// Stops what runs, in the kubelet's order, and releases everything when nothing runs any more.
    fn wind_down(&mut self, plan: &Plan, at: u64, out: &mut Vec<Effect>) {
        match self.stage {
            // Nothing was ever held.
            Stage::New | Stage::Retrying { .. } => {
                self.stage = Stage::Releasing;
                out.push(Effect::Release);
                return;
            }
            // The release under way becomes the last one.
            Stage::Recycling { .. } => {
                self.stage = Stage::Releasing;
                return;
            }
            Stage::Preparing | Stage::Releasing | Stage::Released => return,
            Stage::Up => {}
        }
        for container in &mut self.containers {
            if !container.is_alive() && container.latest.is_some() {
                container.run = Run::Done;
            }
        }
        if !self.containers.iter().any(super::ContainerState::is_alive) {
            self.stage = Stage::Releasing;
            out.push(Effect::Release);
            return;
        }
        let grace = plan.grace_seconds.saturating_mul(SECOND);
        let deadline = *self.stop_deadline.get_or_insert(at.saturating_add(grace));
        if at >= deadline.saturating_add(REAP) {
            self.stage = Stage::Releasing;
            out.push(Effect::Release);
            return;
        }
        let is_sidecar = |slot: usize| plan.slots[slot].role == Role::Sidecar;
        let alive = |state: &Self, slot: usize| state.containers[slot].is_alive();
        let others = (0..self.containers.len()).any(|slot| !is_sidecar(slot) && alive(self, slot));
        let last_sidecar = (0..self.containers.len()).rev().find(|&slot| is_sidecar(slot) && alive(self, slot));
        for slot in 0..self.containers.len() {
            let its_turn = !is_sidecar(slot) || (!others && last_sidecar == Some(slot));
            let container = &mut self.containers[slot];
            if !matches!(container.run, Run::Running { .. }) {
                continue;
            }
            if container.stopping == Stopping::No && (its_turn || at >= deadline) {
                let name = &plan.slots[slot].name;
                out.push(tell(Some(slot), false, "Killing", format!("Stopping container {name}")));
            }
            if at >= deadline {
                if container.stopping != Stopping::Killed {
                    container.stopping = Stopping::Killed;
                    out.push(Effect::Kill { slot });
                }
            } else if its_turn && container.stopping == Stopping::No {
                container.stopping = Stopping::Asked;
                out.push(Effect::Stop { slot });
            }
        }
    }
}
