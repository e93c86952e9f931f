use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agent_api::usage::{GENESIS, Held, Kind, SCHEMA, Used};
use proptest::prelude::*;
use tempfile::TempDir;

use super::line::{Header, encode_header, encode_record};
use super::scan::{Position, Tail, scan};
use super::*;

pub(crate) fn record(kind: Kind, sandbox: &str, at: u64) -> UsageRecord {
    UsageRecord {
        schema: SCHEMA,
        host: "h".into(),
        boot_id: "b".into(),
        seq: 0,
        kind,
        pod_uid: "u".into(),
        pod_namespace: "n".into(),
        pod_name: "p".into(),
        sandbox_id: sandbox.into(),
        start_boottime_ns: 1,
        start_wall_ns: 1,
        boottime_ns: if kind == Kind::Start { 1 } else { at.max(1) },
        wall_ns: at,
        held: Held::default(),
        used: Used::default(),
        sandbox_kind: "namespace".into(),
        price_class: "on-demand".into(),
        images: Vec::new(),
        prev_hash: String::new(),
        hash: String::new(),
    }
}

fn closing(n: u64) -> UsageRecord {
    record(Kind::Stop, &format!("s{n}"), n)
}

fn config(dir: &Path, boot_id: &str) -> SpoolConfig {
    SpoolConfig {
        dir: dir.join("spool"),
        host: "h".into(),
        boot_id: boot_id.into(),
        segment_bytes: 8192,
        reserve_segments: 2,
    }
}

fn open(dir: &Path) -> (Spool, Recovered) {
    reopen(|| Spool::open(config(dir, "b")))
}

