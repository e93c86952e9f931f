//! What each event changes.

use super::{
    ContainerState, Effect, Ended, Event, ExitFacts, Picture, PodState, Refused, Run, Stage, StartFailure, Stopping,
    Verdict,
};
use crate::clock::{Now, SECOND};
use crate::pod::plan::Plan;

/// How long a container that cannot be created waits for another try.
const BLOCKED: u64 = 10 * SECOND;
/// The longest that a registry can have us stay away.
const STAY_AWAY: u64 = 15 * 60 * SECOND;
/// Time that a kubelet leaves an evicted pod, whatever it asks for.
const EVICTION_GRACE: u64 = SECOND;

impl PodState {
    /// Takes one event in. On a refusal nothing has changed.
    pub fn step(&mut self, plan: &Plan, event: Event, now: Now) -> Result<Vec<Effect>, Refused> {
        let mut out = Vec::new();
        if self.stage == Stage::Released {
            return Err(Refused::Terminal);
        }
        self.apply(plan, event, now, &mut out)?;
        self.advance(plan, now, &mut out);
        Ok(out)
    }

    fn apply(&mut self, plan: &Plan, event: Event, now: Now, out: &mut Vec<Effect>) -> Result<(), Refused> {
        match event {
            Event::Begin => {
                if self.begun.is_some() {
                    return Err(Refused::Stale);
                }
                self.begun = Some(now);
            }
            Event::Deny(verdict) => {
                if self.stage != Stage::New || self.begun.is_some() {
                    return Err(Refused::WrongStage);
                }
                self.begun = Some(now);
                self.verdict = Some(verdict);
            }
            Event::SandboxReady { ip } => {
                if self.stage != Stage::Preparing {
                    return Err(Refused::WrongStage);
                }
                self.stage = Stage::Up;
                self.ip = ip;
            }
            Event::SandboxFailed { message } => {
                if self.stage != Stage::Preparing {
                    return Err(Refused::WrongStage);
                }
                let until = self.sandbox_backoff.ready_at(now.boottime_ns);
                self.sandbox_backoff.tried(now.boottime_ns);
                // The first failure waits too: nothing has changed since.
                let until = until.max(now.boottime_ns + SECOND);
                self.stage = Stage::Recycling { until };
                out.push(Effect::Tell {
                    slot: None,
                    warning: true,
                    reason: "FailedCreatePodSandBox",
                    message: format!("Failed to create pod sandbox: {message}"),
                });
                out.push(Effect::Release);
            }
            Event::Lost => self.lose(plan, now, out)?,
            Event::ImageReady { slot, facts } => {
                let container = self.container(slot)?;
                if container.image != Picture::Pulling {
                    return Err(Refused::Stale);
                }
                container.image = Picture::Ready(facts);
            }
            Event::ImageFailed { slot, reference, reason, message, retry_after } => {
                let container = self.container(slot)?;
                if container.image != Picture::Pulling {
                    return Err(Refused::Stale);
                }
                container.image_backoff.tried(now.boottime_ns);
                let asked = retry_after.map_or(0, |pause| u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX));
                let asked = now.boottime_ns.saturating_add(asked.min(STAY_AWAY));
                let until = container.image_backoff.ready_at(now.boottime_ns).max(asked);
                let of_volume = Some(reference).filter(|image| *image != plan.slots[slot].image);
                let since = now.boottime_ns;
                container.image = Picture::Failed { reason, message, since, until, backing_off: false, of_volume };
            }
            Event::ImageChanged { slot } => {
                let container = self.container(slot)?;
                if container.created || container.run == Run::Done {
                    return Err(Refused::WrongStage);
                }
                container.image = Picture::Unasked;
                container.image_backoff = Default::default();
                if matches!(container.run, Run::Blocked { .. }) {
                    container.run = Run::Idle;
                }
            }
            Event::Started { slot, attempt, wall_ns } => self.started(slot, attempt, wall_ns, out)?,
            Event::StartFailed { slot, attempt, failure } => {
                let container = self.container(slot)?;
                if container.run != Run::Starting || container.attempt != attempt {
                    return Err(Refused::Stale);
                }
                match failure {
                    StartFailure::Config { reason, message } => {
                        out.push(tell(Some(slot), true, "Failed", format!("Error: {message}")));
                        container.run = Run::Blocked { reason, message, until: now.boottime_ns + BLOCKED };
                        match container.attempt.checked_sub(1) {
                            Some(previous) => container.attempt = previous,
                            None => container.created = false,
                        }
                    }
                    StartFailure::Run { code, message } => {
                        out.push(tell(Some(slot), true, "Failed", format!("Error: {message}")));
                        let exit = ExitFacts { code, signal: None, oom_killed: false, at: now, message };
                        self.end(plan, slot, exit, "StartError", now);
                    }
                }
            }
            Event::Exited { slot, attempt, exit } => {
                if !matches!(self.stage, Stage::Up | Stage::Releasing) {
                    return Err(Refused::WrongStage);
                }
                let container = self.container(slot)?;
                let known = container.latest.as_ref().is_some_and(|e| e.attempt >= attempt);
                let overtaken = container.created && attempt < container.attempt;
                if known || overtaken || container.run == Run::Done {
                    return Err(Refused::Stale);
                }
                container.attempt = attempt;
                container.created = true;
                container.begun = true;
                let reason = match () {
                    () if exit.oom_killed => "OOMKilled",
                    () if exit.code == 0 => "Completed",
                    () => "Error",
                };
                self.end(plan, slot, exit, reason, now);
            }
            Event::Delete { grace_seconds } => {
                let deadline = now.boottime_ns.saturating_add(grace_seconds.saturating_mul(SECOND));
                let sooner = self.stop_deadline.is_none_or(|old| deadline < old);
                if self.deleting && !sooner {
                    return Err(Refused::Stale);
                }
                self.begun.get_or_insert(now);
                self.deleting = true;
                if sooner {
                    self.stop_deadline = Some(deadline);
                }
            }
            Event::Evict { message, disrupted } => {
                if self.is_ending(plan) || self.begun.is_none() {
                    return Err(Refused::Stale);
                }
                out.push(tell(None, true, "Evicted", message.clone()));
                self.verdict = Some(Verdict { reason: "Evicted".to_owned(), message, disrupted });
                self.stop_deadline = Some(now.boottime_ns.saturating_add(EVICTION_GRACE));
            }
            Event::Renew { slot } => {
                if self.is_ending(plan) {
                    return Err(Refused::Stale);
                }
                let container = self.container(slot)?;
                if container.renewing || !matches!(container.run, Run::Running { .. }) {
                    return Err(Refused::Stale);
                }
                container.renewing = true;
                let name = &plan.slots[slot].name;
                out.push(tell(Some(slot), false, "Killing", format!("Container {name} resize requires restart")));
                out.push(Effect::Stop { slot });
            }
            Event::Released => match self.stage {
                Stage::Releasing => self.finish_release(now),
                Stage::Recycling { until } => {
                    self.stage = Stage::Retrying { until };
                    self.incarnation += 1;
                    self.ip = None;
                }
                _ => return Err(Refused::WrongStage),
            },
            Event::Recovered { alive, rebooted } => self.recover(plan, alive, rebooted, now, out)?,
            Event::Refreshed => {
                for container in &mut self.containers {
                    if matches!(container.run, Run::Blocked { .. }) {
                        container.run = Run::Idle;
                    }
                }
            }
            Event::Tick => {}
        }
        Ok(())
    }

    fn container(&mut self, slot: usize) -> Result<&mut ContainerState, Refused> {
        self.containers.get_mut(slot).ok_or(Refused::NoSuchContainer)
    }

    fn started(&mut self, slot: usize, attempt: u32, wall_ns: u64, out: &mut Vec<Effect>) -> Result<(), Refused> {
        if self.stage != Stage::Up {
            return Err(Refused::WrongStage);
        }
        let container = self.container(slot)?;
        let expected = container.run == Run::Starting && container.attempt == attempt;
        // An attempt that we asked for and never wrote down: the shim remembers it better than the ledger.
        let forgotten = (!container.created || attempt > container.attempt)
            && container.run != Run::Done
            && container.latest.as_ref().is_none_or(|e| e.attempt < attempt);
        if !expected && !forgotten {
            return Err(Refused::Stale);
        }
        container.attempt = attempt;
        container.created = true;
        container.begun = true;
        container.stopping = Stopping::No;
        container.run = Run::Running { started_wall_ns: wall_ns };
        out.push(tell(Some(slot), false, "Created", "Container created".to_owned()));
        out.push(tell(Some(slot), false, "Started", "Container started".to_owned()));
        Ok(())
    }

    /// A container's attempt is over: for good, or until its next start.
    fn end(&mut self, plan: &Plan, slot: usize, exit: ExitFacts, reason: &str, now: Now) {
        let ending = self.is_ending(plan);
        let incarnation = self.incarnation;
        let container = &mut self.containers[slot];
        let started_wall_ns = match container.run {
            Run::Running { started_wall_ns } => started_wall_ns,
            _ => 0,
        };
        container.before = container.latest.take();
        let at = exit.at.boottime_ns;
        let again = !ending && plan.slots[slot].restart.applies(exit.code);
        container.latest = Some(Ended {
            attempt: container.attempt,
            incarnation,
            code: exit.code,
            signal: exit.signal,
            reason: reason.to_owned(),
            message: exit.message,
            started_wall_ns,
            finished_wall_ns: exit.at.wall_ns,
            finished_boottime_ns: at,
        });
        container.stopping = Stopping::No;
        container.run = if std::mem::take(&mut container.renewing) && !ending {
            Run::Idle
        } else if again {
            Run::BackOff { until: container.backoff.ready_at(at.min(now.boottime_ns)), told: false }
        } else {
            Run::Done
        };
    }

    /// Everything that ran in the sandbox is dead.
    fn lose(&mut self, plan: &Plan, now: Now, out: &mut Vec<Effect>) -> Result<(), Refused> {
        if self.stage != Stage::Up {
            return Err(Refused::WrongStage);
        }
        for slot in 0..self.containers.len() {
            if self.containers[slot].is_alive() {
                let message = "The container could not be located: its sandbox died".to_owned();
                let exit = ExitFacts { code: 137, signal: None, oom_killed: false, at: now, message };
                self.end(plan, slot, exit, "ContainerStatusUnknown", now);
            }
        }
        if self.is_ending(plan) {
            self.stage = Stage::Releasing;
        } else {
            // The next sandbox begins at the beginning: init containers run again.
            for (container, slot) in self.containers.iter_mut().zip(&plan.slots) {
                container.begun = false;
                // What could not be made there may well be made in the next one, and need not wait.
                if slot.role == crate::pod::plan::Role::Init || matches!(container.run, Run::Blocked { .. }) {
                    container.run = Run::Idle;
                }
            }
            self.stage = Stage::Recycling { until: now.boottime_ns };
            out.push(tell(
                None,
                false,
                "SandboxChanged",
                "Pod sandbox changed, it will be killed and re-created.".to_owned(),
            ));
        }
        out.push(Effect::Release);
        Ok(())
    }

    fn finish_release(&mut self, now: Now) {
        for container in &mut self.containers {
            if container.is_alive() {
                // Destroyed before it could be reaped one by one.
                container.before = container.latest.take();
                container.latest = Some(Ended {
                    attempt: container.attempt,
                    incarnation: self.incarnation,
                    code: 137,
                    signal: Some(9),
                    reason: "ContainerStatusUnknown".to_owned(),
                    message: "The container could not be located when the pod was terminated".to_owned(),
                    started_wall_ns: match container.run {
                        Run::Running { started_wall_ns } => started_wall_ns,
                        _ => 0,
                    },
                    finished_wall_ns: now.wall_ns,
                    finished_boottime_ns: now.boottime_ns,
                });
            }
            container.run = Run::Done;
            container.stopping = Stopping::No;
        }
        self.stage = Stage::Released;
    }

    fn recover(
        &mut self,
        plan: &Plan,
        alive: bool,
        rebooted: bool,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        if rebooted {
            self.forget_boot(now);
        }
        for container in &mut self.containers {
            if container.image == Picture::Pulling {
                container.image = Picture::Unasked;
            }
            container.stopping = Stopping::No;
        }
        match self.stage {
            Stage::New | Stage::Retrying { .. } | Stage::Released => {}
            Stage::Preparing if rebooted => {
                self.stage = Stage::Recycling { until: now.boottime_ns };
                out.push(Effect::Release);
            }
            Stage::Preparing => out.push(Effect::Prepare),
            Stage::Up if alive => {
                for (slot, container) in self.containers.iter().enumerate() {
                    if container.run == Run::Starting {
                        out.push(Effect::Start { slot, attempt: container.attempt });
                    }
                }
            }
            Stage::Up => self.lose(plan, now, out)?,
            Stage::Recycling { .. } | Stage::Releasing => out.push(Effect::Release),
        }
        Ok(())
    }

    /// Boot times of another boot mean nothing: what waited may go on at once.
    fn forget_boot(&mut self, now: Now) {
        if let Some(begun) = &mut self.begun {
            let age = now.wall_ns.saturating_sub(begun.wall_ns);
            begun.boottime_ns = now.boottime_ns.saturating_sub(age);
        }
        if self.stop_deadline.is_some() {
            self.stop_deadline = Some(now.boottime_ns);
        }
        if let Stage::Retrying { until } | Stage::Recycling { until } = &mut self.stage {
            *until = now.boottime_ns;
        }
        self.sandbox_backoff = Default::default();
        for container in &mut self.containers {
            container.backoff = Default::default();
            container.image_backoff = Default::default();
            if let Run::Blocked { until, .. } | Run::BackOff { until, .. } = &mut container.run {
                *until = now.boottime_ns;
            }
            if let Picture::Failed { until, .. } = &mut container.image {
                *until = now.boottime_ns;
            }
            for ended in [&mut container.latest, &mut container.before].into_iter().flatten() {
                ended.finished_boottime_ns = 0;
            }
        }
    }

    /// The pod failed as a whole.
    pub(super) fn condemn(&mut self, reason: &str, message: &str) {
        self.verdict = Some(Verdict { reason: reason.to_owned(), message: message.to_owned(), disrupted: false });
    }
}

pub(super) fn tell(slot: Option<usize>, warning: bool, reason: &'static str, message: String) -> Effect {
    Effect::Tell { slot, warning, reason, message }
}
