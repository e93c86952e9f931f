use proptest::prelude::*;

use super::*;
use crate::clock::SECOND;
use crate::pod::plan::{Plan, Restart, Role, Slot};
use crate::ports::PullPolicy;

fn at(seconds: u64) -> Now {
    Now { boottime_ns: seconds * SECOND, wall_ns: (1_000_000 + seconds) * SECOND }
}

fn plan(slots: &[(Role, Restart)]) -> Plan {
    Plan {
        display: "p_n(u)".to_owned(),
        slots: slots
            .iter()
            .enumerate()
            .map(|(i, &(role, restart))| Slot {
                name: format!("c{i}"),
                image: "image:1".to_owned(),
                pull: PullPolicy::IfNotPresent,
                role,
                restart,
            })
            .collect(),
        grace_seconds: 30,
        active_deadline_seconds: None,
    }
}

fn facts() -> ImageFacts {
    ImageFacts {
        reference: "image:1".into(),
        image_id: "image@sha256:1".into(),
        layers: vec![],
        high_ids: Default::default(),
    }
}

fn exit(code: i32, now: Now) -> ExitFacts {
    ExitFacts { code, signal: None, oom_killed: false, at: now, message: String::new() }
}

/// A machine with its plan; effects without what is told to people.
struct Rig {
    plan: Plan,
    state: PodState,
}

impl Rig {
    fn new(slots: &[(Role, Restart)]) -> Self {
        let plan = plan(slots);
        let state = PodState::new(plan.slots.len());
        Self { plan, state }
    }

    fn step(&mut self, event: Event, seconds: u64) -> Vec<Effect> {
        let mut effects = self.state.step(&self.plan, event, at(seconds)).unwrap();
        effects.retain(|e| !matches!(e, Effect::Tell { .. }));
        effects
    }

    /// Begun, images there, sandbox up: gives what is started first.
    fn up(&mut self) -> Vec<Effect> {
        self.step(Event::Begin, 0);
        for slot in 0..self.plan.slots.len() {
            self.step(Event::ImageReady { slot, facts: facts() }, 0);
        }
        self.step(Event::SandboxReady { ip: None }, 0)
    }

    fn started(&mut self, slot: usize, seconds: u64) -> Vec<Effect> {
        let attempt = self.state.containers[slot].attempt;
        self.step(Event::Started { slot, attempt, wall_ns: at(seconds).wall_ns }, seconds)
    }

    fn exited(&mut self, slot: usize, code: i32, seconds: u64) -> Vec<Effect> {
        let attempt = self.state.containers[slot].attempt;
        self.step(Event::Exited { slot, attempt, exit: exit(code, at(seconds)) }, seconds)
    }
}

const NEVER: (Role, Restart) = (Role::Main, Restart::Never);
const ALWAYS: (Role, Restart) = (Role::Main, Restart::Always);
const INIT: (Role, Restart) = (Role::Init, Restart::OnFailure);
const EPHEMERAL: (Role, Restart) = (Role::Ephemeral, Restart::Never);
const SIDECAR: (Role, Restart) = (Role::Sidecar, Restart::Always);

#[test]
fn images_and_sandbox_are_asked_for_side_by_side() {
    let mut rig = Rig::new(&[NEVER, NEVER]);
    let effects = rig.step(Event::Begin, 0);
    assert_eq!(effects, [Effect::Pull { slot: 0 }, Effect::Pull { slot: 1 }, Effect::Prepare]);
}

#[test]
fn a_pod_runs_to_success_and_is_released_once() {
    let mut rig = Rig::new(&[NEVER, NEVER]);
    assert_eq!(rig.up(), [Effect::Start { slot: 0, attempt: 0 }, Effect::Start { slot: 1, attempt: 0 }]);
    rig.started(0, 1);
    rig.started(1, 1);
    assert_eq!(rig.exited(1, 0, 2), []);
    assert_eq!(rig.exited(0, 0, 3), [Effect::Release]);
    assert!(rig.state.has_succeeded(&rig.plan));
    rig.step(Event::Released, 4);
    assert!(rig.state.is_terminal());
    assert_eq!(rig.state.step(&rig.plan, Event::Tick, at(5)), Err(Refused::Terminal));
}

