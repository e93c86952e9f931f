use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use agent_api::codes::{Code, StatusExt};
use agent_api::identity::{Authority, HostId, HostPeer, tls};
use agent_api::proto::enrollment_client::EnrollmentClient;
use agent_api::proto::enrollment_server::{Enrollment, EnrollmentServer};
use agent_api::proto::{JoinReply, JoinRequest, RenewRequest};
use agent_api::transport::{self, ALPN_JOIN, Caller, preamble::Preamble};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::*;

/// As much of a vkubelet as a link sees.
struct Server {
    authority: Arc<Authority>,
    listener: TcpListener,
    acceptor: TlsAcceptor,
    _dir: tempfile::TempDir,
}

#[derive(Clone)]
struct Desk(Arc<Authority>);

#[tonic::async_trait]
impl Enrollment for Desk {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        if request.token != "good" {
            return Err(Code::TokenRefused.status("the join token is unknown"));
        }
        let id = HostId::new(request.host_id).expect("host id");
        let (certificate_pem, _) = self.0.sign_host(&request.csr_pem, &id).expect("signed");
        let ca_pem = self.0.certificate_pem().to_owned();
        Ok(Response::new(JoinReply { certificate_pem, ca_pem, node_name: "node-1".into() }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<JoinReply>, Status> {
        let id = HostId::new("edge-1").expect("host id");
        let (certificate_pem, _) = self.0.sign_host(&request.into_inner().csr_pem, &id).expect("signed");
        Ok(Response::new(JoinReply { certificate_pem, ..JoinReply::default() }))
    }
}

impl Server {
    async fn new() -> Server {
        let dir = tempfile::tempdir().expect("tempdir");
        let authority = Arc::new(Authority::open_or_create(dir.path()).expect("CA"));
        let config = tls::listener(Arc::clone(&authority), vec![], vec![]).expect("listener");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        Server { authority, listener, acceptor: TlsAcceptor::from(config), _dir: dir }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("address")
    }

    async fn accept(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let (stream, _) = self.listener.accept().await.expect("accept");
        self.acceptor.accept(stream).await
    }

    /// Serves one enrolment.
    async fn enrol(&self) {
        let Ok(stream) = self.accept().await else { return };
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(ALPN_JOIN));
        let routes = Routes::new(EnrollmentServer::new(Desk(Arc::clone(&self.authority))));
        transport::serve(stream, routes, CancellationToken::new()).await.expect("served");
    }

    /// Welcomes one agent.
    async fn welcome(&self) -> Caller {
        let mut stream = self.accept().await.expect("handshake");
        Preamble::Welcome.write(&mut stream).await.expect("welcome");
        Caller::connect(stream).await.expect("caller")
    }

    fn options(&self, state_dir: &std::path::Path) -> JoinOptions {
        JoinOptions {
            vkubelet: self.address().to_string(),
            token: "good".into(),
            ca_hash: self.authority.hash(),
            host_id: HostId::new("edge-1").expect("id"),
            state_dir: state_dir.to_owned(),
            version: "test".into(),
        }
    }

    async fn joined(&self) -> (tempfile::TempDir, LinkIdentity) {
        let dir = tempfile::tempdir().expect("tempdir");
        let both = async { tokio::join!(join(self.options(dir.path())), self.enrol()) };
        let (joined, ()) = Box::pin(both).await;
        assert_eq!(joined.expect("joined").node_name, "node-1");
        let identity = load(dir.path()).expect("identity");
        (dir, identity)
    }
}

struct Running {
    state: watch::Receiver<LinkState>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// Any service does: the link does not look at what it serves.
fn run(identity: LinkIdentity, desk: &Server) -> Running {
    let routes = Routes::new(EnrollmentServer::new(Desk(Arc::clone(&desk.authority)))).prepare();
    let (sender, state) = watch::channel(LinkState::default());
    let shutdown = CancellationToken::new();
    let config = LinkConfig { identity, vkubelet: None, state_dir: "/nonexistent".into(), version: "test".into() };
    let task = tokio::spawn(serve(config, routes, sender, shutdown.clone()));
    Running { state, shutdown, task }
}

impl Running {
    async fn until(&mut self, what: impl Fn(&LinkState) -> bool) -> LinkState {
        let waiting = tokio::time::timeout(Duration::from_secs(60), self.state.wait_for(|state| what(state)));
        waiting.await.expect("in time").expect("running").clone()
    }

    async fn end(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(60), self.task).await.expect("in time").expect("task");
    }
}

#[tokio::test]
async fn a_join_leaves_a_whole_private_identity() {
    let server = Server::new().await;
    let (dir, identity) = server.joined().await;
    assert_eq!((identity.host_id.as_str(), identity.vkubelet), ("edge-1", server.address().to_string()));
    let pki = dir.path().join("pki");
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&pki), mode(&pki.join("identity.json"))), (0o700, 0o600));
    assert_eq!(std::fs::read_dir(pki).expect("list").count(), 1, "nothing else is left");
}