/// The writer of the spool before ends a moment after its last handle; only then is the lock free.
fn reopen(mut open: impl FnMut() -> Result<(Spool, Recovered), OpenError>) -> (Spool, Recovered) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match open() {
            Err(OpenError::InUse { .. }) if std::time::Instant::now() < deadline => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

async fn all(spool: &Spool, boot_id: &str, after: u64) -> (Vec<UsageRecord>, Option<ReadError>) {
    let mut reader = spool.read(boot_id, after, false);
    let mut records: Vec<UsageRecord> = Vec::new();
    while let Some(batch) = reader.next().await {
        match batch {
            Ok(batch) => records.extend(batch.records.iter().map(|bytes| UsageRecord::decode(bytes).unwrap())),
            Err(error) => return (records, Some(error)),
        }
    }
    (records, None)
}

fn assert_chain(records: &[UsageRecord]) {
    let mut at = (0, GENESIS.to_owned());
    for record in records {
        record.check_follows(at.0, &at.1).unwrap();
        at = (record.seq, record.hash.clone());
    }
}

fn segments(dir: &Path, boot: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir.join("spool/boots"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(&format!("-{boot}")))
        .flat_map(|boot| std::fs::read_dir(boot).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    found.sort();
    found
}

/// Header, then batches of the given sizes; the offsets at which lines end, and the records.
fn segment(batches: &[u64]) -> (Vec<u8>, Vec<usize>, Vec<UsageRecord>) {
    let header =
        Header { schema: 1, host: "h".into(), boot_id: "b".into(), index: 1, first_seq: 1, prev_hash: GENESIS.into() };
    let mut bytes = encode_header(&header);
    let (mut ends, mut records, mut hash, mut seq) = (vec![bytes.len()], Vec::new(), GENESIS.to_owned(), 0);
    for size in batches {
        let first = seq + 1;
        for _ in 0..*size {
            seq += 1;
            let sealed = UsageRecord { seq, ..closing(seq) }.seal(&hash);
            hash.clone_from(&sealed.hash);
            encode_record(first, &sealed, &mut bytes);
            ends.push(bytes.len());
            records.push(sealed);
        }
    }
    (bytes, ends, records)
}

#[test]
fn a_segment_cut_at_any_byte_loses_only_what_was_cut() {
    let (bytes, ends, records) = segment(&[1, 2, 1]);
    for cut in ends[0]..=bytes.len() {
        let mut torn = bytes[..cut].to_vec();
        for zeros in [0, 500] {
            torn.resize(cut + zeros, 0);
            let found = scan(&torn, None, None);
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(found.records, records[..whole], "cut at {cut}");
            let expected = if ends.contains(&cut) { Tail::Clean } else { Tail::Torn { bytes: cut as u64 } };
            assert_eq!(found.tail, expected, "cut at {cut}");
        }
    }
}

#[test]
fn any_flipped_bit_is_damage_or_in_the_last_batch_a_torn_tail() {
    let (bytes, ends, records) = segment(&[1, 2, 1]);
    let last_batch = ends[3];
    for byte in 0..bytes.len() {
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[byte] ^= 1 << bit;
            let found = scan(&bad, None, None);
            assert!(
                records.starts_with(&found.records) && found.records.len() < records.len(),
                "byte {byte} bit {bit}"
            );
            match found.tail {
                Tail::Damaged { rest } => assert!(rest.iter().all(|record| records.contains(record))),
                Tail::Torn { .. } => assert!(byte >= last_batch, "byte {byte} bit {bit}"),
                Tail::Clean => panic!("byte {byte} bit {bit} unnoticed"),
            }
        }
    }
}

#[test]
fn a_batch_torn_in_its_middle_is_torn_and_a_later_batch_makes_it_damage() {
    let (bytes, ends, records) = segment(&[1, 3]);
    let mut torn = bytes.clone();
    torn[ends[1]..ends[2]].fill(0);
    assert!(matches!(scan(&torn, None, None).tail, Tail::Torn { .. }), "sectors of one write may arrive in any order");
    let (bytes, ends, _) = segment(&[1, 3, 1]);
    let mut damaged = bytes;
    damaged[ends[1]..ends[2]].fill(0);
    let found = scan(&damaged, None, None);
    assert_eq!(found.records, records[..1]);
    assert!(matches!(found.tail, Tail::Damaged { rest } if rest.len() == 3));
}

#[test]
fn a_newer_segment_decides_where_the_older_one_ends() {
    let (bytes, _, records) = segment(&[1, 1, 1]);
    let found = scan(&bytes, None, Some(3));
    assert_eq!((found.records.as_slice(), found.tail), (&records[..2], Tail::Clean));
    assert!(matches!(scan(&bytes, None, Some(5)).tail, Tail::Damaged { .. }), "record 4 is missing");
    let elsewhere = Position { seq: 7, hash: GENESIS.into() };
    assert!(matches!(scan(&bytes, Some(&elsewhere), None).tail, Tail::Damaged { .. }));
}

proptest! {
    #[test]
    fn scanning_arbitrary_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0usize..600, until in prop::option::of(0u64..4)) {
        let (mut good, _, _) = segment(&[1, 1]);
        let at = at.min(good.len());
        good.splice(at..at, bytes.iter().copied());
        scan(&good, None, until);
        scan(&bytes, None, until);
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4_u64 {
        let (spool, _) = open(dir.path());
        let waiting: Vec<_> = (0..20).map(|n| spool.enqueue(vec![closing(round * 20 + n + 1)])).collect();
        for (n, pending) in waiting.into_iter().enumerate() {
            assert_eq!(pending.await.unwrap(), round * 20 + n as u64 + 1);
        }
        let (records, error) = all(&spool, "b", 0).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(records.len() as u64, (round + 1) * 20);
        assert_chain(&records);
        assert_eq!(
            all(&spool, "b", 77.min(round * 20)).await.0,
            records[usize::try_from(77.min(round * 20)).unwrap()..]
        );
    }
    assert!(segments(dir.path(), "b").len() > 1, "the test crosses segments");
}

#[tokio::test]
async fn a_file_cut_at_any_place_opens_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (spool, _) = open(dir.path());
        for n in 1..=5 {
            spool.enqueue(vec![closing(n)]).await.unwrap();
        }
        drop(spool);
        drop(open(dir.path()));
    }
    let path = segments(dir.path(), "b").remove(0);
    let good = std::fs::read(&path).unwrap();
    let end = good.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let header = good.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for cut in (header..=end).step_by(61).chain([end - 1, end]) {
        let mut torn = good.clone();
        torn[cut..].fill(0);
        std::fs::write(&path, &torn).unwrap();
        let (spool, _) = open(dir.path());
        assert_eq!(spool.health().damage, Vec::new(), "cut at {cut}");
        spool.enqueue(vec![closing(100), closing(101)]).await.unwrap();
        let (records, error) = all(&spool, "b", 0).await;
        assert!(error.is_none() && records.len() >= 2, "cut at {cut}: {error:?}");
        assert_chain(&records);
        assert_eq!(segments(dir.path(), "b").len(), 1, "the same file goes on");
    }
}

