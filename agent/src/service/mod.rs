//! The gRPC service `Agent`. Thin: it parses, checks the fence, calls the core and words the answers.

mod attach;
mod exec;
mod host;
mod images;
mod logs;
mod prepared;
mod streams;
mod sync;
#[cfg(test)]
mod tests;
mod usage;
mod watch;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use agent_api::codes::Code;
use agent_api::proto::agent_server::Agent;
use agent_api::proto::{self};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::errors::chain;
use crate::host::Facts;
use crate::images::ImageStore;
use crate::intent::Intent;
use crate::meter::Meter;
use crate::prepared::Prepared;
use crate::roster::{Roster, RosterError};

/// What the service answers from.
#[derive(Debug, Clone)]
pub struct Service {
    /// Pods.
    pub roster: Arc<Roster>,
    /// Images.
    pub images: ImageStore,
    /// Images kept ready ahead of their use.
    pub prepared: Arc<Prepared>,
    /// Usage.
    pub meter: Arc<Meter>,
    /// The host.
    pub facts: Arc<Facts>,
    /// This host's labels besides those that it has by nature.
    pub labels: BTreeMap<String, String>,
    /// This host's id.
    pub host_id: String,
    /// The pods' subnet.
    pub pod_cidr: String,
}

/// A stream of answers.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Messages that may wait for a slow reader.
const QUEUE: usize = 64;

fn answers<T: Send + 'static>() -> (mpsc::Sender<Result<T, Status>>, Answers<T>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (sender, Box::pin(ReceiverStream::new(receiver)))
}

fn refusal(error: &RosterError) -> Status {
    let code = match error {
        RosterError::Fenced { .. } => Code::EpochFenced,
        RosterError::Recovering => Code::NotReady,
        RosterError::NotWritten { .. } | RosterError::Epoch(_) => Code::Internal,
        RosterError::BadUid { .. } => Code::InvalidArgument,
        RosterError::NotTerminated { .. } => Code::WrongState,
    };
    code.status(chain(error))
}

impl Service {
    async fn fence(&self, epoch: u64) -> Result<(), Status> {
        self.roster.fence(epoch).await.map_err(|error| refusal(&error))
    }
}

#[tonic::async_trait]
impl Agent for Service {
    async fn hello(&self, request: Request<proto::HelloRequest>) -> Result<Response<proto::HelloReply>, Status> {
        let asked = request.into_inner();
        if asked.protocol < 1 {
            return Err(Code::ProtocolUnsupported.status(format!("protocol {} is not spoken here", asked.protocol)));
        }
        self.fence(asked.epoch).await?;
        tracing::info!(
            vkubelet = asked.vkubelet_id,
            epoch = asked.epoch,
            version = asked.version,
            "vkubelet says hello"
        );
        Ok(Response::new(proto::HelloReply {
            host_id: self.host_id.clone(),
            boot_id: self.facts.boot_id.clone(),
            protocol: asked.protocol.min(agent_api::PROTOCOL),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: Some(self.host_status().await),
        }))
    }

    async fn sync(&self, request: Request<Streaming<proto::SyncItem>>) -> Result<Response<proto::SyncReply>, Status> {
        self.sync_set(request.into_inner()).await.map(Response::new)
    }

    async fn apply(&self, request: Request<proto::ApplyRequest>) -> Result<Response<proto::ApplyReply>, Status> {
        let asked = request.into_inner();
        let wire = asked.intent.ok_or_else(|| Code::InvalidArgument.status("apply without an intent"))?;
        let uid = wire.uid.clone();
        let intent = match Intent::from_wire(wire) {
            Ok(intent) => intent,
            Err(error) => {
                // The fence decides before the content does.
                self.fence(asked.epoch).await?;
                let refused = proto::Refusal { uid, reason: "InvalidPod".to_owned(), message: chain(&error) };
                return Ok(Response::new(proto::ApplyReply { accepted: false, refused: Some(refused) }));
            }
        };
        match self.roster.apply(asked.epoch, intent).await {
            Ok(()) => Ok(Response::new(proto::ApplyReply { accepted: true, refused: None })),
            Err(error @ RosterError::BadUid { .. }) => {
                let refused = proto::Refusal { uid, reason: "InvalidPod".to_owned(), message: chain(&error) };
                Ok(Response::new(proto::ApplyReply { accepted: false, refused: Some(refused) }))
            }
            Err(error) => Err(refusal(&error)),
        }
    }

    async fn forget(&self, request: Request<proto::ForgetRequest>) -> Result<Response<proto::ForgetReply>, Status> {
        let asked = request.into_inner();
        self.roster.forget(asked.epoch, &asked.uid).await.map_err(|error| refusal(&error))?;
        Ok(Response::new(proto::ForgetReply {}))
    }

