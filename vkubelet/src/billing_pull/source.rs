//! Where records come from: a connected host, or a fake in tests.

use agent_api::codes::Code;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use tonic::Status;

use crate::hosts::HostHandle;

/// A boot of which the host holds records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The kernel's boot id.
    pub boot_id: String,
    /// The newest durable record's sequence number.
    pub last_seq: u64,
    /// Records up to here may be gone.
    pub acked_seq: u64,
    /// The running boot.
    pub current: bool,
}

/// Why the host gave no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It could not be asked, or is not ready; later it may.
    #[error("ask host for usage records")]
    Unanswered(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It says that records are gone or damaged.
    #[error("host has lost usage records")]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// One host's records.
#[async_trait]
pub trait UsageSource: Send + Sync {
    /// The boots, oldest first.
    async fn boots(&self) -> Result<Vec<Boot>, SourceError>;
    /// Canonical JSON of the records after `after`, in order; with `follow`, each new one too.
    async fn records(
        &self,
        boot_id: &str,
        after: u64,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Vec<Bytes>, SourceError>>, SourceError>;
    /// They are durable here up to `seq`.
    async fn ack(&self, boot_id: &str, seq: u64) -> Result<(), SourceError>;
}

#[async_trait]
impl UsageSource for HostHandle {
    async fn boots(&self) -> Result<Vec<Boot>, SourceError> {
        let reply = self.usage_boots().await.map_err(failed)?;
        let boot = |boot: agent_api::proto::UsageBoot| Boot {
            boot_id: boot.boot_id,
            last_seq: boot.last_seq,
            acked_seq: boot.acked_seq,
            current: boot.current,
        };
        Ok(reply.boots.into_iter().map(boot).collect())
    }

    async fn records(
        &self,
        boot_id: &str,
        after: u64,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Vec<Bytes>, SourceError>>, SourceError> {
        let stream = self.pull_usage(boot_id, after, follow).await.map_err(failed)?;
        Ok(stream.map_ok(|batch| batch.records_json).map_err(failed).boxed())
    }

    async fn ack(&self, boot_id: &str, seq: u64) -> Result<(), SourceError> {
        self.ack_usage(boot_id, seq).await.map_err(failed)
    }
}

fn failed(status: Status) -> SourceError {
    match Code::of(&status) {
        Code::DataLoss => SourceError::Lost(status.into()),
        _ => SourceError::Unanswered(status.into()),
    }
}