#[tokio::test]
async fn damage_keeps_the_rest_and_stops_readers_but_not_metering() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (spool, _) = open(dir.path());
        for n in 1..=6 {
            spool.enqueue(vec![closing(n)]).await.unwrap();
        }
    }
    drop(open(dir.path()));
    let path = segments(dir.path(), "b").remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    let third = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).nth(2).unwrap();
    bytes[third + 100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    for round in 0..2 {
        let (spool, _) = open(dir.path());
        let health = spool.health();
        assert_eq!((health.damage.len(), health.damage[0].after_seq, health.damage[0].resumes_at), (1, 2, Some(4)));
        assert_eq!(spool.enqueue(vec![closing(50)]).await.unwrap(), 7 + round);
        let (before, error) = all(&spool, "b", 0).await;
        assert!(matches!(error, Some(ReadError::Damaged { after: 2, .. })) && before.len() == 2, "{error:?}");
        assert_eq!(all(&spool, "b", 6).await.0.len() as u64, round + 1, "what was written since is readable");
        spool.ack("b", 7 + round).await.unwrap();
        assert!(path.exists(), "damaged files are kept");
    }
}

#[tokio::test]
async fn a_missing_segment_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (spool, _) = open(dir.path());
        for n in 1..=60 {
            spool.enqueue(vec![closing(n)]).await.unwrap();
        }
    }
    drop(open(dir.path()));
    let files = segments(dir.path(), "b");
    assert!(files.len() >= 4);
    std::fs::remove_file(&files[1]).unwrap();
    let (spool, _) = open(dir.path());
    assert_eq!(spool.health().damage.len(), 1);
    assert!(matches!(all(&spool, "b", 0).await.1, Some(ReadError::Damaged { .. })));
    assert_eq!(spool.enqueue(vec![closing(61)]).await.unwrap(), 61);
}

#[tokio::test]
async fn acknowledged_segments_go_but_open_intervals_keep_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    spool.enqueue(vec![record(Kind::Start, "open", 1)]).await.unwrap();
    for n in 2..=60 {
        spool.enqueue(vec![closing(n)]).await.unwrap();
    }
    let before = segments(dir.path(), "b").len();
    spool.ack("b", 60).await.unwrap();
    assert_eq!(segments(dir.path(), "b").len(), before, "the open interval's only record is in the first");
    spool.enqueue(vec![record(Kind::Tick, "open", 61)]).await.unwrap();
    spool.ack("b", 61).await.unwrap();
    spool.ack("b", 3).await.unwrap();
    assert_eq!(segments(dir.path(), "b").len(), 1);
    assert!(matches!(all(&spool, "b", 0).await.1, Some(ReadError::Gone { .. })));
    assert!(matches!(spool.ack("b", 62).await, Err(AckError::Ahead { last: 61, .. })));
    assert!(matches!(all(&spool, "b", 99).await.1, Some(ReadError::Ahead { last: 61, .. })));
    drop(spool);
    let (spool, recovered) = open(dir.path());
    assert_eq!((recovered.open.len(), recovered.open[0].boottime_ns), (1, 61));
    assert_eq!(spool.boots(), [BootState { boot_id: "b".into(), last_seq: 61, acked_seq: 61, current: true }]);
    assert_eq!(spool.enqueue(vec![closing(62)]).await.unwrap(), 62);
}

