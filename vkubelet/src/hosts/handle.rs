//! A connected agent, as callers see it: one async method for each call, each with its deadline.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agent_api::codes::Code;
use agent_api::identity::HostId;
use agent_api::proto::agent_client::AgentClient;
use agent_api::proto::{self, sync_item::Item};
use agent_api::transport::{Caller, MAX_MESSAGE};
use futures::Stream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// An answer is due within this time, for calls that only record or read.
const ANSWER: Duration = Duration::from_secs(10);
/// A complete-set sync carries thousands of pods.
const SYNC: Duration = Duration::from_secs(120);
/// Removing an image deletes files.
const REMOVE: Duration = Duration::from_secs(60);

/// One connection to one agent. Cheap to clone. When the connection is over, each call answers [`Code::Unavailable`]; a later
/// connection of the same host has a handle of its own.
#[derive(Debug, Clone)]
pub struct HostHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    host_id: HostId,
    connection: u64,
    epoch: u64,
    caller: Caller,
    hello: proto::HelloReply,
}

impl HostHandle {
    pub(super) fn new(
        host_id: HostId,
        connection: u64,
        epoch: u64,
        caller: Caller,
        hello: proto::HelloReply,
    ) -> HostHandle {
        HostHandle { inner: Arc::new(Inner { host_id, connection, epoch, caller, hello }) }
    }

    /// The host's id, as its certificate says.
    pub fn host_id(&self) -> &str {
        self.inner.host_id.as_str()
    }

    /// Which connection this is; grows with each connection of any host in this process.
    pub fn connection(&self) -> u64 {
        self.inner.connection
    }

    /// The kernel's boot id of the host.
    pub fn boot_id(&self) -> &str {
        &self.inner.hello.boot_id
    }

    /// The agent's version, for people.
    pub fn agent_version(&self) -> &str {
        &self.inner.hello.version
    }

    /// Whether the connection stands, as far as is known.
    pub fn is_connected(&self) -> bool {
        !self.inner.caller.link().has_ended()
    }

    /// Ends when the connection is over.
    pub async fn disconnected(&self) {
        self.inner.caller.link().ended().await;
    }

    /// Ends the connection. The agent will dial again.
    pub fn close(&self) {
        self.inner.caller.link().close();
    }

    pub(super) fn caller(&self) -> &Caller {
        &self.inner.caller
    }

    fn client(&self) -> AgentClient<Channel> {
        client(&self.inner.caller)
    }

    /// Tells the complete desired set of this host. Applied only as a whole; see the reply's `held` and `refused`.
    /// `confirmed`: uids that may be removed without a deletion mark, since an operator has said so.
    pub async fn sync<I>(&self, pods: I, confirmed: Vec<String>) -> Result<proto::SyncReply, Status>
    where
        I: IntoIterator<Item = proto::Intent>,
        I::IntoIter: Send + 'static,
    {
        let begin = Item::Begin(proto::SyncBegin { epoch: self.inner.epoch, confirmed });
        let mut count = 0_u32;
        let mut pods = pods.into_iter();
        let mut ended = false;
        let rest = std::iter::from_fn(move || match pods.next() {
            Some(pod) => {
                count += 1;
                Some(Item::Pod(pod))
            }
            None if ended => None,
            None => {
                ended = true;
                Some(Item::End(proto::SyncEnd { pods: count }))
            }
        });
        let items = std::iter::once(begin).chain(rest).map(|item| proto::SyncItem { item: Some(item) });
        let mut client = self.client();
        within(SYNC, client.sync(futures::stream::iter(items))).await
    }

    /// Tells one pod's desired state.
    pub async fn apply(&self, intent: proto::Intent) -> Result<proto::ApplyReply, Status> {
        let request = proto::ApplyRequest { epoch: self.inner.epoch, intent: Some(intent) };
        within(ANSWER, self.client().apply(request)).await
    }

    /// The pod's object is gone: the agent may forget it.
    pub async fn forget(&self, uid: &str) -> Result<(), Status> {
        let request = proto::ForgetRequest { epoch: self.inner.epoch, uid: uid.to_owned() };
        within(ANSWER, self.client().forget(request)).await.map(|_: proto::ForgetReply| ())
    }

    /// All pods' statuses, then each change.
    pub async fn watch_status(&self) -> Result<Streaming<proto::StatusUpdate>, Status> {
        within(ANSWER, self.client().watch_status(proto::WatchStatusRequest {})).await
    }

    /// What happened to pods, after this sequence number.
    pub async fn watch_events(&self, after: u64) -> Result<Streaming<proto::PodEvent>, Status> {
        within(ANSWER, self.client().watch_events(proto::WatchEventsRequest { after })).await
    }

    /// The host's own status, now and on each change. (`Hosts` follows it already and tells by its events.)
    pub async fn watch_host(&self) -> Result<Streaming<proto::HostStatus>, Status> {
        within(ANSWER, self.client().watch_host(proto::WatchHostRequest {})).await
    }

