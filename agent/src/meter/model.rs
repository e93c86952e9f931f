//! The meter against an oracle of intervals: random schedules of starts, ticks, stops, crashes and restarts of the agent, and crashes of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use agent_api::usage::{GENESIS, Held, Kind, UsageRecord};
use async_trait::async_trait;
use futures::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::spool::OpenError;

/// Stands still until it is moved.
#[derive(Debug, Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl Clock for Hand {
    fn now(&self) -> Instant {
        let now = self.0.load(Ordering::SeqCst);
        Instant { boottime_ns: now, wall_ns: 1_700_000_000_000_000_000 + now }
    }
}

/// Each sandbox uses one core fully.
#[derive(Debug, Clone)]
struct OneCore(Hand);

#[async_trait]
impl UsedProvider for OneCore {
    async fn used(&self, _sandbox_id: &str) -> Option<UsedNow> {
        Some(UsedNow { cpu_ns: self.0.now().boottime_ns, memory_bytes: 1 << 20, ..UsedNow::default() })
    }
}

fn interval(sandbox_id: &str) -> Interval {
    Interval {
        pod_uid: format!("uid-{sandbox_id}"),
        pod_namespace: "default".into(),
        pod_name: "web".into(),
        sandbox_id: sandbox_id.into(),
        held: Held { milli_cpu: 100, ..Held::default() },
        sandbox_kind: "namespace".into(),
        price_class: "on-demand".into(),
        images: Vec::new(),
    }
}

fn open(dir: &Path, boot: usize, hand: &Hand) -> Meter {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let spool = SpoolConfig {
            segment_bytes: 32768,
            reserve_segments: 1,
            ..SpoolConfig::new(dir.join("spool"), "h".into(), format!("boot{boot}"))
        };
        match Meter::open_with(spool, Duration::from_secs(10), Arc::new(hand.clone()), Arc::new(OneCore(hand.clone())))
        {
            // The writer of the meter before ends a moment after it.
            Err(MeterError::OpenSpool(OpenError::InUse { .. })) if std::time::Instant::now() < deadline => {
                std::thread::yield_now()
            }
            other => return other.unwrap(),
        }
    }
}

/// What truly happened to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Truth {
    boot: usize,
    start: u64,
    /// The end of what must be billed, to the nanosecond; `None` while it is held.
    end: Option<u64>,
    /// The last instant proven by a record, as the schedule says.
    proven: u64,
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Start,
    Stop(u8),
    Tick,
    /// Another amount is held from now on.
    Resize(u8),
    /// It dies in the middle of that: the record is not there yet.
    CrashInResize(u8),
    /// The agent dies; while it is away these sandboxes end, and their shims wrote down when (or did not).
    AgentCrash {
        ended: Vec<(u8, bool)>,
        away: u64,
    },
    /// It dies in the middle of a start: nothing was held.
    CrashInStart,
    /// It dies in the middle of a stop: it was released.
    CrashInStop(u8),
    HostCrash,
}

fn schedules() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1u64..20_000_000_000).prop_map(Step::Wait),
        4 => Just(Step::Start),
        3 => any::<u8>().prop_map(Step::Stop),
        4 => Just(Step::Tick),
        3 => any::<u8>().prop_map(Step::Resize),
        1 => any::<u8>().prop_map(Step::CrashInResize),
        2 => (prop::collection::vec((any::<u8>(), any::<bool>()), 0..3), 1u64..5_000_000_000)
            .prop_map(|(ended, away)| Step::AgentCrash { ended, away }),
        1 => Just(Step::CrashInStart),
        1 => any::<u8>().prop_map(Step::CrashInStop),
        1 => Just(Step::HostCrash),
    ];
    prop::collection::vec(step, 1..40)
}

struct World {
    dir: tempfile::TempDir,
    hand: Hand,
    boot: usize,
    meter: Option<Meter>,
    truth: BTreeMap<String, Truth>,
    /// Intervals that ended because another amount was held.
    resized: Vec<(String, Truth)>,
    amount: u64,
}

