//! The routes' view of the node: the desired store for who is where, the hosts for everything else.

use std::sync::Arc;

use agent_api::codes::Code;
use agent_api::proto::LogsRequest;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::Status;

use super::routes::{LogsError, NodePods};
use crate::desired::{Desired, DesiredPod};
use crate::hosts::Hosts;

/// Where a pod's newest status is, and on which host it is placed.
pub trait PodView: Send + Sync + 'static {
    /// The newest core/v1 `PodStatus` of a pod, when an agent has told one.
    fn status(&self, uid: &str) -> Option<serde_json::Value>;
    /// The host that a pod is placed on.
    fn host(&self, uid: &str) -> Option<String>;
}

/// The production [`NodePods`].
pub struct HostedPods {
    desired: Desired,
    hosts: Hosts,
    view: Arc<dyn PodView>,
}

impl HostedPods {
    /// Over these pods and hosts.
    pub fn new(desired: Desired, hosts: Hosts, view: Arc<dyn PodView>) -> Self {
        Self { desired, hosts, view }
    }

    fn with_status(&self, pod: &DesiredPod) -> Option<serde_json::Value> {
        let mut object: serde_json::Value = serde_json::from_slice(&pod.pod_json).ok()?;
        if let Some(status) = self.view.status(pod.uid()) {
            object["status"] = status;
        }
        Some(object)
    }
}

#[async_trait]
impl NodePods for HostedPods {
    fn pods(&self) -> Vec<serde_json::Value> {
        self.desired.all().iter().filter_map(|pod| self.with_status(pod)).collect()
    }

    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        mut request: LogsRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, LogsError> {
        let found = self
            .desired
            .find(namespace, pod)
            .ok_or_else(|| LogsError::NotFound(format!("pod \"{pod}\" not found in namespace \"{namespace}\"")))?;
        let host_id = self.view.host(found.uid()).or_else(|| found.placement.clone()).ok_or_else(|| {
            let container = &request.container;
            LogsError::NotAvailable(format!(
                "container \"{container}\" in pod \"{pod}\" is waiting to start: the pod is not placed on a host yet"
            ))
        })?;
        let host = self
            .hosts
            .handle(&host_id)
            .ok_or_else(|| LogsError::CouldNotAsk(format!("host {host_id} of pod {pod} is not connected")))?;
        found.uid().clone_into(&mut request.uid);
        let stream = host.logs(request).await.map_err(|status| error(&host_id, &status))?;
        Ok(stream.map(|chunk| chunk.map(|c| c.data).map_err(std::io::Error::other)).boxed())
    }
}

fn error(host_id: &str, status: &Status) -> LogsError {
    match Code::of(status) {
        Code::NotFound => LogsError::NotFound(status.message().to_owned()),
        Code::WrongState | Code::InvalidArgument | Code::Unsupported => {
            LogsError::NotAvailable(status.message().to_owned())
        }
        _ => LogsError::CouldNotAsk(format!("host {host_id}: {}", status.message())),
    }
}
