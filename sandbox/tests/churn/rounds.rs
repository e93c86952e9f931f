//! One kill after another.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandbox::sys::failpoint::{DIE, HOLD, Point};
use tokio::task::JoinSet;

use super::agent::{Agent, Outcome};
use super::awake;
use super::oracle::Pod;
use super::place::{self, Place, kill_keeper, kill_keepers, kill_shim};
use super::plan::Plan;
use super::random::Random;
use super::words::{Answer, Question, SetUp};
use super::work::{LAYER, Maker, live, settle};
use crate::support::{image, shim};

/// Until a sandbox must be whole or gone.
const LIMIT: Duration = Duration::from_secs(10);
/// The same on a machine with several times as much to do as it has processors.
const CROWDED_LIMIT: Duration = Duration::from_secs(60);
/// Sandboxes that a round makes, and that it goes on with from rounds before.
const NEW: usize = 3;
const OLD: usize = 3;

/// Begins a round in the log.
const ROUND: &str = "== round ";

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// Who reaches the step.
    Itself,
    Agent,
    Keeper,
    Shim,
}

/// What one round does.
#[derive(Debug, Clone, Copy)]
struct Order {
    point: Point,
    nth: u32,
    victim: Victim,
}

/// A backend of its own, and what is known of its sandboxes.
pub struct Rounds {
    pub set_up: SetUp,
    pub plan: Arc<Plan>,
    _directory: tempfile::TempDir,
    pub maker: Arc<Maker>,
    pub agent: Arc<Agent>,
    pods: Vec<Pod>,
    random: Random,
    bag: Vec<Point>,
    /// Each step has been drawn once.
    bags: u32,
    pub slowest: Duration,
    pub unreached: u32,
}

impl Rounds {
    pub async fn begin(seed: u64) -> Self {
        Self::begin_in(seed, |set_up| Agent::start(set_up, &log_of(set_up))).await
    }

    /// With another standard error than a log for what the first agent starts, the keeper and its shims too.
    pub async fn begin_with(seed: u64, heard: impl Into<Stdio>) -> Self {
        Self::begin_in(seed, |set_up| Agent::start_with(set_up, heard)).await
    }

    async fn begin_in(seed: u64, start: impl FnOnce(&SetUp) -> Agent) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::Builder::new().prefix("nodeless-churn-").tempdir().unwrap();
        let set_up = SetUp {
            run_dir: directory.path().join("run"),
            program: shim::churn_agent().unwrap(),
            // Several may be at work in one process.
            cgroup_parent: format!("nodeless-churn-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)),
            layer_dirs: vec![image::directory()],
            pool_size: 2,
            ahead_dir: Some(directory.path().join("ahead")),
        };
        std::fs::create_dir_all(&set_up.run_dir).unwrap();
        let plan = Arc::new(Plan::create(&set_up.run_dir));
        let maker = Arc::new(Maker::new(directory.path().to_owned()));
        let agent = Arc::new(start(&set_up));
        assert_eq!(agent.opened().await, Outcome::Answered(Answer::Done));
        Self {
            set_up,
            plan,
            _directory: directory,
            maker,
            agent,
            pods: Vec::new(),
            random: Random::new(seed),
            bag: Vec::new(),
            bags: 0,
            slowest: Duration::ZERO,
            unreached: 0,
        }
    }

