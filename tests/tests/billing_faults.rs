//! The writer and the reader of usage records are killed (SIGKILL) at random instants, 200 times in all; what the ledger says in
//! the end is compared with an oracle's intervals, nanosecond for nanosecond.
//!
//! Three processes: this one is the oracle and the sandboxes' world; `agent` meters into a real spool and serves it on a Unix
//! socket; `ledger` runs vkubelet's pull into a real SQLite file. Both children are this test program, started again as a role.
//!
//! What the oracle holds against the ledger:
//! * a start and a release that were answered: exact;
//! * a release that was not answered: exact, at the instant that the restarted agent tells (from its spool, or the one that is reported to it);
//! * a start that was not answered: nothing was held, so nothing, or zero nanoseconds;
//! * a crash of the host (another boot id): not before the last answered proof, not after the crash.
//!
//! `NODELESS_FAULT_SEED` repeats a run, `NODELESS_FAULT_KILLS` changes their number.

#[path = "billing_faults/agent_role.rs"]
mod agent_role;
#[path = "billing_faults/child.rs"]
mod child;
#[path = "billing_faults/ledger_role.rs"]
mod ledger_role;
#[path = "billing_faults/oracle.rs"]
mod oracle;

use std::path::Path;
use std::time::{Duration, Instant};

use agent::meter::{Clock, SystemClock};
use billing::bill::{State, bill};
use billing::price::Plan;
use billing::store::sqlite::SqliteStore;
use billing::store::{PodQuery, Store};

use child::Child;
use oracle::Oracle;
use tests::random::Random;

/// The children; not a test of its own.
#[test]
#[ignore = "a role of the fault test, started by it"]
fn role() {
    let Ok(role) = std::env::var("NODELESS_FAULT_ROLE") else { return };
    let dir = std::env::var("NODELESS_FAULT_DIR").expect("the directory is given");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    match role.as_str() {
        "agent" => runtime.block_on(agent_role::run(Path::new(&dir))),
        "ledger" => runtime.block_on(ledger_role::run(Path::new(&dir))),
        other => panic!("no role {other}"),
    }
}

#[test]
fn killing_writer_and_reader_200_times_loses_and_doubles_nothing() {
    let seed = number("NODELESS_FAULT_SEED").unwrap_or_else(|| SystemClock.now().wall_ns);
    let kills = number("NODELESS_FAULT_KILLS").unwrap_or(200);
    eprintln!("NODELESS_FAULT_SEED={seed}");
    let mut random = Random::new(seed);
    let dir = tempfile::tempdir().expect("a directory");
    let mut oracle = Oracle::default();
    let mut ledger = Child::spawn("ledger", dir.path(), "");
    let (mut killed, mut boot, mut host_crashes) = (0, 0, 0);
    while killed < kills {
        let mut agent = Child::spawn("agent", dir.path(), &format!("boot{boot}"));
        oracle.adopt(&mut agent);
        let until = Instant::now() + Duration::from_micros(random.below(120_000));
        let mut ledger_dies =
            (random.below(100) < 80).then(|| Instant::now() + Duration::from_micros(random.below(120_000)));
        while Instant::now() < until {
            oracle.act(&mut agent, &mut random);
            if ledger_dies.is_some_and(|at| at <= Instant::now()) {
                ledger.kill();
                ledger = Child::spawn("ledger", dir.path(), "");
                (killed, ledger_dies) = (killed + 1, None);
            }
        }
        let rest = agent.kill();
        killed += 1;
        oracle.settle(rest);
        if random.below(10) == 0 {
            oracle.host_crashed(SystemClock.now().boottime_ns);
            (boot, host_crashes) = (boot + 1, host_crashes + 1);
        } else {
            oracle.some_end_unattended(&mut random);
        }
    }
    let mut agent = Child::spawn("agent", dir.path(), &format!("boot{boot}"));
    oracle.adopt(&mut agent);
    oracle.one_more(&mut agent);
    oracle.stop_all(&mut agent);
    let last = oracle.last_seq(&mut agent);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let summary = runtime.block_on(compare(dir.path(), &oracle, &format!("boot{boot}"), last));
    agent.kill();
    ledger.kill();
    eprintln!("{killed} kills, {host_crashes} of them host crashes; {summary}");
}

async fn compare(dir: &Path, oracle: &Oracle, boot_id: &str, last: u64) -> String {
    let store = SqliteStore::open(&dir.join("ledger.db")).expect("the ledger opens");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let cursor = store.cursor("h", boot_id).await.expect("a cursor");
        if cursor.seq == last {
            break;
        }
        assert!(Instant::now() < deadline, "the ledger stands at {} of {last}", cursor.seq);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let report = store.verify().await.expect("it can be verified");
    assert_eq!(report.faults, Vec::<String>::new());
    let mut query = PodQuery { limit: 1000, ..PodQuery::default() };
    let (mut found, mut sum) = (Vec::new(), 0_u64);
    loop {
        let page = store.pods(&query).await.expect("pods");
        for pod in page.pods {
            let bill = bill(&pod, &Plan::default()).expect("each pod has an interval");
            assert_eq!(bill.state, State::Final, "{}", pod.name);
            assert_eq!(pod.intervals.len(), 1, "one sandbox, one interval: {}", pod.name);
            let interval = &pod.intervals[0];
            sum += bill.duration_ns;
            found.push((interval.sandbox_id.clone(), interval.boot_id.clone(), interval.start_ns, interval.proven_ns));
        }
        match page.next {
            Some(next) => query.after = next,
            None => break,
        }
    }
    assert_eq!(oracle.compare(&found), sum, "held and billed nanoseconds");
    format!("{} records, {} intervals, {sum} ns billed", report.records, report.intervals)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
