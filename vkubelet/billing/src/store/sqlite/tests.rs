use agent_api::usage::{ChainError, Kind};
use tempfile::TempDir;

use super::*;
use crate::bill::{State, bill};
use crate::price::Plan;
use crate::testing::Chain;

fn store() -> (TempDir, SqliteStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("ledger.db")).unwrap();
    (dir, store)
}

fn life(chain: &mut Chain, pod: &str, start: u64) -> Vec<UsageRecord> {
    vec![
        chain.add(Kind::Start, pod, start, start),
        chain.add(Kind::Tick, pod, start, start + 10),
        chain.add(Kind::Stop, pod, start, start + 15),
    ]
}

#[tokio::test]
async fn records_become_intervals_and_the_cursor_moves_with_them() {
    let (_dir, store) = store();
    assert_eq!(store.cursor("h", "b").await.unwrap(), Cursor { seq: 0, hash: GENESIS.into() });
    let mut chain = Chain::new("h", "b");
    let records = life(&mut chain, "web", 100);
    let at = store.ingest("h", "b", records[..2].to_vec()).await.unwrap();
    assert_eq!(at, Cursor { seq: 2, hash: records[1].hash.clone() });
    let pod = store.pod("uid-web").await.unwrap().unwrap();
    assert_eq!((pod.intervals[0].start_ns, pod.intervals[0].proven_ns, pod.intervals[0].ended), (100, 110, false));
    store.ingest("h", "b", records[2..].to_vec()).await.unwrap();
    let pod = store.pod("uid-web").await.unwrap().unwrap();
    assert_eq!((pod.intervals[0].proven_ns, pod.intervals[0].ended, pod.intervals[0].used.cpu_ns), (115, true, 15));
    assert_eq!(bill(&pod, &Plan::default()).unwrap().duration_ns, 15);
    let report = store.verify().await.unwrap();
    assert_eq!((report.boots, report.records, report.intervals, report.faults), (1, 3, 1, Vec::new()));
}

#[tokio::test]
async fn delivering_again_changes_nothing() {
    let (_dir, store) = store();
    let records = life(&mut Chain::new("h", "b"), "web", 100);
    let first = store.ingest("h", "b", records.clone()).await.unwrap();
    let before = store.pod("uid-web").await.unwrap();
    for from in 0..3 {
        assert_eq!(store.ingest("h", "b", records[from..].to_vec()).await.unwrap(), first);
    }
    assert_eq!(store.pod("uid-web").await.unwrap(), before);
    assert_eq!(store.verify().await.unwrap().records, 3);
}

#[tokio::test]
async fn what_does_not_continue_the_chain_is_refused_whole() {
    let (_dir, store) = store();
    let records = life(&mut Chain::new("h", "b"), "web", 100);
    let gap = store.ingest("h", "b", vec![records[0].clone(), records[2].clone()]).await.unwrap_err();
    assert!(matches!(gap, IngestError::Chain(ChainError::Gap { seq: 3, expected_after: 1, .. })));
    assert_eq!(store.cursor("h", "b").await.unwrap().seq, 0, "nothing of a refused batch is stored");
    assert_eq!(store.pod("uid-web").await.unwrap(), None);

    let mut altered = records.clone();
    altered[1].boottime_ns += 1;
    assert!(matches!(
        store.ingest("h", "b", altered).await.unwrap_err(),
        IngestError::Chain(ChainError::Altered { seq: 2, .. })
    ));
    assert!(matches!(store.ingest("h2", "b", records.clone()).await.unwrap_err(), IngestError::Foreign { .. }));

    store.ingest("h", "b", records).await.unwrap();
    let other = life(&mut Chain::new("h", "b"), "other", 100);
    let conflict = store.ingest("h", "b", other).await.unwrap_err();
    assert!(matches!(&conflict, IngestError::Conflict { seq: 1, .. }));
    assert!(!conflict.is_retryable());
}

#[tokio::test]
async fn records_that_cannot_be_true_are_refused() {
    for (what, change) in [
        (
            "after its end",
            (|chain: &mut Chain| chain.add(Kind::Tick, "web", 100, 200)) as fn(&mut Chain) -> UsageRecord,
        ),
        ("back in time", |chain| chain.add(Kind::Stop, "web", 100, 101)),
        ("another size", |chain| chain.add_changed(Kind::Stop, "web", 100, 115, |record| record.held.milli_cpu = 1)),
        ("another pod", |chain| chain.add_changed(Kind::Stop, "web", 100, 115, |record| record.pod_uid = "x".into())),
        ("another name", |chain| {
            chain.add_changed(Kind::Start, "web", 300, 300, |record| record.pod_name = "x".into())
        }),
        ("too large", |chain| {
            chain.add_changed(Kind::Start, "big", 300, 300, |record| record.held.memory_bytes = u64::MAX)
        }),
    ] {
        let (_dir, store) = store();
        let mut chain = Chain::new("h", "b");
        let mut records = life(&mut chain, "web", 100);
        records.push(change(&mut chain));
        assert!(
            matches!(store.ingest("h", "b", records).await, Err(IngestError::Contradiction { seq: 4, .. })),
            "{what}"
        );
    }
}

#[tokio::test]
async fn a_release_reported_twice_counts_once() {
    let (_dir, store) = store();
    let mut chain = Chain::new("h", "b");
    let mut records = life(&mut chain, "web", 100);
    records.push(chain.add(Kind::Stop, "web", 100, 115));
    store.ingest("h", "b", records).await.unwrap();
    assert_eq!(store.verify().await.unwrap().faults, Vec::<String>::new());
    assert_eq!(store.pod("uid-web").await.unwrap().unwrap().intervals[0].proven_ns, 115);
}

