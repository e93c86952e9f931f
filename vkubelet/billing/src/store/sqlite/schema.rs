//! Tables and their migrations. A migration is never changed once released; the next one goes behind it.
//!
//! What an interval's records have in common stands once, in `intervals`; a record's row is about 100 bytes. The canonical JSON is
//! put together again from both, and the hash proves that nothing was lost. All integers fit 63 bits (checked on the way in).

use rusqlite::{Connection, TransactionBehavior};

use super::statement;
use crate::store::StoreError;

const MIGRATIONS: &[&str] = &["
CREATE TABLE boots (
    id        INTEGER PRIMARY KEY,
    host      TEXT NOT NULL,
    boot_id   TEXT NOT NULL,
    last_seq  INTEGER NOT NULL,
    last_hash BLOB NOT NULL,
    is_over   INTEGER NOT NULL CHECK (is_over IN (0, 1)),
    UNIQUE (host, boot_id)
) STRICT;

CREATE TABLE pods (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    uid       TEXT NOT NULL UNIQUE,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL
) STRICT;
CREATE INDEX pods_by_namespace ON pods (namespace, id);
CREATE INDEX pods_by_name ON pods (name, id);

CREATE TABLE intervals (
    id                INTEGER PRIMARY KEY,
    boot              INTEGER NOT NULL REFERENCES boots (id),
    pod               INTEGER NOT NULL REFERENCES pods (id),
    sandbox_id        TEXT NOT NULL,
    start_boottime_ns INTEGER NOT NULL,
    start_wall_ns     INTEGER NOT NULL,
    milli_cpu         INTEGER NOT NULL,
    memory_bytes      INTEGER NOT NULL,
    ephemeral_bytes   INTEGER NOT NULL,
    gpus              INTEGER NOT NULL,
    sandbox_kind      TEXT NOT NULL,
    price_class       TEXT NOT NULL,
    images            TEXT NOT NULL,
    last_seq          INTEGER NOT NULL,
    proven_boottime_ns INTEGER NOT NULL,
    proven_wall_ns    INTEGER NOT NULL,
    is_ended          INTEGER NOT NULL CHECK (is_ended IN (0, 1)),
    UNIQUE (boot, sandbox_id, start_boottime_ns)
) STRICT;
CREATE INDEX intervals_by_pod ON intervals (pod);

CREATE TABLE records (
    boot             INTEGER NOT NULL REFERENCES boots (id),
    seq              INTEGER NOT NULL,
    interval         INTEGER NOT NULL REFERENCES intervals (id),
    kind             TEXT NOT NULL,
    boottime_ns      INTEGER NOT NULL,
    wall_ns          INTEGER NOT NULL,
    cpu_ns           INTEGER NOT NULL,
    memory_kib_s     INTEGER NOT NULL,
    network_rx_bytes INTEGER NOT NULL,
    network_tx_bytes INTEGER NOT NULL,
    hash             BLOB NOT NULL,
    PRIMARY KEY (boot, seq)
) STRICT, WITHOUT ROWID;
"];

/// Durable before a commit returns, readers beside the writer.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), StoreError> {
    let set = |connection: &Connection| -> rusqlite::Result<()> {
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "foreign_keys", "on")?;
        connection.pragma_update(None, "trusted_schema", "off")
    };
    set(connection).map_err(statement("set up a connection"))?;
    let migrate = statement("migrate");
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(statement("begin a migration"))?;
    let found: i64 = transaction
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(statement("read the schema version"))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    let apply = || -> rusqlite::Result<()> {
        for migration in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "user_version", known)
    };
    apply().and_then(|()| transaction.commit()).map_err(migrate)
}
