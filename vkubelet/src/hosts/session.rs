//! One connection of an enrolled host, from the welcome to its end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_api::codes::{Code, StatusExt};
use agent_api::identity::HostPeer;
use agent_api::proto::{HelloReply, HelloRequest};
use agent_api::transport::{Caller, preamble::Preamble};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::connections::{ConnectedHost, Connections};
use super::handle::{self, HostHandle};
use super::{admission, roster};

const WELCOME: Duration = Duration::from_secs(5);
const HELLO: Duration = Duration::from_secs(10);
/// An agent that restarted may be busy with adopting its pods.
const HELLO_RETRIES: u32 = 150;
const HELLO_PAUSE: Duration = Duration::from_millis(200);
/// An older connection of the same host has this long to give a sign of life.
const PROBE: Duration = Duration::from_secs(2);
const WATCH_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct SessionContext {
    pub(super) connections: Arc<Connections>,
    pub(super) state_dir: PathBuf,
    pub(super) node_name: String,
    pub(super) version: String,
}

/// Runs the session; returns when the connection is over.
pub(super) async fn run<S>(
    context: &SessionContext,
    stream: S,
    host: HostPeer,
    peer: SocketAddr,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let host_id = host.host_id.clone();
    let Some(handle) = Box::pin(open(context, stream, &host, peer)).await else { return };
    tracing::info!(host.id = %host_id, %peer, version = handle.agent_version(), "host connected");
    let reason = tokio::select! {
        () = shutdown.cancelled() => {
            handle.close();
            "vkubelet shuts down".to_owned()
        }
        () = Box::pin(follow(context, &handle)) => {
            handle.caller().link().last_error().unwrap_or_else(|| "closed by the agent".to_owned())
        }
    };
    tracing::info!(host.id = %host_id, %peer, reason, "host disconnected");
    context.connections.disconnected(host_id.as_str(), handle.connection(), &reason);
}

/// Admits, welcomes, greets and enters the connection into the table.
async fn open<S>(context: &SessionContext, mut stream: S, host: &HostPeer, peer: SocketAddr) -> Option<HostHandle>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let host_id = host.host_id.as_str();
    let admission = context.connections.admission(host_id);
    let _one_at_a_time = admission.lock().await;
    let verdict = match admit(context, host).await {
        Ok(()) => Preamble::Welcome,
        Err(refusal) => refusal,
    };
    let written = tokio::time::timeout(WELCOME, verdict.write(&mut stream)).await;
    if let Preamble::Refused { code, message } = &verdict {
        tracing::warn!(host.id = host_id, %peer, code = %code, reason = message, "refused a host's connection");
        context.connections.refused(host_id, *code, message);
        // The line must arrive before the end: TLS says goodbye in order.
        let _ = tokio::time::timeout(WELCOME, tokio::io::AsyncWriteExt::shutdown(&mut stream)).await;
        return None;
    }
    if !matches!(written, Ok(Ok(()))) {
        return None;
    }
    let caller = match tokio::time::timeout(WELCOME, Caller::connect(stream)).await {
        Ok(Ok(caller)) => caller,
        Ok(Err(error)) => {
            tracing::warn!(host.id = host_id, %peer, error = &error as &dyn std::error::Error, "the agent does not serve");
            return None;
        }
        Err(_) => {
            tracing::warn!(host.id = host_id, %peer, "the agent does not begin to serve");
            return None;
        }
    };
    match greet(context, &caller).await {
        Ok(reply) if reply.host_id == host_id => Some(enter(context, host, peer, caller, reply)),
        Ok(reply) => {
            tracing::error!(
                host.id = host_id,
                said = reply.host_id,
                "an agent's host id is not that of its certificate"
            );
            let message = format!("the agent says that it is {}", reply.host_id);
            context.connections.refused(host_id, Code::CertificateRefused, &message);
            caller.link().close();
            None
        }
        Err(status) => {
            let code = status.error_code();
            tracing::error!(host.id = host_id, code = %code, reason = status.message(), "the agent refused our greeting");
            context.connections.refused(host_id, code, status.message());
            caller.link().close();
            None
        }
    }
}

async fn admit(context: &SessionContext, host: &HostPeer) -> Result<(), Preamble> {
    let host_id = host.host_id.as_str();
    let roster = roster::read(&context.state_dir).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot read the enrolled hosts");
        Preamble::Refused { code: Code::Internal, message: "vkubelet cannot read its state; its log says more".into() }
    })?;
    admission::check(host, roster.get(host_id))?;
    let Some(older) = context.connections.get(host_id) else { return Ok(()) };
    if older.handle.caller().is_alive(PROBE).await {
        return Err(admission::already_connected(host, &older.peer.to_string()));
    }
    older.handle.close();
    older.handle.disconnected().await;
    let reason = "the same host connected again and this connection gave no sign of life";
    context.connections.disconnected(host_id, older.handle.connection(), reason);
    Ok(())
}

async fn greet(context: &SessionContext, caller: &Caller) -> Result<HelloReply, Status> {
    let request = HelloRequest {
        vkubelet_id: context.node_name.clone(),
        epoch: context.connections.epoch(),
        protocol: agent_api::PROTOCOL,
        version: context.version.clone(),
    };
    let mut attempt = 0;
    loop {
        match handle::within(HELLO, handle::client(caller).hello(request.clone())).await {
            Err(status) if status.error_code() == Code::NotReady && attempt < HELLO_RETRIES => {
                attempt += 1;
                tokio::time::sleep(HELLO_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

fn enter(
    context: &SessionContext,
    host: &HostPeer,
    peer: SocketAddr,
    caller: Caller,
    mut reply: HelloReply,
) -> HostHandle {
    let status = reply.host.take().unwrap_or_default();
    let connections = &context.connections;
    let (connection, epoch) = (connections.next_connection(), connections.epoch());
    let handle = HostHandle::new(host.host_id.clone(), connection, epoch, caller, reply);
    connections.connected(ConnectedHost { handle: handle.clone(), status, peer, key: host.key });
    handle
}

/// Follows the host's own status until the connection is over.
async fn follow(context: &SessionContext, handle: &HostHandle) {
    let watch = async {
        loop {
            match handle.watch_host().await {
                Ok(mut updates) => {
                    while let Ok(Some(status)) = updates.message().await {
                        context.connections.changed(handle.host_id(), handle.connection(), status);
                    }
                }
                Err(status) => {
                    tracing::debug!(
                        host.id = handle.host_id(),
                        reason = status.message(),
                        "cannot watch the host's status"
                    );
                }
            }
            tokio::time::sleep(WATCH_PAUSE).await;
        }
    };
    tokio::select! {
        () = watch => {}
        () = handle.disconnected() => {}
    }
}