#[test]
fn ephemeral_containers_start_first_may_be_added_and_decide_nothing() {
    let mut rig = Rig::new(&[INIT, ALWAYS, EPHEMERAL]);
    assert_eq!(rig.up(), [Effect::Start { slot: 2, attempt: 0 }, Effect::Start { slot: 0, attempt: 0 }]);
    rig.started(0, 1);
    rig.started(2, 1);
    assert_eq!(rig.exited(2, 1, 2), [], "it is not started again, and the pod goes on");
    assert_eq!(rig.exited(0, 0, 3), [Effect::Start { slot: 1, attempt: 0 }]);
    rig.started(1, 3);
    rig.plan = plan(&[INIT, ALWAYS, EPHEMERAL, EPHEMERAL]);
    rig.state.grow(4);
    assert_eq!(rig.step(Event::Tick, 4), [Effect::Pull { slot: 3 }]);
    assert_eq!(rig.step(Event::ImageReady { slot: 3, facts: facts() }, 5), [Effect::Start { slot: 3, attempt: 0 }]);
    rig.started(3, 6);
    // A new sandbox has none of them: whoever looked around has to come again.
    assert_eq!(rig.step(Event::Lost, 7), [Effect::Release]);
    rig.step(Event::Released, 8);
    let again = rig.step(Event::SandboxReady { ip: None }, 8);
    assert_eq!(again, [Effect::Start { slot: 0, attempt: 1 }]);
    assert_eq!((&rig.state.containers[2].run, &rig.state.containers[3].run), (&Run::Done, &Run::Done));
}

#[test]
fn a_pods_end_ends_its_ephemeral_containers() {
    let mut rig = Rig::new(&[NEVER, EPHEMERAL]);
    rig.up();
    rig.started(0, 1);
    rig.started(1, 1);
    assert_eq!(rig.exited(0, 0, 2), [Effect::Stop { slot: 1 }]);
    assert_eq!(rig.exited(1, 143, 3), [Effect::Release]);
    assert!(rig.state.has_succeeded(&rig.plan));
}

#[test]
fn init_containers_run_one_after_the_other_and_sidecars_go_on() {
    let mut rig = Rig::new(&[INIT, SIDECAR, INIT, NEVER]);
    assert_eq!(rig.up(), [Effect::Start { slot: 0, attempt: 0 }]);
    rig.started(0, 1);
    assert_eq!(rig.exited(0, 0, 2), [Effect::Start { slot: 1, attempt: 0 }]);
    assert_eq!(rig.started(1, 2), [Effect::Start { slot: 2, attempt: 0 }]);
    rig.started(2, 3);
    assert!(!rig.state.is_initialized(&rig.plan));
    assert_eq!(rig.exited(2, 0, 4), [Effect::Start { slot: 3, attempt: 0 }]);
    rig.started(3, 4);
    assert!(rig.state.is_initialized(&rig.plan));
    // A sidecar that dies comes back beside the main container.
    assert_eq!(rig.exited(1, 1, 5), [Effect::Start { slot: 1, attempt: 1 }]);
    rig.started(1, 5);
    // The main container's end stops the sidecar, and then all is over.
    assert_eq!(rig.exited(3, 0, 6), [Effect::Stop { slot: 1 }]);
    assert_eq!(rig.exited(1, 143, 7), [Effect::Release]);
    assert!(rig.state.has_succeeded(&rig.plan));
}

#[test]
fn an_init_container_that_fails_for_good_fails_the_pod() {
    let mut rig = Rig::new(&[(Role::Init, Restart::Never), NEVER]);
    rig.up();
    rig.started(0, 1);
    assert_eq!(rig.exited(0, 3, 2), [Effect::Release]);
    assert!(!rig.state.has_succeeded(&rig.plan));
    assert_eq!(rig.state.containers[1].run, Run::Idle);
}