impl World {
    fn new() -> Self {
        let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::default());
        hand.0.store(1_000, Ordering::SeqCst);
        let meter = Some(open(dir.path(), 0, &hand));
        Self { dir, hand, boot: 0, meter, truth: BTreeMap::new(), resized: Vec::new(), amount: 100 }
    }

    fn now(&self) -> u64 {
        self.hand.0.load(Ordering::SeqCst)
    }

    fn wait(&self, ns: u64) {
        self.hand.0.fetch_add(ns, Ordering::SeqCst);
    }

    fn meter(&self) -> &Meter {
        self.meter.as_ref().unwrap()
    }

    fn held(&self) -> Vec<String> {
        self.truth.iter().filter(|(_, truth)| truth.end.is_none()).map(|(id, _)| id.clone()).collect()
    }

    fn pick(&self, choice: u8) -> Option<String> {
        let held = self.held();
        (!held.is_empty()).then(|| held[usize::from(choice) % held.len()].clone())
    }

    fn begin(&mut self) -> (String, Truth) {
        let now = self.now();
        (format!("s{:03}", self.truth.len()), Truth { boot: self.boot, start: now, end: None, proven: now })
    }

    fn end(&mut self, id: &str, at: u64) {
        let truth = self.truth.get_mut(id).unwrap();
        (truth.end, truth.proven) = (Some(at), at);
    }

    fn become_another(&mut self, id: &str, at: u64) {
        let old = self.truth[id];
        self.resized.push((id.to_owned(), Truth { end: Some(at), proven: at, ..old }));
        self.truth.insert(id.to_owned(), Truth { start: at, proven: at, ..old });
    }

    /// A new agent on the same boot finds what still lives.
    async fn restart(&mut self, released: &[Released]) {
        self.meter = None;
        self.meter = Some(open(self.dir.path(), self.boot, &self.hand));
        let live = self.held();
        let adopted = self.meter().adopt(&live, released).await.unwrap();
        let continued: BTreeSet<String> = adopted.continued.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(continued, live.into_iter().collect(), "every live sandbox goes on with its interval");
        for (id, started) in adopted.continued {
            assert_eq!(started.boottime_ns, self.truth[&id].start);
        }
        assert_eq!(adopted.unmetered, Vec::<String>::new());
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Wait(ns) => self.wait(ns),
            Step::Start => {
                let (id, truth) = self.begin();
                assert_eq!(self.meter().start(interval(&id)).await.unwrap().boottime_ns, truth.start);
                self.wait(3);
                assert_eq!(
                    self.meter().start(interval(&id)).await.unwrap().boottime_ns,
                    truth.start,
                    "starting again changes nothing"
                );
                self.truth.insert(id, truth);
            }
            Step::Stop(choice) => {
                let Some(id) = self.pick(choice) else { return };
                let now = self.now();
                assert_eq!(self.meter().stop(&id, None).await.unwrap().boottime_ns, now);
                self.end(&id, now);
                self.wait(5);
                assert_eq!(
                    self.meter().stop(&id, None).await.unwrap().boottime_ns,
                    now,
                    "stopping again changes nothing"
                );
                assert!(matches!(self.meter().start(interval(&id)).await, Err(MeterError::Released { .. })));
            }
            Step::Tick => {
                let (now, held) = (self.now(), self.held());
                assert_eq!(self.meter().tick().await.unwrap(), held.len());
                held.iter().for_each(|id| self.truth.get_mut(id).unwrap().proven = now);
            }
            Step::Resize(choice) => {
                let Some(id) = self.pick(choice) else { return };
                self.wait(1);
                let now = self.now();
                self.amount += 1;
                let held = Held { milli_cpu: self.amount, ..Held::default() };
                assert_eq!(self.meter().resize(&id, held.clone()).await.unwrap().boottime_ns, now);
                self.become_another(&id, now);
                self.wait(3);
                let again = self.meter().resize(&id, held).await.unwrap().boottime_ns;
                assert_eq!(again, now, "the same amount again changes nothing");
            }
            Step::CrashInResize(choice) => {
                let Some(id) = self.pick(choice) else { return };
                self.wait(1);
                let now = self.now();
                self.amount += 1;
                let held = Held { milli_cpu: self.amount, ..Held::default() };
                undone(self.meter().resize(&id, held).now_or_never());
                self.become_another(&id, now);
                self.wait(7);
                self.restart(&[]).await;
            }
            Step::AgentCrash { ended, away } => {
                self.meter = None;
                let mut released = Vec::new();
                for (choice, written_down) in ended {
                    let Some(id) = self.pick(choice) else { break };
                    self.wait(away);
                    let now = self.now();
                    if written_down {
                        released.push(Released { sandbox_id: id.clone(), boottime_ns: now });
                        self.end(&id, now);
                    } else {
                        let proven = self.truth[&id].proven;
                        self.end(&id, proven);
                    }
                }
                self.wait(away);
                self.restart(&released).await;
            }
            Step::CrashInStart => {
                let (id, truth) = self.begin();
                undone(self.meter().start(interval(&id)).now_or_never());
                self.truth.insert(id, Truth { end: Some(truth.start), ..truth });
                self.wait(7);
                self.restart(&[]).await;
            }
            Step::CrashInStop(choice) => {
                let Some(id) = self.pick(choice) else { return };
                let now = self.now();
                undone(self.meter().stop(&id, None).now_or_never());
                self.end(&id, now);
                self.wait(7);
                self.restart(&[]).await;
            }
            Step::HostCrash => {
                self.meter = None;
                for truth in self.truth.values_mut().filter(|truth| truth.end.is_none()) {
                    truth.end = Some(truth.proven);
                }
                self.boot += 1;
                self.hand.0.store(500, Ordering::SeqCst);
                self.restart(&[]).await;
            }
        }
        let live = self.meter().live().await;
        let now = self.now();
        let told: BTreeMap<String, u64> =
            live.intervals.into_iter().map(|live| (live.interval.sandbox_id, live.duration_ns)).collect();
        let expected = self
            .truth
            .iter()
            .filter(|(_, truth)| truth.end.is_none())
            .map(|(id, truth)| (id.clone(), now - truth.start))
            .collect();
        assert_eq!(told, expected, "the live view is right to the nanosecond");
    }

    /// What a reader derives from the records of all boots, against what truly happened.
    async fn check(&self) {
        let mut derived: BTreeMap<(String, u64), (usize, u64, u64, bool)> = BTreeMap::new();
        for boot in self.meter().spool().boots() {
            let number: usize = boot.boot_id.trim_start_matches("boot").parse().unwrap();
            let mut reader = self.meter().spool().read(&boot.boot_id, 0, false);
            let mut at = (0, GENESIS.to_owned());
            while let Some(batch) = reader.next().await {
                for bytes in batch.unwrap().records {
                    let record = UsageRecord::decode(&bytes).unwrap();
                    record.check_follows(at.0, &at.1).unwrap();
                    at = (record.seq, record.hash.clone());
                    assert!(
                        record.kind != Kind::Start
                            || !derived.contains_key(&(record.sandbox_id.clone(), record.start_boottime_ns)),
                        "one start for each interval"
                    );
                    let key = (record.sandbox_id.clone(), record.start_boottime_ns);
                    let entry =
                        derived.entry(key).or_insert((number, record.start_boottime_ns, record.boottime_ns, false));
                    assert_eq!((entry.0, entry.1), (number, record.start_boottime_ns), "no second interval, no gap");
                    assert!(entry.2 <= record.boottime_ns, "never back in time");
                    assert!(!entry.3 || entry.2 == record.boottime_ns, "nothing after the release");
                    (entry.2, entry.3) = (record.boottime_ns, entry.3 || record.kind.closes());
                }
            }
        }
        let all = self.truth.iter().chain(self.resized.iter().map(|(id, t)| (id, t)));
        for (id, truth) in all {
            let Some((boot, start, end, _)) = derived.remove(&(id.clone(), truth.start)) else {
                // Only a start that nobody was told of may leave no record.
                assert_eq!(truth.end, Some(truth.start), "{id} is lost");
                continue;
            };
            // Graceful ends, and releases that were written down: exact. Crashes: to the last durable proof, not a nanosecond more.
            assert_eq!((boot, start, end), (truth.boot, truth.start, truth.end.unwrap_or(truth.proven)), "{id}");
        }
        assert!(derived.is_empty(), "nobody is billed who held nothing: {derived:?}");
    }
}

