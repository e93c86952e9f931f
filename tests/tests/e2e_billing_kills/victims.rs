//! Who is killed when, and who is started again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::random::Random;
use tests::stack::kernel::kill;
use tests::stack::{Stack, wait};

use super::now;

/// Between two kills, at most.
const PAUSE_MS: u64 = 600;
/// A daemon is away for this long at most.
const AWAY_MS: u64 = 700;

/// The killing so far.
#[derive(Default)]
pub(crate) struct Victims {
    next: Option<Instant>,
    agent_back: Option<Instant>,
    vkubelet_back: Option<Instant>,
    agents: u64,
    vkubelets: u64,
    shims: u64,
    keepers: u64,
    /// From an agent's death until its successor was started.
    absences: Vec<(u64, u64)>,
}

impl Victims {
    pub(crate) fn killed(&self) -> u64 {
        self.agents + self.vkubelets + self.shims + self.keepers
    }

    pub(crate) fn summary(&self) -> String {
        format!("{} agents, {} vkubelets, {} shims, {} keepers", self.agents, self.vkubelets, self.shims, self.keepers)
    }

    pub(crate) fn absences(&self) -> Vec<(u64, u64)> {
        self.absences.clone()
    }

    /// Starts again who is due; kills when it is time.
    pub(crate) fn act(&mut self, stack: &mut Stack, random: &mut Random) -> Result<()> {
        self.raise(stack, Instant::now())?;
        let next = *self.next.get_or_insert_with(Instant::now);
        if Instant::now() < next {
            return Ok(());
        }
        self.next = Some(Instant::now() + Duration::from_millis(random.below(PAUSE_MS)));
        let back = Instant::now() + Duration::from_millis(random.below(AWAY_MS));
        match random.below(20) {
            0..7 => {
                if let Some(agent) = stack.agent.take() {
                    agent.kill()?;
                    self.absences.push((now(), u64::MAX));
                    (self.agents, self.agent_back) = (self.agents + 1, Some(back));
                }
            }
            7..11 => {
                if let Some(vkubelet) = stack.vkubelet.take() {
                    vkubelet.kill()?;
                    (self.vkubelets, self.vkubelet_back) = (self.vkubelets + 1, Some(back));
                }
            }
            11..17 => {
                let held = std::fs::read_dir(stack.sandboxes()).context("list the sandboxes")?;
                let held: Vec<_> = held.flatten().map(|entry| entry.file_name()).collect();
                let chosen = random.one_of(&held).and_then(|id| stack.shim(&id.to_string_lossy()));
                // It may have ended by itself since.
                self.shims += u64::from(chosen.is_some_and(|pid| kill(pid).is_ok()));
            }
            _ => self.keepers += u64::from(stack.keeper().is_some_and(|pid| kill(pid).is_ok())),
        }
        Ok(())
    }

    fn raise(&mut self, stack: &mut Stack, until: Instant) -> Result<()> {
        if self.agent_back.is_some_and(|at| at <= until) {
            self.agent_back = None;
            stack.start_agent()?;
            if let Some((_, back)) = self.absences.last_mut() {
                *back = now();
            }
        }
        if self.vkubelet_back.is_some_and(|at| at <= until) {
            self.vkubelet_back = None;
            stack.spawn_vkubelet()?;
        }
        Ok(())
    }

    /// Starts everybody and waits until they know each other.
    pub(crate) fn raise_all(&mut self, stack: &mut Stack) -> Result<()> {
        self.raise(stack, Instant::now() + Duration::from_secs(3600))?;
        wait("vkubelet is up", || Ok(stack.vkubelet_is_up()))?;
        wait("the host is ready", || stack.host_is_ready())
    }
}