#[test]
fn a_crashing_container_restarts_at_once_then_backs_off() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.up();
    rig.started(0, 1);
    assert_eq!(rig.exited(0, 1, 2), [Effect::Start { slot: 0, attempt: 1 }]);
    rig.started(0, 2);
    assert_eq!(rig.exited(0, 1, 3), []);
    assert_eq!(rig.state.next_wake(&rig.plan, at(3)), Some(13 * SECOND));
    assert_eq!(rig.step(Event::Tick, 12), []);
    assert_eq!(rig.step(Event::Tick, 13), [Effect::Start { slot: 0, attempt: 2 }]);
    let before = rig.state.containers[0].before.clone().unwrap();
    let latest = rig.state.containers[0].latest.clone().unwrap();
    assert_eq!((before.attempt, latest.attempt), (0, 1));
}

#[test]
fn deletion_asks_then_kills_then_releases() {
    let mut rig = Rig::new(&[ALWAYS, SIDECAR]);
    rig.up();
    rig.started(0, 1);
    rig.started(1, 1);
    assert_eq!(rig.step(Event::Delete { grace_seconds: 5 }, 10), [Effect::Stop { slot: 0 }]);
    assert_eq!(rig.step(Event::Tick, 14), []);
    assert_eq!(rig.step(Event::Tick, 15), [Effect::Kill { slot: 0 }, Effect::Kill { slot: 1 }]);
    rig.exited(0, 137, 15);
    assert_eq!(rig.exited(1, 137, 15), [Effect::Release]);
}

#[test]
fn a_shorter_grace_wins_and_a_longer_one_changes_nothing() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.up();
    rig.started(0, 1);
    rig.step(Event::Delete { grace_seconds: 30 }, 10);
    assert_eq!(rig.state.step(&rig.plan, Event::Delete { grace_seconds: 60 }, at(11)), Err(Refused::Stale));
    assert_eq!(rig.step(Event::Delete { grace_seconds: 0 }, 12), [Effect::Kill { slot: 0 }]);
}

#[test]
fn what_a_kill_does_not_end_goes_with_its_sandbox() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.up();
    rig.started(0, 1);
    rig.step(Event::Delete { grace_seconds: 1 }, 10);
    rig.step(Event::Tick, 11);
    assert_eq!(rig.state.next_wake(&rig.plan, at(11)), Some(16 * SECOND));
    assert_eq!(rig.step(Event::Tick, 16), [Effect::Release]);
    rig.step(Event::Released, 17);
    assert_eq!(rig.state.containers[0].latest.as_ref().unwrap().code, 137);
}

#[test]
fn a_pod_deleted_while_its_sandbox_is_made_waits_for_it_and_starts_nothing() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.step(Event::Begin, 0);
    assert_eq!(rig.step(Event::Delete { grace_seconds: 0 }, 1), []);
    assert_eq!(rig.step(Event::SandboxReady { ip: None }, 2), [Effect::Release]);
}

#[test]
fn a_failed_pull_is_shown_then_backs_off_and_is_tried_again() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.step(Event::Begin, 0);
    let failed = || Event::ImageFailed {
        slot: 0,
        reference: "image:1".into(),
        reason: "ErrImagePull".into(),
        message: "no".into(),
        retry_after: None,
    };
    rig.step(failed(), 1);
    assert_eq!(rig.state.next_wake(&rig.plan, at(1)), Some(2 * SECOND));
    let told = rig.state.step(&rig.plan, Event::Tick, at(2)).unwrap();
    let [Effect::Tell { reason: "BackOff", warning: false, .. }, Effect::Tell { reason: "Failed", message, .. }] =
        &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!(message, "Error: ImagePullBackOff");
    assert_eq!(rig.step(Event::Tick, 11), [Effect::Pull { slot: 0 }]);
    rig.step(failed(), 12);
    assert_eq!(rig.step(Event::Tick, 31), []);
    assert_eq!(rig.step(Event::Tick, 32), [Effect::Pull { slot: 0 }]);
}

#[test]
fn a_container_that_was_never_made_may_get_another_image_at_once() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.up();
    let failed = Event::ImageFailed {
        slot: 0,
        reference: "image:1".into(),
        reason: "InvalidImageName".into(),
        message: "no".into(),
        retry_after: None,
    };
    assert_eq!(rig.state.step(&rig.plan, Event::ImageChanged { slot: 0 }, at(0)), Err(Refused::WrongStage));
    let mut rig = Rig::new(&[ALWAYS]);
    rig.step(Event::Begin, 0);
    rig.step(failed, 1);
    assert_eq!(rig.step(Event::ImageChanged { slot: 0 }, 2), [Effect::Pull { slot: 0 }]);
}