#[tokio::test]
async fn an_old_boot_is_read_first_and_goes_when_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (spool, _) = open(dir.path());
        spool.enqueue(vec![record(Kind::Start, "s", 1), record(Kind::Tick, "s", 5)]).await.unwrap();
    }
    let (spool, recovered) = reopen(|| Spool::open(config(dir.path(), "b2")));
    assert!(recovered.open.is_empty(), "the other boot's intervals are over");
    assert_eq!(
        spool.boots().iter().map(|boot| (boot.boot_id.as_str(), boot.current)).collect::<Vec<_>>(),
        [("b", false), ("b2", true)]
    );
    spool.enqueue(vec![UsageRecord { boot_id: "b2".into(), ..closing(1) }]).await.unwrap();
    assert_eq!(all(&spool, "b", 0).await.0.len(), 2);
    spool.ack("b", 1).await.unwrap();
    assert_eq!(spool.boots().len(), 2);
    spool.ack("b", 2).await.unwrap();
    spool.ack("b", 2).await.unwrap();
    assert_eq!(spool.boots().len(), 1);
    assert!(segments(dir.path(), "b").is_empty());
    assert!(matches!(all(&spool, "b", 0).await.1, Some(ReadError::UnknownBoot { .. })));
    assert_eq!(all(&spool, "b2", 0).await.0.len(), 1);
}

#[tokio::test]
async fn what_was_acknowledged_before_a_kill_is_dropped_after_it() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (spool, _) = open(dir.path());
        spool.enqueue((1..=30).map(closing).collect()).await.unwrap();
    }
    drop(open(dir.path()));
    let boot = segments(dir.path(), "b")[0].parent().unwrap().to_owned();
    let last = {
        let (spool, _) = open(dir.path());
        all(&spool, "b", 0).await.0.pop().unwrap()
    };
    drop(open(dir.path()));
    super::ack::AckFile::open(&boot).unwrap().write(Position { seq: last.seq, hash: last.hash }).unwrap();
    let (spool, _) = open(dir.path());
    assert_eq!(spool.enqueue(vec![closing(31)]).await.unwrap(), 31);
    assert_eq!(segments(dir.path(), "b").len(), 1, "only the running boot's last stays");
    spool.ack("b", 30).await.unwrap();
    drop(spool);
    drop(open(dir.path()));
    super::ack::AckFile::open(&boot).unwrap().write(Position { seq: 31, hash: "x".into() }).unwrap();
    let (spool, _) = reopen(|| Spool::open(config(dir.path(), "b2")));
    spool.enqueue(vec![UsageRecord { boot_id: "b2".into(), ..closing(1) }]).await.unwrap();
    assert_eq!(spool.boots().len(), 1);
    assert!(!boot.exists());
}

#[tokio::test]
async fn a_follower_sees_each_record_as_it_becomes_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    let mut reader = spool.read("b", 0, true);
    let writer = {
        let spool = spool.clone();
        tokio::spawn(async move {
            for n in 1..=120 {
                spool.enqueue(vec![closing(n)]).await.unwrap();
                if n % 10 == 0 {
                    spool.ack("b", n / 2).await.unwrap();
                }
            }
        })
    };
    let mut records = Vec::new();
    while records.len() < 120 {
        let batch = tokio::time::timeout(std::time::Duration::from_secs(60), reader.next()).await.unwrap().unwrap();
        records.extend(batch.unwrap().records.iter().map(|bytes| UsageRecord::decode(bytes).unwrap()));
    }
    writer.await.unwrap();
    assert_chain(&records);
}

