//! The ledger in one SQLite file: WAL, `synchronous=FULL`, STRICT tables, one writer and one reader connection.
//!
//! Several processes may open the same file; each ingest is one immediate transaction.

mod ingest;
mod query;
mod schema;
mod verify;

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use agent_api::usage::{GENESIS, UsageRecord};
use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension};

use super::{Cursor, IngestError, PodPage, PodQuery, PodUsage, Store, StoreError, VerifyReport};

/// The ledger in one SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    writer: Arc<Mutex<Connection>>,
    reader: Arc<Mutex<Connection>>,
}

impl SqliteStore {
    /// Opens the file, or makes it (mode 0600), and brings its tables up to date. Blocking.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open { path: path.to_owned(), source };
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        file.map_err(|error| failed(error.into()))?;
        let open = || -> Result<Connection, StoreError> {
            let mut connection = Connection::open(path).map_err(|error| failed(error.into()))?;
            schema::prepare(&mut connection)?;
            Ok(connection)
        };
        Ok(Self { writer: Arc::new(Mutex::new(open()?)), reader: Arc::new(Mutex::new(open()?)) })
    }

    async fn on<T: Send + 'static>(
        connection: &Arc<Mutex<Connection>>,
        work: impl FnOnce(&mut Connection) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let connection = Arc::clone(connection);
        let task =
            tokio::task::spawn_blocking(move || work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner)));
        task.await.map_err(|error| StoreError::Statement { operation: "run a task", source: error.into() })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn cursor(&self, host: &str, boot_id: &str) -> Result<Cursor, StoreError> {
        let (host, boot_id) = (host.to_owned(), boot_id.to_owned());
        Self::on(&self.reader, move |connection| cursor(connection, &host, &boot_id)).await?
    }

    async fn ingest(&self, host: &str, boot_id: &str, records: Vec<UsageRecord>) -> Result<Cursor, IngestError> {
        let (host, boot_id) = (host.to_owned(), boot_id.to_owned());
        let task = Self::on(&self.writer, move |connection| ingest::ingest(connection, &host, &boot_id, &records));
        task.await.map_err(IngestError::Store)?
    }

    async fn boot_began(&self, host: &str, boot_id: &str) -> Result<(), StoreError> {
        let (host, boot_id) = (host.to_owned(), boot_id.to_owned());
        Self::on(&self.writer, move |connection| ingest::boot_began(connection, &host, &boot_id)).await?
    }

    async fn pods(&self, query: &PodQuery) -> Result<PodPage, StoreError> {
        let query = query.clone();
        Self::on(&self.reader, move |connection| query::pods(connection, &query)).await?
    }

    async fn pod(&self, uid: &str) -> Result<Option<PodUsage>, StoreError> {
        let uid = uid.to_owned();
        Self::on(&self.reader, move |connection| query::pod(connection, &uid)).await?
    }

    async fn verify(&self) -> Result<VerifyReport, StoreError> {
        Self::on(&self.reader, verify::verify).await?
    }
}

fn cursor(connection: &Connection, host: &str, boot_id: &str) -> Result<Cursor, StoreError> {
    let row =
        connection.prepare_cached("SELECT last_seq, last_hash FROM boots WHERE host = ? AND boot_id = ?").and_then(
            |mut found| found.query_row((host, boot_id), |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?))).optional(),
        );
    let row = row.map_err(statement("read a cursor"))?;
    Ok(row.map_or_else(
        || Cursor { seq: 0, hash: GENESIS.to_owned() },
        |(seq, hash)| Cursor { seq: unsigned(seq), hash: hex::encode(hash) },
    ))
}

/// Stored integers were checked on their way in.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn statement(operation: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Statement { operation, source: source.into() }
}

#[cfg(test)]
mod tests;