#[test]
fn a_lost_sandbox_is_replaced_and_init_containers_run_again() {
    let mut rig = Rig::new(&[INIT, ALWAYS]);
    rig.up();
    rig.started(0, 1);
    rig.exited(0, 0, 2);
    rig.started(1, 2);
    assert_eq!(rig.step(Event::Lost, 3), [Effect::Release]);
    assert_eq!(rig.step(Event::Released, 4), [Effect::Prepare]);
    assert_eq!(rig.state.incarnation, 1);
    assert_eq!(rig.step(Event::SandboxReady { ip: None }, 5), [Effect::Start { slot: 0, attempt: 1 }]);
    rig.started(0, 5);
    assert_eq!(rig.exited(0, 0, 6), [Effect::Start { slot: 1, attempt: 1 }]);
}

#[test]
fn a_lost_sandbox_of_a_pod_that_never_restarts_fails_it() {
    let mut rig = Rig::new(&[NEVER]);
    rig.up();
    rig.started(0, 1);
    assert_eq!(rig.step(Event::Lost, 3), [Effect::Release]);
    rig.step(Event::Released, 4);
    assert!(rig.state.is_terminal() && !rig.state.has_succeeded(&rig.plan));
}

#[test]
fn a_sandbox_that_cannot_be_made_is_released_and_tried_again() {
    let mut rig = Rig::new(&[NEVER]);
    rig.step(Event::Begin, 0);
    assert_eq!(rig.step(Event::SandboxFailed { message: "no".into() }, 1), [Effect::Release]);
    assert_eq!(rig.step(Event::Released, 1), []);
    assert_eq!(rig.state.next_wake(&rig.plan, at(1)), Some(2 * SECOND));
    assert_eq!(rig.step(Event::Tick, 2), [Effect::Prepare]);
}

#[test]
fn a_container_that_cannot_be_created_is_not_an_attempt() {
    let mut rig = Rig::new(&[NEVER]);
    rig.up();
    let failure = StartFailure::Config { reason: "CreateContainerConfigError".into(), message: "no key".into() };
    rig.step(Event::StartFailed { slot: 0, attempt: 0, failure }, 1);
    assert!(matches!(rig.state.containers[0].run, Run::Blocked { .. }));
    assert_eq!(rig.step(Event::Refreshed, 2), [Effect::Start { slot: 0, attempt: 0 }]);
}

#[test]
fn a_program_that_cannot_be_executed_counts_as_an_exit() {
    let mut rig = Rig::new(&[NEVER]);
    rig.up();
    let failure = StartFailure::Run { code: 127, message: "not found".into() };
    assert_eq!(rig.step(Event::StartFailed { slot: 0, attempt: 0, failure }, 1), [Effect::Release]);
    let ended = rig.state.containers[0].latest.clone().unwrap();
    assert_eq!((ended.code, ended.reason.as_str()), (127, "StartError"));
}

#[test]
fn the_active_deadline_fails_the_pod() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.plan.active_deadline_seconds = Some(60);
    rig.up();
    rig.started(0, 1);
    assert_eq!(rig.state.next_wake(&rig.plan, at(1)), Some(60 * SECOND));
    assert_eq!(rig.step(Event::Tick, 60), [Effect::Stop { slot: 0 }]);
    assert_eq!(rig.exited(0, 0, 61), [Effect::Release]);
    assert_eq!(rig.state.verdict.as_ref().unwrap().reason, "DeadlineExceeded");
    assert!(!rig.state.has_succeeded(&rig.plan));
}

#[test]
fn a_denied_pod_holds_nothing() {
    let mut rig = Rig::new(&[ALWAYS]);
    let verdict = Verdict { reason: "OutOfcpu".into(), message: "no".into(), disrupted: false };
    assert_eq!(rig.step(Event::Deny(verdict), 0), [Effect::Release]);
    rig.step(Event::Released, 0);
    assert!(rig.state.is_terminal());
}

