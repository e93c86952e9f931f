//! Whatever is killed, at whichever step: within ten seconds each sandbox is whole or gone.
//!
//! `NODELESS_CHURN_ROUNDS=500` is the full number of kills; `NODELESS_FAULT_SEED` repeats a schedule.
#![allow(clippy::unwrap_used, reason = "a test")]

mod churn;
mod support;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use churn::oracle::Pod;
use churn::place::{self, Place};
use churn::rounds::{Rounds, number};
use churn::words::Question;
use sandbox::sys::failpoint::{Point, VARIABLE};

/// Kills of a run that is not told otherwise.
const FEW: u32 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_kills_at_named_steps_leave_each_sandbox_whole_or_gone() {
    privileged!("privileged_kills_at_named_steps_leave_each_sandbox_whole_or_gone");
    if let Err(reason) = support::shim::churn_agent() {
        eprintln!("SKIPPED privileged_kills_at_named_steps_leave_each_sandbox_whole_or_gone: {reason}");
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("NODELESS_FAULT_SEED").unwrap_or(now.as_millis() as u64);
    let wanted = number("NODELESS_CHURN_ROUNDS").map_or(FEW, |rounds| rounds as u32);
    eprintln!("NODELESS_FAULT_SEED={seed} NODELESS_CHURN_ROUNDS={wanted}");
    let began = Instant::now();
    let mut rounds = Rounds::begin(seed).await;
    let (mut kills, mut tries) = (0, 0);
    while kills < wanted {
        tries += 1;
        kills += u32::from(rounds.round(tries).await);
        assert!(tries < wanted * 2 + 40, "of {tries} rounds only {kills} reached their step");
    }
    let never: Vec<&str> =
        Point::ALL.iter().filter(|point| rounds.plan.stopped(**point) == 0).map(|point| point.name()).collect();
    let unpassed: Vec<&str> =
        Point::ALL.iter().filter(|point| rounds.plan.passed(**point) == 0).map(|point| point.name()).collect();
    eprintln!(
        "{kills} kills in {tries} rounds, {:.1} s, slowest recovery {:?}; killed at {} of {} steps, not at {never:?}; never passed {unpassed:?}",
        began.elapsed().as_secs_f64(),
        rounds.slowest,
        Point::ALL.len() - never.len(),
        Point::ALL.len(),
    );
    let never: Vec<&str> = match rounds.roots_are_impossible() {
        true => {
            never.into_iter().filter(|name| !["agent.ahead-answered", "shim.ahead-assembled"].contains(name)).collect()
        }
        false => never,
    };
    if wanted as usize >= Point::ALL.len() * 3 {
        assert!(never.is_empty(), "nobody was killed at {never:?}");
    } else {
        let enough = Point::ALL.len().min(wanted as usize / 2);
        assert!(Point::ALL.len() - never.len() >= enough, "killed at too few steps");
    }
    rounds.end().await;
}

#[test]
fn privileged_the_shipped_shim_has_no_step_at_which_it_could_be_killed() {
    privileged!("privileged_the_shipped_shim_has_no_step_at_which_it_could_be_killed");
    let holds = |program: std::path::PathBuf| {
        let bytes = std::fs::read(program).unwrap();
        bytes.windows(VARIABLE.len()).any(|window| window == VARIABLE.as_bytes())
    };
    assert!(!holds(support::shim::program().unwrap()));
    if let Ok(program) = support::shim::churn_agent() {
        assert!(holds(program), "and the churn tests' program has");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_keeper_and_shims_go_on_when_nobody_hears_them() {
    privileged!("privileged_keeper_and_shims_go_on_when_nobody_hears_them");
    if let Err(reason) = support::shim::churn_agent() {
        eprintln!("SKIPPED privileged_keeper_and_shims_go_on_when_nobody_hears_them: {reason}");
        return;
    }
    // A pipe that nobody reads.
    let (_, unheard) = std::io::pipe().unwrap();
    let rounds = Rounds::begin_with(1, unheard).await;
    let (agent, maker, set_up) = (&rounds.agent, &rounds.maker, &rounds.set_up);
    let pods = [maker.pod(), maker.pod()];
    for pod in &pods {
        agent.must(Question::Prepare(pod.id.clone())).await;
        agent.must(Question::Configure(pod.id.clone(), pod.spec.clone())).await;
    }
    let (place, keeper) = (Place::look(set_up), place::keeper(set_up));
    let slot = |pod: &Pod| place.sandboxes[&pod.id.0].clone().unwrap();
    // The one shim says that its stub has ended, the keeper that the other has.
    assert!(place::kill_stub(set_up, &slot(&pods[0])));
    assert!(place::kill_shim(set_up, &slot(&pods[1])));
    support::until("the stub's end is seen", || place::stub_leaf(set_up, &slot(&pods[0])).is_none()).await;
    let container = maker.container(false);
    agent.must(Question::Start(pods[0].id.clone(), container.spec.clone())).await;
    agent.must(Question::Destroy(pods[1].id.clone())).await;
    assert!(keeper.is_some());
    assert_eq!(place::keeper(set_up), keeper, "the keeper is the one that it was");
    rounds.end().await;
}