#[tokio::test]
async fn two_agents_cannot_share_a_spool_and_another_hosts_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    assert!(matches!(Spool::open(config(dir.path(), "b")), Err(OpenError::InUse { .. })));
    spool.enqueue(vec![closing(1)]).await.unwrap();
    drop(spool);
    drop(open(dir.path()));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let other = SpoolConfig { host: "other".into(), ..config(dir.path(), "b") };
    let refused = loop {
        match Spool::open(other.clone()) {
            Err(OpenError::InUse { .. }) if std::time::Instant::now() < deadline => std::thread::yield_now(),
            answer => break answer,
        }
    };
    assert!(matches!(refused, Err(OpenError::OtherHost { .. })));
    assert!(matches!(Spool::open(SpoolConfig { boot_id: "a/b".into(), ..other }), Err(OpenError::BootId { .. })));
}

/// A disk that keeps what was not synced in memory, and fails when told to.
#[derive(Debug, Clone, Default)]
struct FaultyDisk {
    state: Arc<FaultyState>,
}

#[derive(Debug, Default)]
struct FaultyState {
    /// Syncs that succeed before one fails; 0: none fails.
    fail_sync_in: AtomicUsize,
    /// All syncs fail.
    dead: AtomicBool,
    full: AtomicBool,
}

#[derive(Debug)]
struct FaultyFile {
    file: std::fs::File,
    state: Arc<FaultyState>,
    unsynced: Mutex<Vec<(u64, Vec<u8>)>>,
    failed: AtomicBool,
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        let file = FaultyFile {
            file: std::fs::OpenOptions::new().write(true).open(path)?,
            state: Arc::clone(&self.state),
            unsynced: Mutex::default(),
            failed: AtomicBool::new(false),
        };
        Ok(Box::new(file))
    }

    fn make_zeroed(&self, path: &Path, len: u64) -> io::Result<()> {
        if self.state.full.load(Ordering::SeqCst) && !path.exists() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        std::fs::write(path, vec![0; usize::try_from(len).unwrap()])
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }
}

impl SegmentFile for FaultyFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert!(!self.failed.load(Ordering::SeqCst), "a failed file is never written again");
        self.unsynced.lock().unwrap().push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        assert!(!self.failed.load(Ordering::SeqCst), "a failed fdatasync is never tried again");
        let count = self.state.fail_sync_in.load(Ordering::SeqCst);
        if count > 0 {
            self.state.fail_sync_in.store(count - 1, Ordering::SeqCst);
        }
        if count == 1 || self.state.dead.load(Ordering::SeqCst) {
            // As the kernel does it: the error is told once, and half of the pages are gone.
            self.failed.store(true, Ordering::SeqCst);
            let unsynced = std::mem::take(&mut *self.unsynced.lock().unwrap());
            for (offset, bytes) in unsynced {
                FileExt::write_all_at(&self.file, &bytes[..bytes.len() / 2], offset)?;
            }
            return Err(io::Error::other("I/O error"));
        }
        for (offset, bytes) in std::mem::take(&mut *self.unsynced.lock().unwrap()) {
            FileExt::write_all_at(&self.file, &bytes, offset)?;
        }
        Ok(())
    }
}

fn open_on(dir: &Path, disk: &FaultyDisk) -> (Spool, Recovered) {
    reopen(|| Spool::open_on(config(dir, "b"), Arc::new(disk.clone())))
}

#[tokio::test]
async fn a_failed_fdatasync_gives_the_file_up_and_loses_nothing() {
    for failing in 1..25 {
        let (dir, disk) = (tempfile::tempdir().unwrap(), FaultyDisk::default());
        let (spool, _) = open_on(dir.path(), &disk);
        disk.state.fail_sync_in.store(failing, Ordering::SeqCst);
        let mut durable = Vec::new();
        for n in 1..=20 {
            // Only a segment's own start may fail outright: then the caller is told.
            if spool.enqueue(vec![closing(n)]).await.is_ok() {
                durable.push(format!("s{n}"));
            }
        }
        assert!(durable.len() >= 19, "sync {failing}: {durable:?}");
        let names =
            |records: &[UsageRecord]| records.iter().map(|record| record.sandbox_id.clone()).collect::<Vec<_>>();
        let (records, error) = all(&spool, "b", 0).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(names(&records), durable, "sync {failing}");
        drop(spool);
        let (spool, _) = open_on(dir.path(), &disk);
        assert_eq!(spool.health().damage, Vec::new(), "sync {failing}");
        let (records, error) = all(&spool, "b", 0).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(names(&records), durable, "sync {failing} after a restart");
        assert_chain(&records);
    }
}