#[tokio::test]
async fn a_join_that_fails_says_why_and_leaves_no_identity() {
    let server = Server::new().await;
    let other = Server::new().await;
    let dir = tempfile::tempdir().expect("tempdir");
    let wrong_pin = JoinOptions { ca_hash: other.authority.hash(), ..server.options(dir.path()) };
    let (joined, ()) = tokio::join!(join(wrong_pin), server.enrol());
    assert!(matches!(joined, Err(JoinError::Dial(DialError::UntrustedServer { .. }))), "{joined:?}");

    let wrong_token = JoinOptions { token: "bad".into(), ..server.options(dir.path()) };
    let (joined, ()) = tokio::join!(join(wrong_token), server.enrol());
    assert!(matches!(&joined, Err(JoinError::Refused { code: Code::TokenRefused, .. })), "{joined:?}");

    let closed = JoinOptions { vkubelet: "127.0.0.1:1".into(), ..server.options(dir.path()) };
    let error = join(closed).await.expect_err("closed");
    assert!(matches!(&error, JoinError::Dial(DialError::Connect { .. })), "{error:?}");

    let plain = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let not_ours =
        JoinOptions { vkubelet: plain.local_addr().expect("address").to_string(), ..server.options(dir.path()) };
    let answer = async {
        let (mut stream, _) = plain.accept().await.expect("accept");
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    };
    let (joined, ()) = tokio::join!(join(not_ours), answer);
    assert!(matches!(joined, Err(JoinError::Dial(DialError::Handshake { .. }))), "{joined:?}");
    assert!(matches!(load(dir.path()), Err(IdentityError::NotJoined { .. })));
}

#[tokio::test]
async fn the_link_serves_and_comes_back_after_each_end() {
    let server = Server::new().await;
    let (_dir, identity) = server.joined().await;
    let mut running = run(identity, &server);
    for _ in 0..3 {
        let caller = server.welcome().await;
        running.until(|state| *state == LinkState::Connected).await;
        let answer = EnrollmentClient::new(caller.channel()).join(JoinRequest::default()).await;
        assert_eq!(answer.expect_err("an answer").error_code(), Code::TokenRefused);
        caller.link().close();
        running.until(|state| matches!(state, LinkState::Disconnected { needs_operator: false, .. })).await;
    }
    running.end().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_kept_with_the_same_key() {
    let server = Server::new().await;
    let (dir, identity) = server.joined().await;
    let address = server.address().to_string();
    let renewing = renew::renew(&identity, &address, dir.path(), "test");
    let both = async { tokio::join!(renewing, server.enrol()) };
    let (renewed, ()) = Box::pin(both).await;
    let renewed = renewed.expect("renewed");
    assert_ne!(renewed.certificate_pem, identity.certificate_pem);
    assert_eq!((&renewed.key_pem, &renewed.ca_pem), (&identity.key_pem, &identity.ca_pem));
    assert_eq!(load(dir.path()).expect("identity"), renewed);
}

#[tokio::test]
async fn a_refusal_reaches_the_operator_in_vkubelets_words() {
    let server = Server::new().await;
    let (_dir, identity) = server.joined().await;
    let mut running = run(identity, &server);
    let refuse = async |code, message: &str| {
        let mut stream = server.accept().await.expect("handshake");
        let refusal = Preamble::Refused { code, message: message.into() };
        refusal.write(&mut stream).await.expect("refusal");
    };
    refuse(Code::Revoked, "host edge-1 was revoked").await;
    let state = running.until(|state| matches!(state, LinkState::Disconnected { .. })).await;
    let LinkState::Disconnected { reason, needs_operator } = state else { unreachable!("waited for it") };
    assert!(reason.contains("host edge-1 was revoked") && needs_operator, "{reason}");
    refuse(Code::HostConnected, "another agent is connected").await;
    running.until(|state| matches!(state, LinkState::Disconnected { needs_operator: false, .. })).await;
    let _caller = server.welcome().await;
    running.until(|state| *state == LinkState::Connected).await;
    running.end().await;
}

#[tokio::test]
async fn another_vkubelet_at_the_address_is_not_served() {
    let (server, other) = (Server::new().await, Server::new().await);
    let (_dir, identity) = server.joined().await;
    let misled = LinkIdentity { vkubelet: other.address().to_string(), ..identity };
    let mut running = run(misled, &server);
    assert!(other.accept().await.is_err());
    let state = running.until(|state| matches!(state, LinkState::Disconnected { .. })).await;
    assert!(matches!(&state, LinkState::Disconnected { needs_operator: true, .. }), "{state:?}");
    running.end().await;
}

#[tokio::test]
async fn a_server_that_says_nothing_does_not_hold_the_link_for_ever() {
    let server = Server::new().await;
    let (_dir, identity) = server.joined().await;
    let running = run(identity, &server);
    let mut stream = server.accept().await.expect("handshake");
    let peer = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(HostPeer::from_certificate);
    assert_eq!(peer.expect("a certificate").expect("a host").host_id.as_str(), "edge-1");
    // Ending the program must not wait for the welcome either.
    running.end().await;
    let mut byte = [0];
    let read = tokio::io::AsyncReadExt::read(&mut stream, &mut byte);
    let end = tokio::time::timeout(Duration::from_secs(60), read).await.expect("in time");
    assert!(matches!(end, Ok(0) | Err(_)));
}