#[tokio::test]
async fn a_new_boot_makes_the_old_one_final() {
    let (_dir, store) = store();
    let mut chain = Chain::new("h", "b1");
    store
        .ingest("h", "b1", vec![chain.add(Kind::Start, "web", 100, 100), chain.add(Kind::Tick, "web", 100, 130)])
        .await
        .unwrap();
    store.boot_began("h", "b1").await.unwrap();
    let open = bill(&store.pod("uid-web").await.unwrap().unwrap(), &Plan::default()).unwrap();
    assert_eq!((open.state, open.duration_ns), (State::Open, 30));
    store.boot_began("h", "b2").await.unwrap();
    store.boot_began("other", "b9").await.unwrap();
    let closed = bill(&store.pod("uid-web").await.unwrap().unwrap(), &Plan::default()).unwrap();
    assert_eq!((closed.state, closed.duration_ns), (State::Final, 30));
}

#[tokio::test]
async fn pages_are_stable_while_pods_come() {
    let (_dir, store) = store();
    let mut chain = Chain::new("h", "b");
    for n in 0..5 {
        store.ingest("h", "b", life(&mut chain, &format!("p{n}"), 100 * n)).await.unwrap();
    }
    let mut query = PodQuery { limit: 2, ..PodQuery::default() };
    let mut names = Vec::new();
    loop {
        let page = store.pods(&query).await.unwrap();
        names.extend(page.pods.into_iter().map(|pod| pod.name));
        let late = format!("late{}", names.len());
        store.ingest("h", "b", life(&mut chain, &late, 10_000)).await.unwrap();
        let Some(next) = page.next.filter(|_| names.len() < 7) else {
            break;
        };
        query.after = next;
    }
    assert_eq!(names, ["p0", "p1", "p2", "p3", "p4", "late2", "late4", "late6"]);
}

#[tokio::test]
async fn filters_choose_pods_that_held_something_in_the_window() {
    const WALL: u64 = 1_700_000_000_000_000_000;
    let (_dir, store) = store();
    let mut chain = Chain::new("h", "b");
    store.ingest("h", "b", life(&mut chain, "ended", 100)).await.unwrap();
    store.ingest("h", "b", vec![chain.add(Kind::Start, "open", 200, 200)]).await.unwrap();
    let find = |query: PodQuery| {
        let store = store.clone();
        async move {
            store
                .pods(&PodQuery { limit: 10, ..query })
                .await
                .unwrap()
                .pods
                .into_iter()
                .map(|pod| pod.name)
                .collect::<Vec<_>>()
        }
    };
    let window = |from, to| PodQuery { from_ns: Some(WALL + from), to_ns: Some(WALL + to), ..PodQuery::default() };
    assert_eq!(find(window(0, 100)).await, Vec::<String>::new());
    assert_eq!(find(window(100, 101)).await, ["ended"]);
    assert_eq!(find(window(114, 200)).await, ["ended"]);
    assert_eq!(find(window(115, 200)).await, Vec::<String>::new());
    assert_eq!(find(window(5_000, 6_000)).await, ["open"], "an open interval goes on");
    assert_eq!(find(PodQuery { pod: Some("ended".into()), ..PodQuery::default() }).await, ["ended"]);
    assert_eq!(find(PodQuery { pod: Some("uid-open".into()), ..PodQuery::default() }).await, ["open"]);
    assert_eq!(
        find(PodQuery { namespace: Some("kube-system".into()), ..PodQuery::default() }).await,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn verify_finds_what_was_tampered_with() {
    let tampering = [
        "UPDATE records SET boottime_ns = boottime_ns + 1 WHERE seq = 2",
        "UPDATE records SET hash = zeroblob(32) WHERE seq = 3",
        "DELETE FROM records WHERE seq = 2",
        "DELETE FROM records WHERE seq = 3",
        "UPDATE records SET kind = 'tick' WHERE kind = 'stop'",
        "UPDATE intervals SET milli_cpu = 1",
        "UPDATE intervals SET proven_boottime_ns = 1",
        "UPDATE intervals SET is_ended = 0",
        "UPDATE pods SET name = 'other'",
        "UPDATE boots SET last_seq = 2",
        "UPDATE boots SET host = 'other'",
        "UPDATE intervals SET images = '[]'",
    ];
    for sql in tampering {
        let (dir, store) = store();
        store.ingest("h", "b", life(&mut Chain::new("h", "b"), "web", 100)).await.unwrap();
        assert!(store.verify().await.unwrap().faults.is_empty());
        let connection = Connection::open(dir.path().join("ledger.db")).unwrap();
        assert!(connection.execute(sql, []).unwrap() > 0, "{sql}");
        assert!(!store.verify().await.unwrap().faults.is_empty(), "{sql}");
    }
}

#[tokio::test]
async fn a_ledger_survives_reopening_and_refuses_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let records = life(&mut Chain::new("h", "b"), "web", 100);
    SqliteStore::open(&path).unwrap().ingest("h", "b", records.clone()).await.unwrap();
    assert_eq!(SqliteStore::open(&path).unwrap().cursor("h", "b").await.unwrap().hash, records[2].hash);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Newer { found: 99, .. })));
}
