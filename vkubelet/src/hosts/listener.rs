//! The accept loop: limits, TLS, and the choice between enrolment and session.
//!
//! A connection that has not shown a certificate holds one of [`MAX_UNKNOWN`] places and each of its steps has a deadline, so
//! that slow or silent callers cost little and end by themselves. Sessions of enrolled hosts are limited by [`MAX_SESSIONS`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_api::identity::{Authority, HostPeer, tls};
use agent_api::proto::enrollment_server::EnrollmentServer;
use agent_api::transport::{self, ALPN_AGENT, ALPN_JOIN};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::HostsConfig;
use super::connections::Connections;
use super::enrollment::EnrollmentService;
use super::roster;
use super::session::{self, SessionContext};

const MAX_UNKNOWN: usize = 512;
const MAX_SESSIONS: usize = 8192;
const HANDSHAKE: Duration = Duration::from_secs(5);
const ENROLMENT: Duration = Duration::from_secs(15);
/// Largest enrolment request in bytes.
const MAX_JOIN: usize = 64 << 10;
/// After an accept that failed (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How soon a revocation made by another process takes effect on standing connections.
const ROSTER_PERIOD: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Doorkeeper {
    acceptor: TlsAcceptor,
    enrolment: EnrollmentService,
    session: Arc<SessionContext>,
    sessions: Arc<Semaphore>,
    shutdown: CancellationToken,
}

pub(super) fn start(
    socket: TcpListener,
    config: &HostsConfig,
    authority: Arc<Authority>,
    connections: Arc<Connections>,
    shutdown: CancellationToken,
) -> Result<(), tls::TlsError> {
    let names = vec![config.node_name.clone(), "localhost".to_owned()];
    let server = tls::listener(Arc::clone(&authority), names, vec![config.listen.ip()])?;
    let enrolment = EnrollmentService {
        authority,
        state_dir: config.state_dir.clone(),
        node_name: config.node_name.clone(),
        connections: Arc::clone(&connections),
        peer: None,
    };
    let session = Arc::new(SessionContext {
        connections: Arc::clone(&connections),
        state_dir: config.state_dir.clone(),
        node_name: config.node_name.clone(),
        version: config.version.clone(),
    });
    let door = Doorkeeper {
        acceptor: TlsAcceptor::from(server),
        enrolment,
        session,
        sessions: Arc::new(Semaphore::new(MAX_SESSIONS)),
        shutdown: shutdown.clone(),
    };
    tokio::spawn(watch_roster(config.state_dir.clone(), connections, shutdown.clone()));
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = accept(&socket, &door) => {}
        }
    });
    Ok(())
}

async fn accept(socket: &TcpListener, door: &Doorkeeper) {
    let unknown = Arc::new(Semaphore::new(MAX_UNKNOWN));
    loop {
        let Ok(place) = Arc::clone(&unknown).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, peer)) => {
                let door = door.clone();
                tokio::spawn(Box::pin(door.receive(stream, peer, place)));
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection of an agent");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Doorkeeper {
    async fn receive(self, stream: TcpStream, peer: SocketAddr, unknown: OwnedSemaphorePermit) {
        // Best effort: without it calls are slower, not wrong.
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "TLS handshake with an agent failed");
                return;
            }
            Err(_) => {
                tracing::debug!(%peer, "TLS handshake with an agent took too long");
                return;
            }
        };
        let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        match alpn.as_deref() {
            Some(ALPN_JOIN) => self.enrol(stream, peer).await,
            Some(ALPN_AGENT) => self.admit(stream, peer, unknown).await,
            _ => tracing::debug!(%peer, "a caller does not speak an agent's protocol"),
        }
    }

    async fn enrol(self, stream: TlsStream<TcpStream>, peer: SocketAddr) {
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let host = leaf.and_then(|leaf| HostPeer::from_certificate(leaf).ok());
        let service = EnrollmentService { peer: host, ..self.enrolment };
        let routes = Routes::new(EnrollmentServer::new(service).max_decoding_message_size(MAX_JOIN));
        let serving = transport::serve(stream, routes, self.shutdown);
        match tokio::time::timeout(ENROLMENT, serving).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%peer, error = &error as &dyn std::error::Error, "enrolment call failed"),
            Err(_) => tracing::debug!(%peer, "an enrolment call took too long"),
        }
    }

    async fn admit(self, stream: TlsStream<TcpStream>, peer: SocketAddr, unknown: OwnedSemaphorePermit) {
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let host = match leaf.map(HostPeer::from_certificate) {
            Some(Ok(host)) => host,
            Some(Err(error)) => {
                tracing::warn!(%peer, error = &error as &dyn std::error::Error, "a certificate of our CA is no host's");
                return;
            }
            None => {
                tracing::debug!(%peer, "a caller wants an agent's connection without a certificate");
                return;
            }
        };
        let Ok(_place) = Arc::clone(&self.sessions).try_acquire_owned() else {
            tracing::error!(host.id = %host.host_id, limit = MAX_SESSIONS, "too many agents are connected");
            return;
        };
        drop(unknown);
        session::run(&self.session, stream, host, peer, self.shutdown).await;
    }
}

/// Ends the connections of hosts that were revoked or took another key.
async fn watch_roster(state_dir: PathBuf, connections: Arc<Connections>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(ROSTER_PERIOD);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let roster = match roster::read(&state_dir) {
            Ok(roster) => roster,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot read the enrolled hosts");
                continue;
            }
        };
        for host in connections.list() {
            let known = roster.get(host.handle.host_id());
            if !known.is_some_and(|known| known.revoked_unix.is_none() && known.key == host.key) {
                tracing::warn!(
                    host.id = host.handle.host_id(),
                    "the host is not enrolled any more: its connection ends"
                );
                host.handle.close();
            }
        }
    }
}
