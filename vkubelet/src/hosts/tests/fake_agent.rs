//! An agent that enrols, dials and answers as the real one does, with nothing behind it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use agent_api::codes::Code;
use agent_api::identity::{HostId, HostKey, SpkiHash, tls};
use agent_api::proto::agent_server::Agent;
use agent_api::proto::enrollment_client::EnrollmentClient;
use agent_api::proto::{self, sync_item::Item};
use agent_api::transport::{self, Caller, preamble::Preamble};
use futures::Stream;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// What an enrolled host holds.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) key: Arc<HostKey>,
    pub(super) certificate_pem: String,
    pub(super) ca_pem: String,
}

pub(super) async fn enrol(
    address: SocketAddr,
    pin: SpkiHash,
    token: &str,
    host_id: &str,
    key: Arc<HostKey>,
) -> Result<Credentials, Status> {
    let stream = dial(address, tls::joining(pin).expect("config")).await.expect("handshake");
    let caller = Caller::connect(stream).await.expect("http");
    let request = proto::JoinRequest {
        token: token.into(),
        host_id: host_id.into(),
        csr_pem: key.request(&HostId::new(host_id).expect("id")).expect("csr"),
        version: "test".into(),
    };
    let reply = EnrollmentClient::new(caller.channel()).join(request).await?.into_inner();
    let (certificate_pem, ca_pem) = (reply.certificate_pem, reply.ca_pem);
    Ok(Credentials { key, certificate_pem, ca_pem })
}

async fn dial(
    address: SocketAddr,
    config: Arc<tokio_rustls::rustls::ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(config).connect(tls::server_name(), stream).await
}

/// Renews with a key of choice.
pub(super) async fn renew(
    address: SocketAddr,
    credentials: &Credentials,
    key: &HostKey,
) -> Result<Credentials, Status> {
    let Credentials { ca_pem, certificate_pem, key: own, .. } = credentials;
    let config = tls::renewing(ca_pem, certificate_pem, &own.to_pem()).expect("config");
    let caller = Caller::connect(dial(address, config).await.expect("handshake")).await.expect("http");
    let asked = HostId::new("somebody-else").expect("id");
    let request = proto::RenewRequest { csr_pem: key.request(&asked).expect("csr"), version: "test".into() };
    let reply = EnrollmentClient::new(caller.channel()).renew(request).await?.into_inner();
    Ok(Credentials { certificate_pem: reply.certificate_pem, ..credentials.clone() })
}

/// Dials and reads the welcome.
pub(super) async fn knock(
    address: SocketAddr,
    credentials: &Credentials,
) -> std::io::Result<(TlsStream<TcpStream>, Preamble)> {
    let Credentials { ca_pem, certificate_pem, key, .. } = credentials;
    let config = tls::agent(ca_pem, certificate_pem, &key.to_pem()).expect("config");
    let mut stream = dial(address, config).await?;
    let welcome = Preamble::read(&mut stream).await.map_err(std::io::Error::other)?;
    Ok((stream, welcome))
}

/// The fake's state, shared between its connections.
#[derive(Clone)]
pub(super) struct FakeAgent {
    pub(super) host_id: String,
    pub(super) seen_epoch: Arc<Mutex<u64>>,
    pub(super) synced: Arc<Mutex<Vec<String>>>,
    pub(super) status: watch::Sender<proto::HostStatus>,
    pub(super) not_ready_for: Arc<Mutex<u32>>,
}

impl FakeAgent {
    pub(super) fn new(host_id: &str) -> FakeAgent {
        FakeAgent {
            host_id: host_id.into(),
            seen_epoch: Arc::default(),
            synced: Arc::default(),
            status: watch::Sender::new(proto::HostStatus { capacity_pods: 1, ..proto::HostStatus::default() }),
            not_ready_for: Arc::default(),
        }
    }

    /// Connects and serves in the background. The token ends it.
    pub(super) async fn start(&self, address: SocketAddr, credentials: &Credentials) -> CancellationToken {
        let (stream, welcome) = knock(address, credentials).await.expect("welcome");
        assert_eq!(welcome, Preamble::Welcome);
        let stop = CancellationToken::new();
        tokio::spawn(transport::serve(stream, transport::agent_routes(self.clone()), stop.clone()));
        stop
    }
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn unsupported<T>() -> Result<Response<T>, Status> {
    Err(Code::Unsupported.status("not in this fake"))
}

#[tonic::async_trait]
impl Agent for FakeAgent {
    async fn hello(&self, request: Request<proto::HelloRequest>) -> Result<Response<proto::HelloReply>, Status> {
        let request = request.into_inner();
        let mut not_ready_for = self.not_ready_for.lock().expect("lock");
        if *not_ready_for > 0 {
            *not_ready_for -= 1;
            return Err(Code::NotReady.status("adopting pods"));
        }
        let mut seen = self.seen_epoch.lock().expect("lock");
        if request.epoch < *seen {
            return Err(Code::EpochFenced.status(format!("epoch {} is lower than {seen}", request.epoch)));
        }
        *seen = request.epoch;
        Ok(Response::new(proto::HelloReply {
            host_id: self.host_id.clone(),
            boot_id: "boot-1".into(),
            protocol: 1,
            version: "test".into(),
            host: Some(self.status.borrow().clone()),
        }))
    }

