//! What truly happened to every sandbox.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent::meter::{Clock, SystemClock};
use serde_json::json;
use tests::random::Random;

use super::child::Child;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Asked for, not answered.
    Starting,
    Held,
    /// Release asked for, not answered.
    Stopping,
    /// Ended at this instant while no agent was there; `asked`: or before, when its release had been asked for already.
    Unattended {
        told: u64,
        asked: bool,
    },
    Ended(u64),
    /// Never held, as far as anybody was told: the start was not answered before the kill at this instant. (A tick may have come
    /// between the start and its answer.)
    Void {
        kill: u64,
    },
    /// The host crashed: proven up to some instant in between.
    Lost {
        proven: u64,
        crash: u64,
    },
}

#[derive(Debug, Clone)]
struct Sandbox {
    boot: u64,
    started: u64,
    /// When the answer to its start was taken.
    held_since: u64,
    /// Proven up to here at least.
    proven: u64,
    state: State,
}

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    boot: u64,
    sandboxes: BTreeMap<String, Sandbox>,
    /// Ticks under way: when they were asked for.
    ticks: Vec<u64>,
    last_seq: Option<u64>,
    /// When the last agent was killed.
    killed: u64,
}

fn now() -> u64 {
    SystemClock.now().boottime_ns
}

impl Oracle {
    fn in_state(&self, wanted: impl Fn(State) -> bool) -> Vec<String> {
        self.sandboxes.iter().filter(|(_, sandbox)| wanted(sandbox.state)).map(|(id, _)| id.clone()).collect()
    }

    /// A new agent is told what lives, and asked about everything that its predecessor left unanswered.
    pub(crate) fn adopt(&mut self, agent: &mut Child) {
        let live = self.in_state(|state| state == State::Held);
        let at = now();
        for sandbox in self.sandboxes.values_mut().filter(|sandbox| sandbox.state == State::Stopping) {
            sandbox.state = State::Unattended { told: at, asked: true };
        }
        let released: Vec<_> = self
            .sandboxes
            .iter()
            .filter_map(|(id, sandbox)| match sandbox.state {
                State::Unattended { told, .. } => Some(json!([id, told])),
                _ => None,
            })
            .collect();
        agent.send(&format!("adopt {}", json!({ "live": live, "released": released })));
        let asked = self.in_state(|state| matches!(state, State::Unattended { .. } | State::Starting));
        asked.iter().for_each(|id| agent.send(&format!("stop {id}")));
        let deadline = Instant::now() + Duration::from_secs(30);
        while asked.iter().any(|id| matches!(self.sandboxes[id].state, State::Unattended { .. } | State::Starting)) {
            assert!(Instant::now() < deadline, "the agent does not answer");
            if let Some(answer) = agent.next(Duration::from_millis(100)) {
                self.take(&answer);
            }
        }
    }

    /// One random command, and whatever has been answered meanwhile.
    pub(crate) fn act(&mut self, agent: &mut Child, random: &mut Random) {
        let held = self.in_state(|state| state == State::Held);
        match random.below(10) {
            0..4 if held.len() < 40 => {
                let id = format!("s{:05}", self.sandboxes.len());
                agent.send(&format!("start {id}"));
                self.sandboxes.insert(
                    id,
                    Sandbox { boot: self.boot, started: 0, held_since: 0, proven: 0, state: State::Starting },
                );
            }
            0..7 if !held.is_empty() => {
                let id = &held[usize::try_from(random.below(held.len() as u64)).expect("a small number")];
                agent.send(&format!("stop {id}"));
                if let Some(sandbox) = self.sandboxes.get_mut(id) {
                    sandbox.state = State::Stopping;
                }
            }
            7 => {
                self.ticks.push(now());
                agent.send("tick");
            }
            _ => {}
        }
        if let Some(answer) = agent.next(Duration::from_micros(random.below(3_000))) {
            self.take(&answer);
        }
    }

    pub(crate) fn settle(&mut self, answers: Vec<String>) {
        answers.iter().for_each(|answer| self.take(answer));
        self.ticks.clear();
        self.killed = now();
    }