    type WatchStatusStream = Answers<proto::StatusUpdate>;
    async fn watch_status(
        &self,
        _: Request<proto::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        if !self.roster.world().metrics.is_ready() {
            return Err(Code::NotReady.status("the agent is still recovering its pods"));
        }
        Ok(Response::new(self.statuses()))
    }

    type WatchEventsStream = Answers<proto::PodEvent>;
    async fn watch_events(
        &self,
        request: Request<proto::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Ok(Response::new(self.events(request.into_inner().after)))
    }

    type WatchHostStream = Answers<proto::HostStatus>;
    async fn watch_host(&self, _: Request<proto::WatchHostRequest>) -> Result<Response<Self::WatchHostStream>, Status> {
        Ok(Response::new(self.host_changes()))
    }

    type LogsStream = Answers<proto::LogsChunk>;
    async fn logs(&self, request: Request<proto::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        self.read_logs(request.into_inner()).map(Response::new)
    }

    type ExecStream = Answers<proto::ExecOutput>;
    async fn exec(&self, request: Request<Streaming<proto::ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        self.run_exec(request.into_inner()).await.map(Response::new)
    }

    type AttachStream = Answers<proto::ExecOutput>;
    async fn attach(
        &self,
        request: Request<Streaming<proto::ExecInput>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        self.run_attach(request.into_inner()).await.map(Response::new)
    }

    async fn usage_boots(
        &self,
        request: Request<proto::UsageBootsRequest>,
    ) -> Result<Response<proto::UsageBootsReply>, Status> {
        self.fence(request.into_inner().epoch).await?;
        Ok(Response::new(self.boots()))
    }

    type PullUsageStream = Answers<proto::UsageBatch>;
    async fn pull_usage(
        &self,
        request: Request<proto::PullUsageRequest>,
    ) -> Result<Response<Self::PullUsageStream>, Status> {
        let asked = request.into_inner();
        self.fence(asked.epoch).await?;
        Ok(Response::new(self.usage(asked)))
    }

    async fn ack_usage(
        &self,
        request: Request<proto::AckUsageRequest>,
    ) -> Result<Response<proto::AckUsageReply>, Status> {
        let asked = request.into_inner();
        self.fence(asked.epoch).await?;
        self.acknowledge(asked).await.map(Response::new)
    }

    async fn live_usage(
        &self,
        request: Request<proto::LiveUsageRequest>,
    ) -> Result<Response<proto::LiveUsageReply>, Status> {
        Ok(Response::new(self.live(request.into_inner().uids).await))
    }

    async fn list_images(
        &self,
        _: Request<proto::ListImagesRequest>,
    ) -> Result<Response<proto::ListImagesReply>, Status> {
        self.image_list().await.map(Response::new)
    }

    type PullImageStream = Answers<proto::PullImageProgress>;
    async fn pull_image(
        &self,
        request: Request<proto::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        let asked = request.into_inner();
        self.fence(asked.epoch).await?;
        Ok(Response::new(self.image_pull(asked)))
    }

    async fn remove_image(
        &self,
        request: Request<proto::RemoveImageRequest>,
    ) -> Result<Response<proto::RemoveImageReply>, Status> {
        let asked = request.into_inner();
        self.fence(asked.epoch).await?;
        self.image_remove(&asked.reference, asked.domain.as_deref()).await.map(Response::new)
    }

    type VerifyImagesStream = Answers<proto::VerifiedLayer>;
    async fn verify_images(
        &self,
        request: Request<proto::VerifyImagesRequest>,
    ) -> Result<Response<Self::VerifyImagesStream>, Status> {
        let asked = request.into_inner();
        self.fence(asked.epoch).await?;
        Ok(Response::new(self.image_verify(asked.repair)))
    }

    async fn collect_images(
        &self,
        request: Request<proto::CollectImagesRequest>,
    ) -> Result<Response<proto::CollectImagesReply>, Status> {
        let asked = request.into_inner();
        self.fence(asked.epoch).await?;
        self.image_collect(asked.unused_for_seconds).await.map(Response::new)
    }

    async fn prepare_images(
        &self,
        request: Request<proto::PrepareImagesRequest>,
    ) -> Result<Response<proto::PrepareImagesReply>, Status> {
        let asked = request.into_inner();
        self.fence(asked.epoch).await?;
        self.prepare(asked.images).await.map(Response::new)
    }

    type WatchPreparedStream = Answers<proto::PreparedImages>;
    async fn watch_prepared(
        &self,
        _: Request<proto::WatchPreparedRequest>,
    ) -> Result<Response<Self::WatchPreparedStream>, Status> {
        Ok(Response::new(self.prepared_changes()))
    }
}