#[test]
fn after_an_agent_restart_a_running_container_is_left_alone_and_known_exits_are_not_counted_twice() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.up();
    rig.started(0, 1);
    rig.exited(0, 1, 2);
    rig.started(0, 2);
    let saved = rig.state.clone();
    assert_eq!(rig.step(Event::Recovered { alive: true, rebooted: false }, 9), []);
    let replayed = Event::Exited { slot: 0, attempt: 0, exit: exit(1, at(2)) };
    assert_eq!(rig.state.step(&rig.plan, replayed, at(9)), Err(Refused::Stale));
    let replayed = Event::Started { slot: 0, attempt: 1, wall_ns: at(2).wall_ns };
    assert_eq!(rig.state.step(&rig.plan, replayed, at(9)), Err(Refused::Stale));
    assert_eq!(rig.state.containers, saved.containers);
}

#[test]
fn an_attempt_that_the_ledger_missed_is_learned_from_the_shim() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.up();
    let saved = rig.state.clone();
    rig.started(0, 1);
    rig.exited(0, 1, 2);
    rig.state = saved;
    let again = rig.step(Event::Recovered { alive: true, rebooted: false }, 9);
    assert_eq!(again, [Effect::Start { slot: 0, attempt: 0 }]);
    rig.step(Event::Started { slot: 0, attempt: 0, wall_ns: at(1).wall_ns }, 9);
    rig.step(Event::Exited { slot: 0, attempt: 0, exit: exit(1, at(2)) }, 9);
    rig.step(Event::Started { slot: 0, attempt: 1, wall_ns: at(2).wall_ns }, 9);
    assert_eq!(rig.state.containers[0].attempt, 1);
    assert!(matches!(rig.state.containers[0].run, Run::Running { .. }));
}

#[test]
fn after_a_host_restart_the_pod_gets_a_new_sandbox() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.up();
    rig.started(0, 1);
    assert_eq!(rig.step(Event::Recovered { alive: false, rebooted: true }, 2), [Effect::Release]);
    assert_eq!(rig.step(Event::Released, 3), [Effect::Prepare]);
    assert_eq!(rig.step(Event::SandboxReady { ip: None }, 4), [Effect::Start { slot: 0, attempt: 1 }]);
}

/// Every stage that a pod can be in.
fn all_stages() -> Vec<(&'static str, Rig)> {
    let fresh = || Rig::new(&[INIT, ALWAYS]);
    let mut stages = vec![("new", fresh())];
    let mut push = |name, build: &dyn Fn(&mut Rig)| {
        let mut rig = fresh();
        build(&mut rig);
        stages.push((name, rig));
    };
    push("preparing", &|r| drop(r.step(Event::Begin, 0)));
    push("up", &|r| drop(r.up()));
    push("recycling", &|r| {
        r.step(Event::Begin, 0);
        r.step(Event::SandboxFailed { message: String::new() }, 0);
    });
    push("retrying", &|r| {
        r.step(Event::Begin, 0);
        r.step(Event::SandboxFailed { message: String::new() }, 0);
        r.step(Event::Released, 0);
    });
    push("releasing", &|r| drop(r.step(Event::Delete { grace_seconds: 1 }, 0)));
    push("released", &|r| {
        r.step(Event::Delete { grace_seconds: 1 }, 0);
        r.step(Event::Released, 0);
    });
    stages
}

#[test]
fn a_registry_that_asks_us_to_stay_away_is_left_alone_for_so_long_within_bounds() {
    let plan = &[(Role::Main, Restart::Always)];
    for (asked, kept) in [(Some(90), 90), (Some(3), 10), (None, 10), (Some(1 << 40), 900)] {
        let mut r = Rig::new(plan);
        r.step(Event::Begin, 0);
        let retry_after = asked.map(Duration::from_secs);
        r.step(
            Event::ImageFailed {
                slot: 0,
                reference: "image:1".into(),
                reason: "ErrImagePull".into(),
                message: "no".into(),
                retry_after,
            },
            0,
        );
        assert_eq!(r.step(Event::Tick, kept - 1), [], "{asked:?}");
        assert_eq!(r.step(Event::Tick, kept), [Effect::Pull { slot: 0 }], "{asked:?}");
    }
}

