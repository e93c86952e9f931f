//! Pods and their intervals, read back.

use agent_api::usage::{Held, Used};
use rusqlite::{Connection, Row, named_params};

use super::{statement, unsigned};
use crate::store::{PodPage, PodQuery, PodUsage, StoreError, StoredInterval};

/// An interval is open-ended while it has not ended and its boot goes on.
const PODS: &str = "SELECT p.id, p.uid, p.namespace, p.name FROM pods p
    WHERE p.id > :after
      AND (:namespace IS NULL OR p.namespace = :namespace)
      AND (:pod IS NULL OR p.name = :pod OR p.uid = :pod)
      AND (:from IS NULL AND :to IS NULL OR EXISTS (
            SELECT 1 FROM intervals i JOIN boots b ON b.id = i.boot
            WHERE i.pod = p.id
              AND (:to IS NULL OR i.start_wall_ns < :to)
              AND (:from IS NULL OR i.proven_wall_ns > :from OR (i.is_ended = 0 AND b.is_over = 0))))
    ORDER BY p.id LIMIT :limit";

const INTERVALS: &str = "SELECT b.host, b.boot_id, b.is_over, i.sandbox_id, i.start_boottime_ns, i.start_wall_ns, i.proven_boottime_ns,
        i.proven_wall_ns, i.is_ended, i.milli_cpu, i.memory_bytes, i.ephemeral_bytes, i.gpus, r.cpu_ns, r.memory_kib_s, r.network_rx_bytes,
        r.network_tx_bytes, i.sandbox_kind, i.price_class, i.images
    FROM intervals i JOIN boots b ON b.id = i.boot JOIN records r ON r.boot = i.boot AND r.seq = i.last_seq
    WHERE i.pod = ? ORDER BY i.start_wall_ns, b.host, b.boot_id, i.start_boottime_ns, i.sandbox_id";

pub(super) fn pods(connection: &mut Connection, query: &PodQuery) -> Result<PodPage, StoreError> {
    // One snapshot for the whole page.
    let transaction = connection.transaction().map_err(statement("begin reading"))?;
    let bound = |ns: Option<u64>| ns.map(|ns| i64::try_from(ns).unwrap_or(i64::MAX));
    let found = || -> rusqlite::Result<Vec<(i64, PodUsage)>> {
        let mut select = transaction.prepare_cached(PODS)?;
        let rows = select.query_map(
            named_params! {
                ":after": i64::try_from(query.after).unwrap_or(i64::MAX),
                ":namespace": query.namespace,
                ":pod": query.pod,
                ":from": bound(query.from_ns),
                ":to": bound(query.to_ns),
                // One more tells whether there is more.
                ":limit": i64::try_from(query.limit.saturating_add(1)).unwrap_or(i64::MAX),
            },
            |row| Ok((row.get(0)?, head(row)?)),
        )?;
        rows.collect()
    };
    let mut found = found().map_err(statement("list pods"))?;
    let more = found.len() > query.limit;
    found.truncate(query.limit);
    let next = found.last().filter(|_| more).map(|(id, _)| unsigned(*id));
    let pods = found.into_iter().map(|(id, pod)| with_intervals(&transaction, id, pod)).collect::<Result<_, _>>()?;
    Ok(PodPage { pods, next })
}

pub(super) fn pod(connection: &mut Connection, uid: &str) -> Result<Option<PodUsage>, StoreError> {
    let transaction = connection.transaction().map_err(statement("begin reading"))?;
    let found = transaction
        .prepare_cached("SELECT id, uid, namespace, name FROM pods WHERE uid = ?")
        .and_then(|mut select| select.query_map([uid], |row| Ok((row.get(0)?, head(row)?)))?.next().transpose());
    match found.map_err(statement("find a pod"))? {
        Some((id, pod)) => with_intervals(&transaction, id, pod).map(Some),
        None => Ok(None),
    }
}

fn head(row: &Row<'_>) -> rusqlite::Result<PodUsage> {
    Ok(PodUsage { uid: row.get(1)?, namespace: row.get(2)?, name: row.get(3)?, intervals: Vec::new() })
}

fn with_intervals(connection: &Connection, id: i64, mut pod: PodUsage) -> Result<PodUsage, StoreError> {
    let read = || -> rusqlite::Result<Vec<(StoredInterval, String)>> {
        let mut select = connection.prepare_cached(INTERVALS)?;
        select.query_map([id], interval)?.collect()
    };
    for (mut interval, images) in read().map_err(statement("read a pod's intervals"))? {
        interval.images = serde_json::from_str(&images)
            .map_err(|_| StoreError::Corrupt { what: format!("images of sandbox {}", interval.sandbox_id) })?;
        pod.intervals.push(interval);
    }
    Ok(pod)
}

fn interval(row: &Row<'_>) -> rusqlite::Result<(StoredInterval, String)> {
    let number = |at: usize| row.get::<_, i64>(at).map(unsigned);
    let interval = StoredInterval {
        host: row.get(0)?,
        boot_id: row.get(1)?,
        boot_over: row.get(2)?,
        sandbox_id: row.get(3)?,
        start_ns: number(4)?,
        start_wall_ns: number(5)?,
        proven_ns: number(6)?,
        proven_wall_ns: number(7)?,
        ended: row.get(8)?,
        held: Held {
            milli_cpu: number(9)?,
            memory_bytes: number(10)?,
            ephemeral_bytes: number(11)?,
            gpus: row.get(12)?,
        },
        used: Used {
            cpu_ns: number(13)?,
            memory_kib_s: number(14)?,
            network_rx_bytes: number(15)?,
            network_tx_bytes: number(16)?,
        },
        sandbox_kind: row.get(17)?,
        price_class: row.get(18)?,
        images: Vec::new(),
    };
    Ok((interval, row.get(19)?))
}
