//! Records on their way in: one transaction for a batch and its cursor.

use agent_api::usage::{Kind, UsageRecord};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::{cursor, statement, unsigned};
use crate::store::{Cursor, IngestError, StoreError};

pub(super) fn ingest(
    connection: &mut Connection,
    host: &str,
    boot_id: &str,
    records: &[UsageRecord],
) -> Result<Cursor, IngestError> {
    let begin = connection.transaction_with_behavior(TransactionBehavior::Immediate);
    let transaction = begin.map_err(statement("begin")).map_err(IngestError::Store)?;
    let mut at = cursor(&transaction, host, boot_id).map_err(IngestError::Store)?;
    let boot = boot_row(&transaction, host, boot_id, &at).map_err(IngestError::Store)?;
    let before = at.clone();
    for record in records {
        if record.host != host || record.boot_id != boot_id {
            let found = format!("{}/{}/{}", record.host, record.boot_id, record.seq);
            return Err(IngestError::Foreign { found, expected: format!("{host}/{boot_id}") });
        }
        if let Some(what) = record.contradiction() {
            return Err(contradiction(record, what));
        }
        if record.seq <= at.seq {
            known(&transaction, boot, record)?;
            continue;
        }
        record.check_follows(at.seq, &at.hash).map_err(IngestError::Chain)?;
        insert(&transaction, boot, record)?;
        at = Cursor { seq: record.seq, hash: record.hash.clone() };
    }
    if at != before {
        let hash = hex::decode(&at.hash).unwrap_or_default();
        let update = transaction
            .execute("UPDATE boots SET last_seq = ?, last_hash = ? WHERE id = ?", (signed(at.seq), hash, boot));
        update.map_err(statement("move a cursor")).map_err(IngestError::Store)?;
    }
    transaction.commit().map_err(statement("commit records")).map_err(IngestError::Store)?;
    Ok(at)
}

pub(super) fn boot_began(connection: &mut Connection, host: &str, boot_id: &str) -> Result<(), StoreError> {
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(statement("begin"))?;
    let at = cursor(&transaction, host, boot_id)?;
    boot_row(&transaction, host, boot_id, &at)?;
    let close = transaction
        .execute("UPDATE boots SET is_over = 1 WHERE host = ? AND boot_id <> ? AND is_over = 0", (host, boot_id));
    close.map_err(statement("close boots"))?;
    transaction.commit().map_err(statement("commit a boot"))
}

fn boot_row(transaction: &Transaction<'_>, host: &str, boot_id: &str, at: &Cursor) -> Result<i64, StoreError> {
    let hash = hex::decode(&at.hash).unwrap_or_default();
    let insert =
        "INSERT INTO boots (host, boot_id, last_seq, last_hash, is_over) VALUES (?, ?, 0, ?, 0) ON CONFLICT DO NOTHING";
    transaction.execute(insert, (host, boot_id, hash)).map_err(statement("add a boot"))?;
    let id =
        transaction.query_row("SELECT id FROM boots WHERE host = ? AND boot_id = ?", (host, boot_id), |row| row.get(0));
    id.map_err(statement("find a boot"))
}

/// Delivered again: it must be what is stored.
fn known(transaction: &Transaction<'_>, boot: i64, record: &UsageRecord) -> Result<(), IngestError> {
    let found = transaction
        .prepare_cached("SELECT hash FROM records WHERE boot = ? AND seq = ?")
        .and_then(|mut found| found.query_row((boot, signed(record.seq)), |row| row.get::<_, Vec<u8>>(0)).optional());
    let found = found.map_err(statement("find a record")).map_err(IngestError::Store)?;
    let same = found.is_some_and(|hash| hex::encode(hash) == record.hash) && record.content_hash() == record.hash;
    if same {
        Ok(())
    } else {
        Err(IngestError::Conflict { host: record.host.clone(), boot_id: record.boot_id.clone(), seq: record.seq })
    }
}

/// What the intervals table knows of a record's interval.
struct Known {
    id: i64,
    same: bool,
    proven: u64,
    ended: bool,
}

fn insert(transaction: &Transaction<'_>, boot: i64, record: &UsageRecord) -> Result<(), IngestError> {
    let sizes = [
        record.seq,
        record.start_boottime_ns,
        record.start_wall_ns,
        record.boottime_ns,
        record.wall_ns,
        record.held.milli_cpu,
        record.held.memory_bytes,
        record.held.ephemeral_bytes,
        record.used.cpu_ns,
        record.used.memory_kib_s,
        record.used.network_rx_bytes,
        record.used.network_tx_bytes,
    ];
    if sizes.iter().any(|size| i64::try_from(*size).is_err()) {
        return Err(contradiction(record, "a number beyond 63 bits"));
    }
    let store = |operation| move |error| IngestError::Store(statement(operation)(error));
    let interval = match find_interval(transaction, boot, record).map_err(store("find an interval"))? {
        Some(Known { same: false, .. }) => {
            return Err(contradiction(record, "it differs from its interval's earlier records"));
        }
        Some(Known { proven, .. }) if record.boottime_ns < proven => {
            return Err(contradiction(record, "it holds before its interval's latest record"));
        }
        Some(Known { ended: true, proven, .. }) if record.boottime_ns > proven || !record.kind.closes() => {
            return Err(contradiction(record, "its interval has ended"));
        }
        Some(Known { id, ended, .. }) => {
            advance(transaction, id, ended, record).map_err(store("advance an interval"))?;
            id
        }
        None => {
            let pod = pod_row(transaction, record)?;
            add_interval(transaction, boot, pod, record).map_err(store("add an interval"))?
        }
    };
    add_record(transaction, boot, interval, record).map_err(store("add a record"))
}