#[test]
fn a_sandbox_without_the_ids_of_an_images_user_is_made_anew_before_anything_runs_in_it() {
    let of = |id: u32| ImageFacts { high_ids: [id].into(), ..facts() };
    let mut r = Rig::new(&[(Role::Main, Restart::Always); 2]);
    r.step(Event::Begin, 0);
    assert_eq!(r.step(Event::SandboxReady { ip: None }, 1), []);
    assert_eq!(r.step(Event::ImageReady { slot: 0, facts: of(70_000) }, 2), [Effect::Release]);
    assert_eq!(r.step(Event::Released, 3), [Effect::Prepare]);
    r.state.sandbox_ids = [70_000].into();
    assert_eq!(r.step(Event::SandboxReady { ip: None }, 4), [Effect::Start { slot: 0, attempt: 0 }]);
    // What runs stays: the other container is told what to write into the pod.
    let next = r.step(Event::ImageReady { slot: 1, facts: of(200_000) }, 5);
    assert_eq!((next, r.state.stage), (vec![Effect::Start { slot: 1, attempt: 0 }], Stage::Up));
}

fn all_events() -> Vec<(&'static str, Event)> {
    vec![
        ("begin", Event::Begin),
        ("evict", Event::Evict { message: "m".into(), disrupted: true }),
        ("deny", Event::Deny(Verdict { reason: "r".into(), message: "m".into(), disrupted: false })),
        ("sandbox ready", Event::SandboxReady { ip: None }),
        ("sandbox failed", Event::SandboxFailed { message: "m".into() }),
        ("lost", Event::Lost),
        ("image ready", Event::ImageReady { slot: 0, facts: facts() }),
        (
            "image failed",
            Event::ImageFailed {
                slot: 0,
                reference: "image:1".into(),
                reason: "ErrImagePull".into(),
                message: "m".into(),
                retry_after: None,
            },
        ),
        ("image changed", Event::ImageChanged { slot: 0 }),
        ("started", Event::Started { slot: 0, attempt: 0, wall_ns: 1 }),
        (
            "start failed",
            Event::StartFailed { slot: 0, attempt: 0, failure: StartFailure::Run { code: 127, message: "m".into() } },
        ),
        ("exited", Event::Exited { slot: 0, attempt: 0, exit: exit(0, at(1)) }),
        ("no such container", Event::Started { slot: 9, attempt: 0, wall_ns: 1 }),
        ("renew", Event::Renew { slot: 0 }),
        ("delete", Event::Delete { grace_seconds: 7 }),
        ("released", Event::Released),
        ("recovered", Event::Recovered { alive: true, rebooted: false }),
        ("rebooted", Event::Recovered { alive: false, rebooted: true }),
        ("refreshed", Event::Refreshed),
        ("tick", Event::Tick),
    ]
}

