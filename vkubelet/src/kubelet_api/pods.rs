//! The routes' view of the node: the board of pods, and their hosts for everything else.

use agent_api::proto::{ExecInput, ExecOutput, ExecStart, LogsRequest, exec_input};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::remote::Talk;
use super::remote::order::{Kind, Order};
use super::routes::{NodePods, PodError};
use crate::pod::access::{AccessError, ExecTarget, PodAccess};
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
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, PodError> {
        let stream = self.access.logs(namespace, pod, request).await.map_err(PodError::from)?;
        Ok(stream.map(|chunk| chunk.map(|c| c.data).map_err(std::io::Error::other)).boxed())
    }

    async fn talk(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        order: &Order,
    ) -> Result<Box<dyn Talk>, PodError> {
        let target = self.access.exec_target(namespace, pod, container)?;
        let attach = order.kind == Kind::Attach;
        let start = ExecStart {
            uid: target.uid.clone(),
            container: target.container.clone(),
            command: order.command.clone(),
            // A container without standard input is attached to all the same; what the client types is lost, as ever.
            stdin: order.stdin && (!attach || target.has_stdin),
            stdout: order.stdout,
            stderr: order.stderr,
            tty: if attach { target.has_terminal } else { order.tty },
            size: None,
        };
        Ok(Box::new(HostTalk { access: self.access.clone(), target, start, attach }))
    }
}

impl From<AccessError> for PodError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NotFound(message) => Self::NotFound(message),
            AccessError::WrongState(message) => Self::NotAvailable(message),
            AccessError::CouldNotAsk(message) => Self::CouldNotAsk(message),
        }
    }
}

/// A conversation with a container on its host.
struct HostTalk {
    access: PodAccess,
    target: ExecTarget,
    start: ExecStart,
    attach: bool,
}

#[async_trait]
impl Talk for HostTalk {
    async fn begin(
        self: Box<Self>,
        inputs: mpsc::Receiver<ExecInput>,
    ) -> Result<BoxStream<'static, Result<ExecOutput, tonic::Status>>, String> {
        let start = ExecInput { input: Some(exec_input::Input::Start(self.start)) };
        let inputs = futures::stream::iter([start]).chain(ReceiverStream::new(inputs));
        let begun = match self.attach {
            true => self.access.attach(&self.target, inputs).await,
            false => self.access.exec(&self.target, inputs).await,
        };
        begun.map(StreamExt::boxed).map_err(|error| error.to_string())
    }
}