    fn take(&mut self, answer: &str) {
        let words: Vec<&str> = answer.split(' ').collect();
        let at = |word: &str| word.parse::<u64>().expect("an instant");
        match words.as_slice() {
            ["started", id, start] => {
                let sandbox = self.sandboxes.get_mut(*id).expect("a known sandbox");
                (sandbox.started, sandbox.proven, sandbox.held_since) = (at(start), at(start), now());
                sandbox.state = State::Held;
            }
            ["stopped", id, end] => {
                let sandbox = self.sandboxes.get_mut(*id).expect("a known sandbox");
                sandbox.state = match sandbox.state {
                    // Closed at its own start; the ledger shows that start.
                    State::Starting => State::Void { kill: self.killed },
                    State::Unattended { told, asked } => {
                        // Durable before the kill, or put down now at the instant that was reported.
                        assert!(at(end) == told || asked && at(end) < told, "{id} ended at {told}, not at {end}");
                        State::Ended(at(end))
                    }
                    _ => State::Ended(at(end)),
                };
            }
            ["unknown", id] => {
                let sandbox = self.sandboxes.get_mut(*id).expect("a known sandbox");
                assert_eq!(sandbox.state, State::Starting, "{id} was held and is forgotten");
                sandbox.state = State::Void { kill: self.killed };
            }
            ["ticked"] => {
                let asked = self.ticks.remove(0);
                for sandbox in self.sandboxes.values_mut() {
                    // Whatever was held when the tick was asked for is proven by it.
                    if matches!(sandbox.state, State::Held) && sandbox.held_since < asked {
                        sandbox.proven = sandbox.proven.max(asked);
                    }
                }
            }
            ["last", seq] => self.last_seq = Some(at(seq)),
            other => panic!("unexpected answer {other:?}"),
        }
    }

    /// Between two agents some sandboxes end by themselves; their shims wrote down when.
    pub(crate) fn some_end_unattended(&mut self, random: &mut Random) {
        for sandbox in self.sandboxes.values_mut().filter(|sandbox| sandbox.state == State::Held) {
            if random.below(10) == 0 {
                sandbox.state = State::Unattended { told: now(), asked: false };
            }
        }
    }

    pub(crate) fn host_crashed(&mut self, crash: u64) {
        self.boot += 1;
        for sandbox in self.sandboxes.values_mut() {
            sandbox.state = match sandbox.state {
                State::Held | State::Stopping => State::Lost { proven: sandbox.proven, crash },
                State::Starting => State::Void { kill: self.killed },
                other => other,
            };
        }
    }

    /// So that the running boot has a record, which the ledger takes only when the older boots are done.
    pub(crate) fn one_more(&mut self, agent: &mut Child) {
        let id = "last".to_owned();
        agent.send(&format!("start {id}"));
        let sandbox = Sandbox { boot: self.boot, started: 0, held_since: 0, proven: 0, state: State::Starting };
        self.sandboxes.insert(id.clone(), sandbox);
        self.wait(agent, |oracle| oracle.sandboxes[&id].state == State::Held);
    }

    pub(crate) fn stop_all(&mut self, agent: &mut Child) {
        for id in self.in_state(|state| state == State::Held) {
            agent.send(&format!("stop {id}"));
        }
        self.wait(agent, |oracle| oracle.in_state(|state| state == State::Held).is_empty());
    }

    pub(crate) fn last_seq(&mut self, agent: &mut Child) -> u64 {
        agent.send("last");
        self.wait(agent, |oracle| oracle.last_seq.is_some());
        self.last_seq.expect("just waited for")
    }

    fn wait(&mut self, agent: &mut Child, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            assert!(Instant::now() < deadline, "the agent does not answer");
            if let Some(answer) = agent.next(Duration::from_millis(100)) {
                self.take(&answer);
            }
        }
    }

    /// Against what the ledger found (sandbox, boot id, start, end); the nanoseconds to be billed in all.
    pub(crate) fn compare(&self, found: &[(String, String, u64, u64)]) -> u64 {
        let found: BTreeMap<&str, (&str, u64, u64)> =
            found.iter().map(|(id, boot, start, end)| (id.as_str(), (boot.as_str(), *start, *end))).collect();
        assert!(found.keys().all(|id| self.sandboxes.contains_key(*id)), "somebody is billed who never was");
        let mut sum = 0;
        for (id, sandbox) in &self.sandboxes {
            let ledger = found.get(id.as_str()).copied();
            let boot = format!("boot{}", sandbox.boot);
            match sandbox.state {
                State::Ended(end) => {
                    assert_eq!(ledger, Some((boot.as_str(), sandbox.started, end)), "{id}");
                    sum += end - sandbox.started;
                }
                State::Void { kill } => {
                    if let Some((_, start, end)) = ledger {
                        assert!(end <= kill, "{id}: billed after the kill that its start never survived");
                        sum += end - start;
                    }
                }
                State::Lost { proven, crash } => {
                    let (found_boot, start, end) = ledger.unwrap_or_else(|| panic!("{id} is lost"));
                    assert_eq!((found_boot, start), (boot.as_str(), sandbox.started), "{id}");
                    assert!((proven..=crash).contains(&end), "{id}: {end} is not within {proven}..={crash}");
                    sum += end - start;
                }
                other => panic!("{id} is still {other:?}"),
            }
        }
        sum
    }
}