#[test]
fn every_event_in_every_stage_has_one_answer() {
    let mut table = String::new();
    for (stage, rig) in all_stages() {
        for (name, event) in all_events() {
            let mut state = rig.state.clone();
            let answer = match state.step(&rig.plan, event, at(1)) {
                Err(refused) => {
                    assert_eq!(state, rig.state, "a refusal must change nothing: {stage} + {name}");
                    format!("refused: {refused}")
                }
                Ok(effects) => {
                    let effects: Vec<String> = effects
                        .iter()
                        .map(|e| match e {
                            Effect::Tell { reason, .. } => format!("tell {reason}"),
                            other => format!("{other:?}"),
                        })
                        .collect();
                    format!("{:?} [{}]", state.stage, effects.join(", "))
                }
            };
            table.push_str(&format!("{stage} + {name} -> {answer}\n"));
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn a_container_that_is_renewed_starts_again_at_once_whatever_its_restart_policy() {
    let mut rig = Rig::new(&[NEVER]);
    rig.up();
    rig.started(0, 0);
    let renewed = rig.state.step(&rig.plan, Event::Renew { slot: 0 }, at(5)).unwrap();
    let told = "Container c0 resize requires restart".to_owned();
    assert!(renewed.contains(&Effect::Tell { slot: Some(0), warning: false, reason: "Killing", message: told }));
    assert!(renewed.contains(&Effect::Stop { slot: 0 }), "{renewed:?}");
    assert_eq!(rig.state.step(&rig.plan, Event::Renew { slot: 0 }, at(5)), Err(Refused::Stale));
    assert_eq!(rig.exited(0, 143, 6), [Effect::Start { slot: 0, attempt: 1 }]);
    rig.started(0, 6);
    assert_eq!(rig.exited(0, 0, 7), [Effect::Release], "the next end is one of its own");
}

#[test]
fn an_evicted_pod_gets_one_second_whatever_it_asks_for_and_is_never_started_again() {
    let mut rig = Rig::new(&[ALWAYS]);
    rig.up();
    rig.started(0, 0);
    let evict = Event::Evict { message: "too much. ".into(), disrupted: false };
    let effects = rig.state.step(&rig.plan, evict, at(10)).unwrap();
    assert!(effects.contains(&Effect::Stop { slot: 0 }), "{effects:?}");
    let told = Effect::Tell { slot: None, warning: true, reason: "Evicted", message: "too much. ".into() };
    assert!(effects.contains(&told), "{effects:?}");
    assert_eq!(rig.state.next_wake(&rig.plan, at(10)), Some(at(11).boottime_ns));
    assert!(rig.step(Event::Tick, 11).contains(&Effect::Kill { slot: 0 }));
    let again = Event::Evict { message: "more".into(), disrupted: true };
    assert_eq!(rig.state.step(&rig.plan, again, at(11)), Err(Refused::Stale));
    rig.step(Event::Exited { slot: 0, attempt: 0, exit: exit(137, at(11)) }, 11);
    rig.step(Event::Released, 12);
    assert!(rig.state.is_terminal());
    assert!(!rig.state.verdict.unwrap().disrupted);
}

/// A world that answers effects in any order and in any way.
#[derive(Debug, Default)]
struct World {
    preparing: bool,
    holding: bool,
    releasing: bool,
    pulls: Vec<usize>,
    starting: Vec<(usize, u32)>,
    running: Vec<(usize, u32)>,
    asked: Vec<(usize, u32)>,
}

impl World {
    fn take(&mut self, effects: Vec<Effect>, state: &PodState) {
        for effect in effects {
            match effect {
                Effect::Prepare => {
                    assert!(!self.preparing && !self.holding && !self.releasing, "one sandbox at a time");
                    self.preparing = true;
                }
                Effect::Pull { slot } => {
                    assert!(!self.pulls.contains(&slot), "one pull of an image at a time");
                    self.pulls.push(slot);
                }
                Effect::Start { slot, attempt } => {
                    assert!(self.holding, "a container starts in a sandbox");
                    assert!(!state.deleting && state.verdict.is_none(), "nothing starts in a pod that ends");
                    assert!(!self.running.iter().chain(&self.starting).any(|(s, _)| *s == slot), "never twice at once");
                    assert!(!self.asked.contains(&(slot, attempt)), "an attempt is made once");
                    self.asked.push((slot, attempt));
                    self.starting.push((slot, attempt));
                }
                Effect::Stop { slot } | Effect::Kill { slot } => {
                    assert!(self.running.iter().any(|(s, _)| *s == slot), "only what runs is stopped");
                }
                Effect::Release => {
                    assert!(!self.preparing && !self.releasing, "released once, and not while it is made");
                    self.releasing = true;
                }
                Effect::Tell { .. } => {}
            }
        }
    }

    /// The next thing that happens, chosen by `dice`.
    fn answer(&mut self, dice: u8, code: i32, now: Now) -> Option<Event> {
        let pick = |list_len: usize| usize::from(dice >> 4) % list_len;
        if self.releasing && dice.is_multiple_of(2) {
            self.releasing = false;
            self.holding = false;
            self.starting.clear();
            self.running.clear();
            return Some(Event::Released);
        }
        match dice % 6 {
            0 | 1 if self.preparing => {
                self.preparing = false;
                if code == 9 {
                    return Some(Event::SandboxFailed { message: "no".into() });
                }
                self.holding = true;
                Some(Event::SandboxReady { ip: None })
            }
            2 if !self.pulls.is_empty() => {
                let slot = self.pulls.swap_remove(pick(self.pulls.len()));
                Some(if code == 8 {
                    Event::ImageFailed {
                        slot,
                        reference: "image:1".into(),
                        reason: "ErrImagePull".into(),
                        message: "no".into(),
                        retry_after: None,
                    }
                } else {
                    Event::ImageReady { slot, facts: facts() }
                })
            }
            3 if !self.starting.is_empty() => {
                let (slot, attempt) = self.starting.swap_remove(pick(self.starting.len()));
                if code == 7 {
                    let failure = StartFailure::Run { code: 127, message: "no".into() };
                    return Some(Event::StartFailed { slot, attempt, failure });
                }
                self.running.push((slot, attempt));
                Some(Event::Started { slot, attempt, wall_ns: now.wall_ns })
            }
            4 if !self.running.is_empty() => {
                let (slot, attempt) = self.running.swap_remove(pick(self.running.len()));
                Some(Event::Exited { slot, attempt, exit: exit(code % 3, now) })
            }
            5 if code == 5 && dice > 150 => Some(Event::Renew { slot: pick(3) }),
            5 if code == 6 && dice > 200 => Some(Event::Evict { message: "m".into(), disrupted: dice > 230 }),
            5 if self.holding && !self.releasing && dice > 240 => {
                self.starting.clear();
                self.running.clear();
                Some(Event::Lost)
            }
            _ => None,
        }
    }
}

fn any_slots() -> impl Strategy<Value = Vec<(Role, Restart)>> {
    let restart = prop_oneof![Just(Restart::Always), Just(Restart::OnFailure), Just(Restart::Never)];
    let init = prop_oneof![Just(INIT), Just(SIDECAR), Just((Role::Init, Restart::Never))];
    (prop::collection::vec(init, 0..3), prop::collection::vec(restart.prop_map(|r| (Role::Main, r)), 1..3)).prop_map(
        |(mut init, main)| {
            init.extend(main);
            init
        },
    )
}

proptest! {
    #[test]
    fn no_history_breaks_the_rules_and_every_deleted_pod_is_released(
        slots in any_slots(),
        history in prop::collection::vec((any::<u8>(), 0_i32..10, 0_u64..20), 0..120),
    ) {
        let mut rig = Rig::new(&slots);
        let mut world = World::default();
        let mut seconds = 0;
        let begin = rig.step(Event::Begin, 0);
        world.take(begin, &rig.state);
        for (dice, code, pause) in history {
            seconds += pause;
            let event = world.answer(dice, code, at(seconds)).unwrap_or(Event::Tick);
            let before = rig.state.clone();
            match rig.state.step(&rig.plan, event, at(seconds)) {
                Ok(effects) => world.take(effects, &rig.state),
                Err(_) => prop_assert_eq!(&rig.state, &before),
            }
            for (old, new) in before.containers.iter().zip(&rig.state.containers) {
                prop_assert!(new.attempt >= old.attempt, "attempts only grow");
            }
            if let Some(wake) = rig.state.next_wake(&rig.plan, at(seconds)) {
                prop_assert!(wake > seconds * SECOND, "no busy loop");
            }
        }
        if let Ok(effects) = rig.state.step(&rig.plan, Event::Delete { grace_seconds: 5 }, at(seconds)) {
            world.take(effects, &rig.state);
        }
        for dice in (0..=u8::MAX).cycle().take(4_000) {
            if rig.state.is_terminal() {
                break;
            }
            seconds += 1;
            let event = world.answer(dice, 1, at(seconds)).unwrap_or(Event::Tick);
            if let Ok(effects) = rig.state.step(&rig.plan, event, at(seconds)) {
                world.take(effects, &rig.state);
            }
        }
        prop_assert!(rig.state.is_terminal(), "{:?} {:?}", rig.state, world);
        prop_assert!(!world.holding && !world.preparing && !world.releasing);
    }
}