    async fn sync(&self, request: Request<Streaming<proto::SyncItem>>) -> Result<Response<proto::SyncReply>, Status> {
        let mut items = request.into_inner();
        let mut uids = Vec::new();
        while let Some(item) = items.message().await? {
            match item.item {
                Some(Item::Begin(begin)) => assert_eq!(begin.epoch, *self.seen_epoch.lock().expect("lock")),
                Some(Item::Pod(intent)) => uids.push(intent.uid),
                Some(Item::End(end)) if end.pods as usize == uids.len() => {
                    *self.synced.lock().expect("lock") = uids;
                    return Ok(Response::new(proto::SyncReply::default()));
                }
                _ => break,
            }
        }
        Err(Code::SyncIncomplete.status("no end, or a wrong count"))
    }

    async fn apply(&self, request: Request<proto::ApplyRequest>) -> Result<Response<proto::ApplyReply>, Status> {
        let intent = request.into_inner().intent.unwrap_or_default();
        if intent.uid == "hang" {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(proto::ApplyReply { accepted: true, refused: None }))
    }

    async fn forget(&self, request: Request<proto::ForgetRequest>) -> Result<Response<proto::ForgetReply>, Status> {
        Err(Code::NotFound.status(format!("pod {} is not known", request.into_inner().uid)))
    }

    type WatchHostStream = Boxed<proto::HostStatus>;
    async fn watch_host(&self, _: Request<proto::WatchHostRequest>) -> Result<Response<Self::WatchHostStream>, Status> {
        Ok(Response::new(Box::pin(WatchStream::new(self.status.subscribe()).map(Ok))))
    }

    type LogsStream = Boxed<proto::LogsChunk>;
    async fn logs(&self, _: Request<proto::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        // Eight times the stream's window: flow control must carry it.
        let chunk = proto::LogsChunk { data: vec![7; 1 << 20].into() };
        Ok(Response::new(Box::pin(tokio_stream::iter((0..8).map(move |_| Ok(chunk.clone()))))))
    }

    type WatchStatusStream = Boxed<proto::StatusUpdate>;
    async fn watch_status(
        &self,
        _: Request<proto::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        unsupported()
    }

    type WatchEventsStream = Boxed<proto::PodEvent>;
    async fn watch_events(
        &self,
        _: Request<proto::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        unsupported()
    }

    type ExecStream = Boxed<proto::ExecOutput>;
    async fn exec(&self, _: Request<Streaming<proto::ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        unsupported()
    }

    type AttachStream = Boxed<proto::ExecOutput>;
    async fn attach(&self, _: Request<Streaming<proto::ExecInput>>) -> Result<Response<Self::AttachStream>, Status> {
        unsupported()
    }

    async fn usage_boots(
        &self,
        _: Request<proto::UsageBootsRequest>,
    ) -> Result<Response<proto::UsageBootsReply>, Status> {
        unsupported()
    }

    type PullUsageStream = Boxed<proto::UsageBatch>;
    async fn pull_usage(&self, _: Request<proto::PullUsageRequest>) -> Result<Response<Self::PullUsageStream>, Status> {
        unsupported()
    }

    async fn ack_usage(&self, _: Request<proto::AckUsageRequest>) -> Result<Response<proto::AckUsageReply>, Status> {
        unsupported()
    }

    async fn live_usage(&self, _: Request<proto::LiveUsageRequest>) -> Result<Response<proto::LiveUsageReply>, Status> {
        unsupported()
    }

    async fn list_images(
        &self,
        _: Request<proto::ListImagesRequest>,
    ) -> Result<Response<proto::ListImagesReply>, Status> {
        unsupported()
    }

    type PullImageStream = Boxed<proto::PullImageProgress>;
    async fn pull_image(&self, _: Request<proto::PullImageRequest>) -> Result<Response<Self::PullImageStream>, Status> {
        unsupported()
    }

    async fn remove_image(
        &self,
        _: Request<proto::RemoveImageRequest>,
    ) -> Result<Response<proto::RemoveImageReply>, Status> {
        unsupported()
    }

    type VerifyImagesStream = Boxed<proto::VerifiedLayer>;
    async fn verify_images(
        &self,
        _: Request<proto::VerifyImagesRequest>,
    ) -> Result<Response<Self::VerifyImagesStream>, Status> {
        unsupported()
    }

    async fn collect_images(
        &self,
        _: Request<proto::CollectImagesRequest>,
    ) -> Result<Response<proto::CollectImagesReply>, Status> {
        unsupported()
    }

    async fn prepare_images(
        &self,
        _: Request<proto::PrepareImagesRequest>,
    ) -> Result<Response<proto::PrepareImagesReply>, Status> {
        unsupported()
    }

    type WatchPreparedStream = Boxed<proto::PreparedImages>;
    async fn watch_prepared(
        &self,
        _: Request<proto::WatchPreparedRequest>,
    ) -> Result<Response<Self::WatchPreparedStream>, Status> {
        unsupported()
    }
}
