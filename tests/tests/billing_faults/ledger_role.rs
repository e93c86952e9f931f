//! The reader: vkubelet's pull, over the Unix socket that the writer serves, into a SQLite file.

use std::path::{Path, PathBuf};

use billing::store::sqlite::SqliteStore;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use vkubelet::billing_pull::{Boot, PullMetrics, SourceError, UsageSource, pull};

pub(crate) async fn run(dir: &Path) {
    let store = SqliteStore::open(&dir.join("ledger.db")).expect("the ledger opens after any kill");
    let (socket, metrics) = (Socket(dir.join("agent.sock")), PullMetrics::default());
    let (mut commands, mut nowhere) = (tokio::io::stdin(), tokio::io::sink());
    let halt = tokio::select! {
        halt = pull("h", &socket, &store, &metrics) => halt,
        // The test is gone.
        _ = tokio::io::copy(&mut commands, &mut nowhere) => return,
    };
    panic!("the pull is stopped: {halt}: {:?}", std::error::Error::source(&halt));
}

struct Socket(PathBuf);

fn unanswered(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SourceError {
    SourceError::Unanswered(error.into())
}

impl Socket {
    async fn ask(&self, request: &str) -> Result<Lines<BufReader<OwnedReadHalf>>, SourceError> {
        let (input, mut output) = UnixStream::connect(&self.0).await.map_err(unanswered)?.into_split();
        output.write_all(format!("{request}\n").as_bytes()).await.map_err(unanswered)?;
        // Not shut down while the answer is read.
        output.forget();
        Ok(BufReader::new(input).lines())
    }
}

async fn line(lines: &mut Lines<BufReader<OwnedReadHalf>>) -> Result<String, SourceError> {
    lines.next_line().await.map_err(unanswered)?.ok_or_else(|| unanswered("the connection ended"))
}

#[async_trait::async_trait]
impl UsageSource for Socket {
    async fn boots(&self) -> Result<Vec<Boot>, SourceError> {
        let text = line(&mut self.ask("boots").await?).await?;
        let boots: Value = serde_json::from_str(&text).map_err(unanswered)?;
        let boot = |boot: &Value| Boot {
            boot_id: boot[0].as_str().unwrap_or_default().to_owned(),
            last_seq: boot[1].as_u64().unwrap_or_default(),
            acked_seq: boot[2].as_u64().unwrap_or_default(),
            current: boot[3].as_bool().unwrap_or_default(),
        };
        Ok(boots.as_array().map(|boots| boots.iter().map(boot).collect()).unwrap_or_default())
    }

    async fn records(
        &self,
        boot_id: &str,
        after: u64,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Vec<Bytes>, SourceError>>, SourceError> {
        let lines = self.ask(&format!("records {boot_id} {after} {follow}")).await?;
        Ok(futures::stream::unfold(Some(lines), |lines| async move {
            let mut lines = lines?;
            match batch(&mut lines).await {
                Ok(None) => None,
                Ok(Some(batch)) => Some((Ok(batch), Some(lines))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }

    async fn ack(&self, boot_id: &str, seq: u64) -> Result<(), SourceError> {
        match line(&mut self.ask(&format!("ack {boot_id} {seq}")).await?).await?.as_str() {
            "ok" => Ok(()),
            other => Err(unanswered(other.to_owned())),
        }
    }
}

/// A count, then so many records.
async fn batch(lines: &mut Lines<BufReader<OwnedReadHalf>>) -> Result<Option<Vec<Bytes>>, SourceError> {
    let head = line(lines).await?;
    if head == "end" {
        return Ok(None);
    }
    if let Some(why) = head.strip_prefix("lost ") {
        return Err(SourceError::Lost(why.to_owned().into()));
    }
    let count: usize = head.parse().map_err(unanswered)?;
    let mut records = Vec::new();
    for _ in 0..count {
        records.push(Bytes::from(line(lines).await?));
    }
    Ok(Some(records))
}