fn pod_row(transaction: &Transaction<'_>, record: &UsageRecord) -> Result<i64, IngestError> {
    let find = || -> rusqlite::Result<(i64, bool)> {
        let insert = "INSERT INTO pods (uid, namespace, name) SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM pods WHERE uid = ?1)";
        transaction.prepare_cached(insert)?.execute((&record.pod_uid, &record.pod_namespace, &record.pod_name))?;
        let mut found =
            transaction.prepare_cached("SELECT id, namespace = ?2 AND name = ?3 FROM pods WHERE uid = ?1")?;
        found
            .query_row((&record.pod_uid, &record.pod_namespace, &record.pod_name), |row| Ok((row.get(0)?, row.get(1)?)))
    };
    match find().map_err(statement("find a pod")).map_err(IngestError::Store)? {
        (id, true) => Ok(id),
        (_, false) => Err(contradiction(record, "its pod has another namespace or name in the ledger")),
    }
}

fn find_interval(transaction: &Transaction<'_>, boot: i64, record: &UsageRecord) -> rusqlite::Result<Option<Known>> {
    let sql = "SELECT i.id, proven_boottime_ns, is_ended,
            p.uid = ?4 AND p.namespace = ?5 AND p.name = ?6 AND start_wall_ns = ?7 AND milli_cpu = ?8 AND memory_bytes = ?9
            AND ephemeral_bytes = ?10 AND gpus = ?11 AND sandbox_kind = ?12 AND price_class = ?13 AND images = ?14
        FROM intervals i JOIN pods p ON p.id = i.pod
        WHERE boot = ?1 AND sandbox_id = ?2 AND start_boottime_ns = ?3";
    let values = rusqlite::params![
        boot,
        record.sandbox_id,
        signed(record.start_boottime_ns),
        record.pod_uid,
        record.pod_namespace,
        record.pod_name,
        signed(record.start_wall_ns),
        signed(record.held.milli_cpu),
        signed(record.held.memory_bytes),
        signed(record.held.ephemeral_bytes),
        record.held.gpus,
        record.sandbox_kind,
        record.price_class,
        images(record),
    ];
    let known = |row: &rusqlite::Row<'_>| {
        Ok(Known { id: row.get(0)?, proven: unsigned(row.get(1)?), ended: row.get(2)?, same: row.get(3)? })
    };
    transaction.prepare_cached(sql)?.query_row(values, known).optional()
}

fn add_interval(transaction: &Transaction<'_>, boot: i64, pod: i64, record: &UsageRecord) -> rusqlite::Result<i64> {
    let sql = "INSERT INTO intervals (boot, pod, sandbox_id, start_boottime_ns, start_wall_ns, milli_cpu, memory_bytes, ephemeral_bytes, gpus,
            sandbox_kind, price_class, images, last_seq, proven_boottime_ns, proven_wall_ns, is_ended)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    transaction.prepare_cached(sql)?.insert(rusqlite::params![
        boot,
        pod,
        record.sandbox_id,
        signed(record.start_boottime_ns),
        signed(record.start_wall_ns),
        signed(record.held.milli_cpu),
        signed(record.held.memory_bytes),
        signed(record.held.ephemeral_bytes),
        record.held.gpus,
        record.sandbox_kind,
        record.price_class,
        images(record),
        signed(record.seq),
        signed(record.boottime_ns),
        signed(record.wall_ns),
        record.kind.closes(),
    ])
}

/// A release that was reported twice keeps its first label.
fn advance(transaction: &Transaction<'_>, id: i64, ended: bool, record: &UsageRecord) -> rusqlite::Result<()> {
    let sql = "UPDATE intervals SET last_seq = ?2, proven_boottime_ns = ?3, proven_wall_ns = iif(?6, proven_wall_ns, ?4), is_ended = ?5 WHERE id = ?1";
    let closes = ended || record.kind.closes();
    let values = (id, signed(record.seq), signed(record.boottime_ns), signed(record.wall_ns), closes, ended);
    transaction.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

fn add_record(transaction: &Transaction<'_>, boot: i64, interval: i64, record: &UsageRecord) -> rusqlite::Result<()> {
    let sql = "INSERT INTO records (boot, seq, interval, kind, boottime_ns, wall_ns, cpu_ns, memory_kib_s, network_rx_bytes, network_tx_bytes, hash)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    transaction.prepare_cached(sql)?.execute(rusqlite::params![
        boot,
        signed(record.seq),
        interval,
        record.kind.as_str(),
        signed(record.boottime_ns),
        signed(record.wall_ns),
        signed(record.used.cpu_ns),
        signed(record.used.memory_kib_s),
        signed(record.used.network_rx_bytes),
        signed(record.used.network_tx_bytes),
        hex::decode(&record.hash).unwrap_or_default(),
    ])?;
    Ok(())
}

fn images(record: &UsageRecord) -> String {
    serde_json::to_string(&record.images).expect("a list of strings serialises")
}

/// Checked by [`insert`] before anything is written.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn contradiction(record: &UsageRecord, what: &'static str) -> IngestError {
    IngestError::Contradiction { host: record.host.clone(), boot_id: record.boot_id.clone(), seq: record.seq, what }
}

pub(super) fn kind(text: &str) -> Option<Kind> {
    [Kind::Start, Kind::Tick, Kind::Stop, Kind::Reconcile].into_iter().find(|kind| kind.as_str() == text)
}
