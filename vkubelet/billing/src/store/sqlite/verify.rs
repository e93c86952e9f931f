//! Everything checked again: each chain from the stored fields, each interval from its records.

use std::collections::HashMap;

use agent_api::usage::{GENESIS, Held, Kind, SCHEMA, UsageRecord, Used};
use rusqlite::{Connection, Row};

use super::{ingest, statement, unsigned};
use crate::store::{StoreError, VerifyReport};

const RECORDS: &str = "SELECT r.seq, r.kind, r.boottime_ns, r.wall_ns, r.cpu_ns, r.memory_kib_s, r.network_rx_bytes, r.network_tx_bytes, r.hash,
        p.uid, p.namespace, p.name, i.sandbox_id, i.start_boottime_ns, i.start_wall_ns, i.milli_cpu, i.memory_bytes, i.ephemeral_bytes,
        i.gpus, i.sandbox_kind, i.price_class, i.images, i.id, i.boot
    FROM records r LEFT JOIN intervals i ON i.id = r.interval LEFT JOIN pods p ON p.id = i.pod
    WHERE r.boot = ? ORDER BY r.seq";

/// What the records say of an interval, and what the table says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Derived {
    last_seq: u64,
    proven_ns: u64,
    proven_wall_ns: u64,
    ended: bool,
}

struct Boot {
    id: i64,
    host: String,
    boot_id: String,
    last_seq: u64,
    last_hash: String,
}

pub(super) fn verify(connection: &mut Connection) -> Result<VerifyReport, StoreError> {
    let transaction = connection.transaction().map_err(statement("begin verifying"))?;
    let mut report = VerifyReport::default();
    let check: String =
        transaction.query_row("PRAGMA quick_check", [], |row| row.get(0)).map_err(statement("check the file"))?;
    if check != "ok" {
        report.faults.push(format!("database file: {check}"));
    }
    let boots = || -> rusqlite::Result<Vec<Boot>> {
        let mut select = transaction.prepare("SELECT id, host, boot_id, last_seq, last_hash FROM boots ORDER BY id")?;
        let boot = |row: &Row<'_>| {
            let last_hash = hex::encode(row.get::<_, Vec<u8>>(4)?);
            Ok(Boot {
                id: row.get(0)?,
                host: row.get(1)?,
                boot_id: row.get(2)?,
                last_seq: unsigned(row.get(3)?),
                last_hash,
            })
        };
        select.query_map([], boot)?.collect()
    };
    let mut derived = HashMap::new();
    for boot in boots().map_err(statement("list boots"))? {
        report.boots += 1;
        walk(&transaction, &boot, &mut derived, &mut report).map_err(statement("walk a chain"))?;
    }
    compare(&transaction, derived, &mut report).map_err(statement("compare intervals"))?;
    Ok(report)
}

/// A chain that breaks is reported once; what follows it is checked against itself.
fn walk(
    connection: &Connection,
    boot: &Boot,
    derived: &mut HashMap<i64, Derived>,
    report: &mut VerifyReport,
) -> rusqlite::Result<()> {
    let (mut seq, mut hash) = (0, GENESIS.to_owned());
    let mut select = connection.prepare(RECORDS)?;
    let mut rows = select.query([boot.id])?;
    while let Some(row) = rows.next()? {
        report.records += 1;
        let found = unsigned(row.get(0)?);
        let Ok((record, interval, owner)) = record(row, boot, &hash) else {
            report.faults.push(format!("record {}/{}/{found} cannot be read", boot.host, boot.boot_id));
            seq = found;
            continue;
        };
        if let Err(fault) = record.check_follows(seq, &hash) {
            report.faults.push(fault.to_string());
        } else if owner != boot.id {
            report
                .faults
                .push(format!("record {}/{}/{found} belongs to another boot's interval", boot.host, boot.boot_id));
        }
        let state = derived.entry(interval).or_default();
        if !state.ended {
            state.proven_wall_ns = record.wall_ns;
        }
        (state.last_seq, state.proven_ns) = (record.seq, record.boottime_ns);
        state.ended |= record.kind.closes();
        (seq, hash) = (record.seq, record.hash);
    }
    if (seq, &hash) != (boot.last_seq, &boot.last_hash) {
        report.faults.push(format!(
            "chain {}/{} ends at {seq}, its cursor stands at {}",
            boot.host, boot.boot_id, boot.last_seq
        ));
    }
    Ok(())
}

fn compare(
    connection: &Connection,
    mut derived: HashMap<i64, Derived>,
    report: &mut VerifyReport,
) -> rusqlite::Result<()> {
    let mut select = connection
        .prepare("SELECT id, sandbox_id, last_seq, proven_boottime_ns, proven_wall_ns, is_ended FROM intervals")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        report.intervals += 1;
        let number = |at: usize| row.get::<_, i64>(at).map(unsigned);
        let stored =
            Derived { last_seq: number(2)?, proven_ns: number(3)?, proven_wall_ns: number(4)?, ended: row.get(5)? };
        let sandbox_id: String = row.get(1)?;
        match derived.remove(&row.get(0)?) {
            Some(found) if found == stored => {}
            Some(_) => report.faults.push(format!("interval of sandbox {sandbox_id} is not what its records say")),
            None => report.faults.push(format!("interval of sandbox {sandbox_id} has no records")),
        }
    }
    Ok(())
}

/// The record as it was sent, its interval, and that interval's boot.
fn record(row: &Row<'_>, boot: &Boot, prev_hash: &str) -> rusqlite::Result<(UsageRecord, i64, i64)> {
    let number = |at: usize| row.get::<_, i64>(at).map(unsigned);
    let kind: Kind = ingest::kind(&row.get::<_, String>(1)?).ok_or(rusqlite::Error::InvalidQuery)?;
    let images: String = row.get(21)?;
    let record = UsageRecord {
        schema: SCHEMA,
        host: boot.host.clone(),
        boot_id: boot.boot_id.clone(),
        seq: number(0)?,
        kind,
        pod_uid: row.get(9)?,
        pod_namespace: row.get(10)?,
        pod_name: row.get(11)?,
        sandbox_id: row.get(12)?,
        start_boottime_ns: number(13)?,
        start_wall_ns: number(14)?,
        boottime_ns: number(2)?,
        wall_ns: number(3)?,
        held: Held {
            milli_cpu: number(15)?,
            memory_bytes: number(16)?,
            ephemeral_bytes: number(17)?,
            gpus: row.get(18)?,
        },
        used: Used {
            cpu_ns: number(4)?,
            memory_kib_s: number(5)?,
            network_rx_bytes: number(6)?,
            network_tx_bytes: number(7)?,
        },
        sandbox_kind: row.get(19)?,
        price_class: row.get(20)?,
        images: serde_json::from_str(&images).map_err(|_| rusqlite::Error::InvalidQuery)?,
        prev_hash: prev_hash.to_owned(),
        hash: hex::encode(row.get::<_, Vec<u8>>(8)?),
    };
    Ok((record, row.get(22)?, row.get(23)?))
}