#[tokio::test]
async fn a_dead_disk_is_told_and_a_repaired_one_goes_on() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), FaultyDisk::default());
    let (spool, _) = open_on(dir.path(), &disk);
    spool.enqueue(vec![closing(1)]).await.unwrap();
    disk.state.dead.store(true, Ordering::SeqCst);
    for n in 2..4 {
        assert!(spool.enqueue(vec![closing(n)]).await.is_err());
    }
    assert_eq!(all(&spool, "b", 0).await.0.len(), 1, "readers see durable records only");
    disk.state.dead.store(false, Ordering::SeqCst);
    assert_eq!(spool.enqueue(vec![closing(4)]).await.unwrap(), 2);
    assert!(spool.health().failed_appends == 2 && spool.health().failed_segments >= 1);
    assert_chain(&all(&spool, "b", 0).await.0);
}

#[tokio::test]
async fn a_full_disk_is_metered_from_the_reserve_and_acknowledging_makes_room() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), FaultyDisk::default());
    let (spool, _) = open_on(dir.path(), &disk);
    spool.enqueue(vec![closing(1)]).await.unwrap();
    // The first segment came out of the reserve; the writer makes up for it after it has answered.
    let whole = tokio::time::timeout(Duration::from_secs(60), async {
        while spool.health().reserve_segments < spool.health().reserve_wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    whole.await.unwrap();
    disk.state.full.store(true, Ordering::SeqCst);
    let mut written = 1;
    let full = loop {
        match spool.enqueue(vec![closing(written + 1)]).await {
            Ok(seq) => written = seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, AppendError::StartSegment { .. }), "{full}");
    let files = segments(dir.path(), "b").len();
    assert!(files >= 3 && spool.health().reserve_segments == 0, "the reserve was used: {files} files");
    spool.ack("b", written).await.unwrap();
    for n in 1..=10 {
        assert_eq!(spool.enqueue(vec![closing(100 + n)]).await.unwrap(), written + n);
    }
    assert_chain_from(&all(&spool, "b", written).await.0, written + 1);
}

fn assert_chain_from(records: &[UsageRecord], first: u64) {
    for (n, pair) in records.windows(2).enumerate() {
        pair[1].check_follows(first + n as u64, &pair[0].hash).unwrap();
    }
    assert_eq!(records[0].seq, first);
}

#[derive(Debug, Clone)]
enum Step {
    Append(u8),
    AppendAndCrash(u8),
    FailSync(u8),
    Ack,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1u8..6).prop_map(Step::Append),
        1 => (1u8..6).prop_map(Step::AppendAndCrash),
        1 => (1u8..4).prop_map(Step::FailSync),
        1 => Just(Step::Ack),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever happens: every answered record is there once, in order, on an unbroken chain; nothing is there that was not given.
    #[test]
    fn no_schedule_of_faults_loses_or_invents_a_record(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = TempDir::new().unwrap();
            let mut disk = FaultyDisk::default();
            let (mut spool, _) = open_on(dir.path(), &disk);
            let (mut given, mut taken, mut seen): (u64, Vec<String>, Vec<UsageRecord>) = (0, Vec::new(), Vec::new());
            let mut unsure: Vec<String> = Vec::new();
            for step in steps {
                match step {
                    Step::Append(count) => {
                        let records: Vec<_> = (0..count).map(|n| closing(given + u64::from(n))).collect();
                        given += u64::from(count);
                        let names: Vec<_> = records.iter().map(|record| record.sandbox_id.clone()).collect();
                        if spool.enqueue(records).await.is_ok() { taken.extend(names) } else { unsure.extend(names) }
                    }
                    Step::AppendAndCrash(count) => {
                        // Nothing reaches the disk any more: the writer dies with its records in memory.
                        disk.state.dead.store(true, Ordering::SeqCst);
                        let records: Vec<_> = (0..count).map(|n| closing(given + u64::from(n))).collect();
                        given += u64::from(count);
                        unsure.extend(records.iter().map(|record| record.sandbox_id.clone()));
                        assert!(spool.enqueue(records).await.is_err());
                        drop(spool);
                        disk = FaultyDisk::default();
                        spool = open_on(dir.path(), &disk).0;
                    }
                    Step::FailSync(after) => disk.state.fail_sync_in.store(after.into(), Ordering::SeqCst),
                    Step::Ack => {
                        let (more, error) = all(&spool, "b", seen.len() as u64).await;
                        assert!(error.is_none(), "{error:?}");
                        seen.extend(more);
                        spool.ack("b", seen.len() as u64).await.unwrap();
                    }
                    Step::Restart => {
                        drop(spool);
                        disk.state.fail_sync_in.store(0, Ordering::SeqCst);
                        spool = open_on(dir.path(), &disk).0;
                    }
                }
            }
            let (more, error) = all(&spool, "b", seen.len() as u64).await;
            assert!(error.is_none(), "{error:?}");
            seen.extend(more);
            assert_chain(&seen);
            assert_eq!(spool.health().damage, Vec::new());
            let names: Vec<String> = seen.into_iter().map(|record| record.sandbox_id).collect();
            let sure: Vec<&String> = names.iter().filter(|name| !unsure.contains(name)).collect();
            assert_eq!(sure, taken.iter().collect::<Vec<_>>());
        });
    }
}