/// What was asked for was hardly ever made durable within one look; where it was, the truth is the same.
fn undone<T: std::fmt::Debug>(done: Option<Result<T, MeterError>>) {
    assert!(done.as_ref().is_none_or(Result::is_ok), "{done:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_records_say_what_truly_happened(steps in schedules()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for step in steps {
                world.step(step).await;
            }
            world.check().await;
        });
    }
}

#[tokio::test]
async fn unknown_sandboxes_are_told_apart() {
    let world = World::new();
    assert!(matches!(world.meter().stop("nobody", None).await, Err(MeterError::Unknown { .. })));
    let adopted = world.meter().adopt(&["stranger".into()], &[]).await.unwrap();
    assert_eq!(adopted.unmetered, ["stranger"]);
}

#[tokio::test]
async fn a_release_told_for_a_time_before_the_last_proof_or_in_the_future_is_put_right() {
    for (told, expected) in [(1, 2_000), (u64::MAX, 3_000)] {
        let mut world = World::new();
        world.meter().start(interval("s")).await.unwrap();
        world.wait(1_000);
        world.meter().tick().await.unwrap();
        world.wait(1_000);
        world.meter = None;
        let meter = open(world.dir.path(), 0, &world.hand);
        let adopted = meter.adopt(&[], &[Released { sandbox_id: "s".into(), boottime_ns: told }]).await.unwrap();
        assert_eq!(adopted.reconciled[0].1.boottime_ns, expected);
    }
}

/// Some sandboxes hang when they are asked.
#[derive(Debug)]
struct Hangs;

#[async_trait]
impl UsedProvider for Hangs {
    async fn used(&self, sandbox_id: &str) -> Option<UsedNow> {
        if sandbox_id == "hangs" {
            std::future::pending().await
        } else {
            Some(UsedNow { cpu_ns: 42, ..UsedNow::default() })
        }
    }
}

#[tokio::test]
async fn a_sandbox_that_hangs_does_not_stop_the_tick() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::default());
    let spool =
        SpoolConfig { reserve_segments: 0, ..SpoolConfig::new(dir.path().join("spool"), "h".into(), "b".into()) };
    let meter = Meter::open_with(spool, Duration::from_secs(10), Arc::new(hand), Arc::new(Hangs)).unwrap();
    for id in ["hangs", "answers"] {
        meter.start(interval(id)).await.unwrap();
    }
    assert_eq!(meter.tick().await.unwrap(), 2);
    let live = meter.live().await;
    assert_eq!(live.intervals.iter().map(|live| live.used.cpu_ns).collect::<Vec<_>>(), [42, 0]);
}
