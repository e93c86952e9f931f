use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent_api::usage::{GENESIS, Held, Kind, SCHEMA, UsageRecord, Used};
use async_trait::async_trait;
use billing::bill::State;
use billing::price::Plan;
use billing::store::sqlite::SqliteStore;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tempfile::TempDir;

use super::*;

fn chain(boot_id: &str, count: u64) -> Vec<UsageRecord> {
    let mut hash = GENESIS.to_owned();
    let record = |seq: u64| UsageRecord {
        schema: SCHEMA,
        host: "h".into(),
        boot_id: boot_id.into(),
        seq,
        kind: if seq == 1 { Kind::Start } else { Kind::Tick },
        pod_uid: "u".into(),
        pod_namespace: "default".into(),
        pod_name: "web".into(),
        sandbox_id: format!("sb-{boot_id}"),
        start_boottime_ns: 10,
        start_wall_ns: 1_000_010,
        boottime_ns: seq * 10,
        wall_ns: 1_000_000 + seq * 10,
        held: Held::default(),
        used: Used::default(),
        sandbox_kind: "namespace".into(),
        price_class: "on-demand".into(),
        images: Vec::new(),
        prev_hash: String::new(),
        hash: String::new(),
    };
    let sealed = (1..=count).map(|seq| {
        let sealed = record(seq).seal(&hash);
        hash.clone_from(&sealed.hash);
        sealed
    });
    sealed.collect()
}

/// A host that holds chains, gives each batch twice in overlapping pieces, and breaks its stream now and then.
#[derive(Debug, Default)]
struct FakeHost {
    boots: Vec<(String, Vec<UsageRecord>)>,
    acked: Mutex<Vec<(String, u64)>>,
    /// Streams break after this many batches, so many times.
    breaks: AtomicUsize,
    lost: bool,
    tamper: Option<fn(&mut Vec<Bytes>)>,
}

#[async_trait]
impl UsageSource for FakeHost {
    async fn boots(&self) -> Result<Vec<Boot>, SourceError> {
        let last = self.boots.len() - 1;
        let boot = |(at, (boot_id, records)): (usize, &(String, Vec<UsageRecord>))| Boot {
            boot_id: boot_id.clone(),
            last_seq: records.len() as u64,
            acked_seq: 0,
            current: at == last,
        };
        Ok(self.boots.iter().enumerate().map(boot).collect())
    }

    async fn records(
        &self,
        boot_id: &str,
        after: u64,
        _follow: bool,
    ) -> Result<BoxStream<'static, Result<Vec<Bytes>, SourceError>>, SourceError> {
        if self.lost {
            return Err(SourceError::Lost("gone".into()));
        }
        let records = &self.boots.iter().find(|(id, _)| id == boot_id).unwrap().1;
        let left: Vec<Bytes> =
            records.iter().skip(usize::try_from(after).unwrap()).map(|record| record.encode().into()).collect();
        let mut batches: Vec<Result<Vec<Bytes>, SourceError>> =
            left.chunks(3).flat_map(|batch| [batch.to_vec(), batch.to_vec()]).map(Ok).collect();
        if let (Some(tamper), Some(Ok(batch))) = (self.tamper, batches.first_mut()) {
            tamper(batch);
        }
        if self.breaks.load(Ordering::SeqCst) > 0 {
            self.breaks.fetch_sub(1, Ordering::SeqCst);
            batches.truncate(1);
            batches.push(Err(SourceError::Unanswered("broken".into())));
        }
        Ok(futures::stream::iter(batches).boxed())
    }

    async fn ack(&self, boot_id: &str, seq: u64) -> Result<(), SourceError> {
        self.acked.lock().unwrap().push((boot_id.to_owned(), seq));
        if seq.is_multiple_of(2) { Err(SourceError::Unanswered("lost ack".into())) } else { Ok(()) }
    }
}

fn store() -> (TempDir, SqliteStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("ledger.db")).unwrap();
    (dir, store)
}

#[tokio::test]
async fn old_boots_come_first_and_everything_arrives_once() {
    let (_dir, store) = store();
    let host = FakeHost {
        boots: vec![("old".into(), chain("old", 8)), ("new".into(), chain("new", 10))],
        breaks: 3.into(),
        ..FakeHost::default()
    };
    let metrics = PullMetrics::default();
    tokio::select! {
        halt = pull("h", &host, &store, &metrics) => panic!("{halt}"),
        done = tokio::time::timeout(Duration::from_secs(20), async {
            while store.cursor("h", "new").await.unwrap().seq < 10 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }) => done.expect("all records arrive"),
    }
    let report = store.verify().await.unwrap();
    assert_eq!((report.records, report.faults), (18, Vec::new()));
    let pod = store.pod("u").await.unwrap().unwrap();
    assert!(pod.intervals.iter().all(|interval| interval.boot_over == (interval.boot_id == "old")));
    let bill = billing::bill::bill(&pod, &Plan::default()).unwrap();
    assert_eq!((bill.duration_ns, bill.state), (70 + 90, State::Open));
    let acked = host.acked.lock().unwrap();
    let first_new = acked.iter().position(|(boot, _)| boot == "new").unwrap();
    assert!(acked[..first_new].iter().any(|(_, seq)| *seq == 8), "the old boot was taken to its end first: {acked:?}");
}

async fn halts(host: FakeHost) -> (Halt, u64) {
    let (_dir, store) = store();
    let halt =
        tokio::time::timeout(Duration::from_secs(10), pull("h", &host, &store, &PullMetrics::default())).await.unwrap();
    let stored = store.cursor("h", "b").await.unwrap().seq;
    (halt, stored)
}

#[tokio::test]
async fn what_is_missing_or_altered_stops_the_host() {
    let with = |tamper: fn(&mut Vec<Bytes>)| FakeHost {
        boots: vec![("b".into(), chain("b", 5))],
        tamper: Some(tamper),
        ..FakeHost::default()
    };
    let (halt, stored) = halts(with(|batch| drop(batch.remove(1)))).await;
    assert!(matches!(halt, Halt::Refused { after: 0, .. }) && stored == 0, "{halt}");
    let (halt, _) = halts(with(|batch| batch.swap(0, 1))).await;
    assert!(matches!(halt, Halt::Refused { .. }), "{halt}");
    let (halt, _) = halts(with(|batch| batch[0] = Bytes::from_static(b"{\"schema\":1}"))).await;
    assert!(matches!(halt, Halt::Decode { .. }), "{halt}");
    let (halt, _) =
        halts(FakeHost { boots: vec![("b".into(), chain("b", 5))], lost: true, ..FakeHost::default() }).await;
    assert!(matches!(halt, Halt::Lost { .. }), "{halt}");
}

#[tokio::test]
async fn a_host_that_forgot_what_was_taken_is_stopped() {
    let (_dir, store) = store();
    store.ingest("h", "b", chain("b", 5)).await.unwrap();
    let host = FakeHost { boots: vec![("b".into(), chain("b", 2))], ..FakeHost::default() };
    let halt = pull("h", &host, &store, &PullMetrics::default()).await;
    assert!(matches!(halt, Halt::Forgotten { stored: 5, held: 2, .. }), "{halt}");
}