    /// What agents, keepers and shims have said in this round, and the test itself.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(log_of(&self.set_up)).unwrap_or_default();
        let begin = text.rfind(ROUND).unwrap_or(0);
        format!("{}sandboxes now: {:?}", &text[begin..], Place::look(&self.set_up).sandboxes)
    }

    fn draw(&mut self) -> Order {
        if self.bag.is_empty() {
            self.bag = Point::ALL.to_vec();
            self.random.shuffle(&mut self.bag);
            self.bags += 1;
        }
        let point = self.bag.pop().unwrap();
        let others: &[Victim] = match party(point) {
            "agent" => &[Victim::Keeper, Victim::Shim],
            "keeper" | "child" => &[Victim::Agent],
            "shim" => &[Victim::Agent, Victim::Keeper],
            _ => &[Victim::Agent, Victim::Keeper, Victim::Shim],
        };
        // Each step kills whoever reaches it, once; then chance has its way.
        let itself = self.bags == 1 || self.random.chance(60);
        let victim = if itself { Victim::Itself } else { others[self.random.below(others.len())] };
        let nth = if self.bags == 1 { 1 } else { 1 + self.random.below(3) as u32 };
        Order { point, nth, victim }
    }

    /// One round; false when the step was not reached, so that nobody was killed.
    pub async fn round(&mut self, number: u32) -> bool {
        let order = self.draw();
        note(&self.set_up, &format!("{ROUND}{number}: {order:?}"));
        let complaints = self.kill_at(order).await;
        let (since, crowded) = (awake::now(), is_crowded());
        let reached = self.plan.disarm().await;
        let slot = self.plan.slot();
        if !reached {
            self.unreached += 1;
            // A recovery's kill is the round's doing, not the step's.
            if !is_recovery(order.point) && !is_before_work(order.point) {
                assert_eq!(
                    complaints,
                    Vec::<String>::new(),
                    "round {number}: {order:?} was not reached\n{}",
                    self.log()
                );
            }
        }
        self.mark_lost(order, slot.as_deref());
        if !self.agent.is_alive() || self.random.chance(50) {
            self.agent.kill().await;
            self.reopen(number, order).await;
        }
        let settled = awake::timeout(CROWDED_LIMIT * 2, self.settle_all()).await;
        let faults = settled.unwrap_or_else(|| vec!["it does not settle".to_owned()]);
        let faults = if faults.is_empty() { self.clean_by(since + CROWDED_LIMIT).await } else { faults };
        let took = awake::now() - since;
        // The machine may have become crowded meanwhile.
        let limit = if crowded || is_crowded() { CROWDED_LIMIT } else { LIMIT };
        assert!(
            faults.is_empty() && took < limit,
            "round {number}, {order:?} reached: {reached}, slot {slot:?}, after {took:?}: {faults:#?}\ncomplaints: {complaints:#?}\n{}",
            self.log()
        );
        self.slowest = self.slowest.max(took);
        reached
    }

    /// Works with several sandboxes while the step is armed, and does what the step wants on top.
    async fn kill_at(&mut self, order: Order) -> Vec<String> {
        let Order { point, nth, victim } = order;
        let action = if victim == Victim::Itself { DIE } else { HOLD };
        let over = Arc::new(AtomicBool::new(false));
        let current = Arc::new(Mutex::new(Arc::clone(&self.agent)));
        let watcher = tokio::spawn(kill_other(
            victim,
            self.set_up.clone(),
            Arc::clone(&self.plan),
            Arc::clone(&current),
            Arc::clone(&over),
        ));
        let mut complaints = Vec::new();
        if point == Point::AheadMoved {
            // What waits has a directory.
            self.pool_is_full().await;
        }
        if point == Point::WarmAdopted {
            complaints = self.work(true).await;
            self.pool_is_full().await;
            self.agent.kill().await;
        } else if is_recovery(point) {
            let pause = Duration::from_millis(self.random.below(60) as u64);
            let agent = Arc::clone(&self.agent);
            let killer = tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                agent.kill().await;
            });
            complaints = self.work(true).await;
            killer.await.unwrap();
            self.kill_warm_shim();
        }
        if is_recovery(point) {
            self.plan.arm(point, nth, action);
            self.agent = Arc::new(Agent::start(&self.set_up, &log_of(&self.set_up)));
            *current.lock().unwrap() = Arc::clone(&self.agent);
            if let Outcome::Refused(why) = self.agent.opened().await {
                complaints.push(why);
            }
        } else {
            if is_before_work(point) {
                // The agent's side keeps clones of its own.
                self.agent.must(Question::Release(vec![LAYER.to_owned()])).await;
                kill_keeper(&self.set_up);
            }
            self.plan.arm(point, nth, action);
            // Layers that are let go of take the roots with them that were made ahead.
            complaints.extend(self.work(point != Point::AheadMoved).await);
        }
        over.store(true, Ordering::Relaxed);
        watcher.await.unwrap();
        complaints
    }

    /// `release`: has the layer be let go of meanwhile.
    async fn work(&mut self, release: bool) -> Vec<String> {
        let mut going = JoinSet::new();
        let old = self.pods.len().min(OLD);
        let mut at_work: Vec<Pod> = self.pods.drain(..old).collect();
        at_work.extend((0..NEW).map(|_| self.maker.pod()));
        for pod in at_work {
            let (agent, maker) = (Arc::clone(&self.agent), Arc::clone(&self.maker));
            going.spawn(live(agent, maker, pod, self.random.fork()));
        }
        let agent = Arc::clone(&self.agent);
        let release = tokio::spawn(async move {
            if release {
                agent.ask(Question::Release(vec![LAYER.to_owned()])).await;
            }
        });
        let mut complaints = Vec::new();
        while let Some(done) = going.join_next().await {
            let (pod, refused) = done.unwrap();
            complaints.extend(refused);
            self.pods.push(pod);
        }
        release.await.unwrap();
        complaints
    }

    /// This kernel mounts no overlay ahead: sandboxes were asked to, and none has.
    pub fn roots_are_impossible(&self) -> bool {
        self.plan.passed(Point::AheadAnswered) == 0 && self.plan.passed(Point::AheadAssembled) == 0
    }

    /// Waits until something is warm, however slow the machine is: all but the one that was begun last.
    async fn pool_is_full(&self) {
        let deadline = awake::now() + CROWDED_LIMIT;
        while Place::look(&self.set_up).pool.len() < self.set_up.pool_size && awake::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Shims that nobody has begun to use die too.
    fn kill_warm_shim(&mut self) {
        let pool: Vec<String> = Place::look(&self.set_up).pool.into_iter().collect();
        if !pool.is_empty() {
            kill_shim(&self.set_up, &pool[self.random.below(pool.len())]);
        }
    }

    /// Says of the sandbox in this slot that its shim, or a stub of it, was killed.
    fn mark_lost(&mut self, order: Order, slot: Option<&str>) {
        let place = Place::look(&self.set_up);
        let by_slot: BTreeMap<&str, &str> =
            place.sandboxes.iter().filter_map(|(id, slot)| Some((slot.as_deref()?, id.as_str()))).collect();
        let Some(id) = slot.and_then(|slot| by_slot.get(slot)) else { return };
        let Some(pod) = self.pods.iter_mut().find(|pod| pod.id.0 == *id) else { return };
        match (party(order.point), order.victim) {
            ("shim", Victim::Itself) | (_, Victim::Shim) => pod.lost = true,
            ("stub", Victim::Itself) => pod.stub_killed = true,
            _ => {}
        }
    }

    async fn reopen(&mut self, number: u32, order: Order) {
        self.agent = Arc::new(Agent::start(&self.set_up, &log_of(&self.set_up)));
        let opened = self.agent.opened().await;
        assert_eq!(opened, Outcome::Answered(Answer::Done), "round {number}, {order:?}: no opening\n{}", self.log());
    }

    async fn settle_all(&mut self) -> Vec<String> {
        let mut going = JoinSet::new();
        for (index, pod) in self.pods.drain(..).enumerate() {
            let (agent, maker) = (Arc::clone(&self.agent), Arc::clone(&self.maker));
            let keep = index < OLD && self.random.chance(50);
            going.spawn(async move {
                let (id, detail) =
                    (pod.id.clone(), format!("{:?} {:?} lost {}", pod.prepared, pod.destroyed, pod.lost));
                settle(agent, maker, pod, keep).await.map_err(|why| format!("{id} ({detail}): {why}"))
            });
        }
        let mut faults = Vec::new();
        while let Some(fate) = going.join_next().await {
            match fate.unwrap() {
                Ok(Some(pod)) => self.pods.push(pod),
                Ok(None) => {}
                Err(fault) => faults.push(fault),
            }
        }
        // A set gives them back as they end; the next round's chance must not depend on that.
        self.pods.sort_by(|a, b| a.id.cmp(&b.id));
        faults
    }

    /// What does not fit on the host, once it has had its time: exactly the kept sandboxes are there, and warm ones.
    async fn clean_by(&self, deadline: Duration) -> Vec<String> {
        loop {
            let place = Place::look(&self.set_up);
            let mut faults = place.faults();
            let kept: Vec<&str> = self.pods.iter().map(|pod| pod.id.0.as_str()).collect();
            let there: Vec<&str> = place.sandboxes.keys().map(String::as_str).collect();
            if there.len() != kept.len() || !there.iter().all(|id| kept.contains(id)) {
                faults.push(format!("sandboxes {there:?} are there, {kept:?} must be"));
            }
            if faults.is_empty() || awake::now() > deadline {
                return faults;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Everything goes: nothing may be left.
    pub async fn end(self) {
        self.agent.must(Question::Reset).await;
        // Who has lost a parent is collected by the host's first process, in its own time.
        let deadline = awake::now() + CROWDED_LIMIT;
        loop {
            let place = Place::look(&self.set_up);
            if place.is_empty() {
                break;
            }
            assert!(awake::now() < deadline, "{place:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.agent.kill().await;
        let groups = place::group_parents(&self.set_up);
        assert!(groups.is_empty(), "{groups:?}");
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        // Also after a failed assertion: what was made is killed, then removed; the agent first, or it would make more.
        if self.agent.is_alive()
            && let Some(pid) = i32::try_from(self.agent.pid).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        kill_keepers(&self.set_up);
        if let Ok(layout) = sandbox::cgroup::Layout::detect()
            && !place::group_parents(&self.set_up).is_empty()
            && let Ok(tree) = sandbox::cgroup::Tree::open(&layout, &self.set_up.cgroup_parent)
        {
            for pod in tree.pods().unwrap_or_default() {
                let _ = tree.remove_pod(&pod, Duration::from_secs(5));
            }
            // The keeper is in some of them until it is gone.
            let deadline = awake::now() + CROWDED_LIMIT;
            while let Ok(all) = sandbox::cgroup::Layout::detect_all()
                && sandbox::cgroup::Tree::remove(&all, &self.set_up.cgroup_parent).is_err()
                && awake::now() < deadline
            {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// When somebody holds still at the step, kills another and lets them go on.
async fn kill_other(
    victim: Victim,
    set_up: SetUp,
    plan: Arc<Plan>,
    agent: Arc<Mutex<Arc<Agent>>>,
    over: Arc<AtomicBool>,
) {
    if victim == Victim::Itself {
        return;
    }
    while !plan.is_held() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    match victim {
        Victim::Itself => {}
        Victim::Agent => {
            let agent = Arc::clone(&agent.lock().unwrap());
            agent.kill().await;
        }
        Victim::Keeper => kill_keeper(&set_up),
        Victim::Shim => {
            let slot = plan.slot().or_else(|| Place::look(&set_up).sandboxes.into_values().flatten().next());
            if let Some(slot) = slot {
                note(&set_up, &format!("{slot}: its shim is killed: {}", kill_shim(&set_up, &slot)));
                plan.blame(&slot);
            }
        }
    }
    plan.release();
}

/// Where agents, keepers and shims say what they have to say.
fn log_of(set_up: &SetUp) -> PathBuf {
    set_up.run_dir.with_file_name("log")
}

/// Writes among it.
fn note(set_up: &SetUp, text: &str) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(log_of(set_up)).unwrap();
    writeln!(file, "{text}").unwrap();
}

/// Others keep the processors busy.
pub fn is_crowded() -> bool {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    load > 2.0 * std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}

fn party(point: Point) -> &'static str {
    point.name().split('.').next().unwrap_or_default()
}

/// Passed only by an agent that starts.
fn is_recovery(point: Point) -> bool {
    use Point::{LockTaken, OrphanFound, Recovered, RecoveryBegun, SandboxesRead, WarmAdopted};
    matches!(point, LockTaken | OrphanFound | Recovered | RecoveryBegun | SandboxesRead | WarmAdopted)
}

/// Passed only by a keeper that starts, or that has no layer yet.
fn is_before_work(point: Point) -> bool {
    use Point::{KeeperIsolated, KeeperLocked, KeeperNamed, KeeperStarted};
    use Point::{LayerAttached, LayerMounted, LayerOpened, LayersCloned};
    matches!(point, KeeperIsolated | KeeperLocked | KeeperNamed | KeeperStarted)
        || matches!(point, LayerAttached | LayerMounted | LayerOpened | LayersCloned)
}

/// A number from the environment.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}
