//! The routes' view of the node: the board of pods, and their hosts for everything else.

use agent_api::proto::LogsRequest;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::routes::{LogsError, NodePods};
use crate::pod::access::{AccessError, PodAccess};
use crate::pod::board::Entry;

/// The production [`NodePods`].
pub struct HostedPods {
    access: PodAccess,
}

impl HostedPods {
    /// Over these pods and hosts.
    pub fn new(access: PodAccess) -> Self {
        Self { access }
    }
}

/// The pod's own object with the newest status.
fn with_status(entry: &Entry) -> Option<serde_json::Value> {
    let mut object: serde_json::Value = serde_json::from_slice(&entry.pod.pod_json).ok()?;
    if let Some(report) = &entry.report {
        object["status"] = (*report.status).clone();
    }
    Some(object)
}

#[async_trait]
impl NodePods for HostedPods {
    fn pods(&self) -> Vec<serde_json::Value> {
        self.access.board().all().iter().filter(|entry| !entry.gone).filter_map(with_status).collect()
    }

    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        request: LogsRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, LogsError> {
        let stream = self.access.logs(namespace, pod, request).await.map_err(|error| match error {
            AccessError::NotFound(message) => LogsError::NotFound(message),
            AccessError::WrongState(message) => LogsError::NotAvailable(message),
            AccessError::CouldNotAsk(message) => LogsError::CouldNotAsk(message),
        })?;
        Ok(stream.map(|chunk| chunk.map(|c| c.data).map_err(std::io::Error::other)).boxed())
    }
}