    /// A container's log.
    pub async fn logs(&self, request: proto::LogsRequest) -> Result<Streaming<proto::LogsChunk>, Status> {
        within(ANSWER, self.client().logs(request)).await
    }

    /// Runs a command in a container. The first input says which.
    pub async fn exec<S>(&self, input: S) -> Result<Streaming<proto::ExecOutput>, Status>
    where
        S: Stream<Item = proto::ExecInput> + Send + 'static,
    {
        within(ANSWER, self.client().exec(input)).await
    }

    /// Connects with a running container's streams. The first input says which.
    pub async fn attach<S>(&self, input: S) -> Result<Streaming<proto::ExecOutput>, Status>
    where
        S: Stream<Item = proto::ExecInput> + Send + 'static,
    {
        within(ANSWER, self.client().attach(input)).await
    }

    /// The boots of which the host still has usage records.
    pub async fn usage_boots(&self) -> Result<proto::UsageBootsReply, Status> {
        within(ANSWER, self.client().usage_boots(proto::UsageBootsRequest { epoch: self.inner.epoch })).await
    }

    /// Usage records of a boot after a sequence number; with `follow` also each new one.
    pub async fn pull_usage(
        &self,
        boot_id: &str,
        after: u64,
        follow: bool,
    ) -> Result<Streaming<proto::UsageBatch>, Status> {
        let request = proto::PullUsageRequest { epoch: self.inner.epoch, boot_id: boot_id.to_owned(), after, follow };
        within(ANSWER, self.client().pull_usage(request)).await
    }

    /// Records up to this one are stored durably here.
    pub async fn ack_usage(&self, boot_id: &str, seq: u64) -> Result<(), Status> {
        let request = proto::AckUsageRequest { epoch: self.inner.epoch, boot_id: boot_id.to_owned(), seq };
        within(ANSWER, self.client().ack_usage(request)).await.map(|_: proto::AckUsageReply| ())
    }

    /// What these pods (empty: all) hold and have used, to this nanosecond.
    pub async fn live_usage(&self, uids: Vec<String>) -> Result<proto::LiveUsageReply, Status> {
        within(ANSWER, self.client().live_usage(proto::LiveUsageRequest { uids })).await
    }

    /// The images of the host.
    pub async fn list_images(&self) -> Result<proto::ListImagesReply, Status> {
        within(ANSWER, self.client().list_images(proto::ListImagesRequest {})).await
    }

    /// Pulls an image and tells its progress. `source`: `kubernetes`, `manifest` or `client`.
    pub async fn pull_image(
        &self,
        reference: &str,
        credentials: Vec<proto::RegistryCredential>,
        source: &str,
    ) -> Result<Streaming<proto::PullImageProgress>, Status> {
        let request = proto::PullImageRequest {
            epoch: self.inner.epoch,
            reference: reference.to_owned(),
            credentials,
            source: source.to_owned(),
        };
        within(ANSWER, self.client().pull_image(request)).await
    }

    /// Reads every layer; with `repair`, mends what can be.
    pub async fn verify_images(&self, repair: bool) -> Result<Streaming<proto::VerifiedLayer>, Status> {
        let request = proto::VerifyImagesRequest { epoch: self.inner.epoch, repair };
        within(ANSWER, self.client().verify_images(request)).await
    }

    /// Removes images that nobody uses or pins, and that have not been used for so long.
    pub async fn collect_images(&self, unused_for_seconds: u64) -> Result<proto::CollectImagesReply, Status> {
        let request = proto::CollectImagesRequest { epoch: self.inner.epoch, unused_for_seconds };
        within(REMOVE, self.client().collect_images(request)).await
    }

    /// The complete set of images that the host keeps ready.
    pub async fn prepare_images(&self, images: Vec<proto::PrepareImage>) -> Result<(), Status> {
        let request = proto::PrepareImagesRequest { epoch: self.inner.epoch, images };
        within(ANSWER, self.client().prepare_images(request)).await.map(|_: proto::PrepareImagesReply| ())
    }

    /// How it goes with them: all, and again on each change.
    pub async fn watch_prepared(&self) -> Result<Streaming<proto::PreparedImages>, Status> {
        within(ANSWER, self.client().watch_prepared(proto::WatchPreparedRequest {})).await
    }

    /// Removes an image; of one domain only (empty: the host's own), or every copy.
    pub async fn remove_image(&self, reference: &str, domain: Option<&str>) -> Result<proto::RemoveImageReply, Status> {
        let (reference, domain) = (reference.to_owned(), domain.map(str::to_owned));
        let request = proto::RemoveImageRequest { epoch: self.inner.epoch, reference, domain };
        within(REMOVE, self.client().remove_image(request)).await
    }
}

/// A client of the agent at the other end of a connection.
pub(super) fn client(caller: &Caller) -> AgentClient<Channel> {
    AgentClient::new(caller.channel()).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

/// Waits for an answer, or for a stream's beginning, for as long as the call may take.
pub(super) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Code::DeadlineExceeded.status(format!("no answer within {} s", deadline.as_secs()))),
    }
}