#[tokio::test]
async fn a_call_larger_than_a_segment_is_split_and_a_record_larger_than_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    let small = spool.enqueue(vec![closing(1)]);
    let large = spool.enqueue((2..=40).map(closing).collect());
    let behind = spool.enqueue(vec![closing(41)]);
    assert_eq!((small.await.unwrap(), large.await.unwrap(), behind.await.unwrap()), (1, 40, 41));
    assert_chain(&all(&spool, "b", 0).await.0);
    let monster = UsageRecord { images: vec!["x".repeat(8192)], ..closing(42) };
    assert!(matches!(spool.enqueue(vec![monster]).await, Err(AppendError::TooLarge { .. })));
    assert_eq!(spool.enqueue(vec![closing(42)]).await.unwrap(), 42);
}

/// The promise: p50 below 0.5 ms on an idle machine. Ignored, since a busy one says nothing; run with `--ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn an_append_is_durable_within_half_a_millisecond_at_the_median() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(SpoolConfig::new(dir.path().join("spool"), "h".into(), "b".into())).unwrap();
    let mut took: Vec<std::time::Duration> = Vec::new();
    for n in 0..2000 {
        let start = std::time::Instant::now();
        spool.enqueue(vec![closing(n)]).await.unwrap();
        took.push(start.elapsed());
    }
    took.sort();
    let start = std::time::Instant::now();
    futures::future::join_all((0..2000).map(|n| spool.enqueue(vec![closing(n)]))).await;
    eprintln!("p50 {:?}, p99 {:?}; 2000 at once {:?}", took[1000], took[1980], start.elapsed());
    assert!(took[1000] < std::time::Duration::from_micros(500));
}

#[tokio::test]
async fn alarms_are_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    spool.enqueue(vec![closing(1), closing(2)]).await.unwrap();
    let mut registry = prometheus_client::registry::Registry::default();
    let gauges = SpoolGauges::register(&mut registry);
    gauges.update(&Health {
        damage: vec![Damage { boot_id: "b".into(), path: "p".into(), after_seq: 1, resumes_at: None }],
        ..spool.health()
    });
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in ["usage_spool_damage 1", "usage_spool_unacked_records 2", "usage_spool_segments 1"] {
        assert!(text.contains(line), "{line} in {text}");
    }
}
