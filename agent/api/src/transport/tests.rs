use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::*;
use crate::codes::{Code, StatusExt};
use crate::proto::enrollment_client::EnrollmentClient;
use crate::proto::enrollment_server::{Enrollment, EnrollmentServer};
use crate::proto::{JoinReply, JoinRequest, RenewRequest};

/// The smallest service of the wire stands for the agent's here: the transport does not look at it.
struct Echo;

#[tonic::async_trait]
impl Enrollment for Echo {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        match request.token.as_str() {
            "fenced" => Err(Code::EpochFenced.status("epoch 1 is lower than 2")),
            "hang" => std::future::pending().await,
            _ => Ok(Response::new(JoinReply { node_name: request.host_id, ..JoinReply::default() })),
        }
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<JoinReply>, Status> {
        Err(Code::Unsupported.status("not in this fake"))
    }
}

fn routes() -> Routes {
    Routes::new(EnrollmentServer::new(Echo))
}

fn ask(token: &str) -> JoinRequest {
    JoinRequest { token: token.into(), host_id: "edge-1".into(), ..JoinRequest::default() }
}

#[tokio::test]
async fn the_accepting_side_calls_the_dialling_side() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let shutdown = CancellationToken::new();
    let agent = tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            let stream = tokio::net::TcpStream::connect(address).await.expect("dial");
            serve(stream, routes(), shutdown).await
        }
    });
    let (stream, _) = listener.accept().await.expect("accept");
    let caller = Caller::connect(stream).await.expect("channel");
    let mut client = EnrollmentClient::new(caller.channel());
    let reply = client.join(ask("")).await.expect("answer").into_inner();
    assert_eq!(reply.node_name, "edge-1");
    let status = client.join(ask("fenced")).await.expect_err("fenced");
    assert!(status.is_fenced() && !status.is_retryable());
    assert!(caller.is_alive(Duration::from_secs(5)).await);

    shutdown.cancel();
    agent.await.expect("task").expect("served");
    caller.link().ended().await;
    assert!(!caller.is_alive(Duration::from_secs(5)).await);
    let status = client.join(ask("")).await.expect_err("over");
    assert!(status.is_unanswered(), "{status:?}");
}

#[tokio::test]
async fn closing_the_link_ends_both_sides_with_a_call_in_flight() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let agent = tokio::spawn(serve(far, routes(), CancellationToken::new()));
    let caller = Caller::connect(near).await.expect("channel");
    let mut client = EnrollmentClient::new(caller.channel());
    let pending = tokio::spawn(async move { client.join(ask("hang")).await });
    assert!(caller.is_alive(Duration::from_secs(5)).await);
    caller.link().close();
    let status = pending.await.expect("task").expect_err("cut");
    assert!(status.is_unanswered() || status.error_code() == Code::Internal, "{status:?}");
    caller.link().ended().await;
    agent.await.expect("task").expect("ended");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_hanging_call() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let shutdown = CancellationToken::new();
    let agent = tokio::spawn(serve(far, routes(), shutdown.clone()));
    let caller = Caller::connect(near).await.expect("channel");
    let mut client = EnrollmentClient::new(caller.channel());
    let pending = tokio::spawn(async move { client.join(ask("hang")).await });
    assert!(caller.is_alive(Duration::from_secs(5)).await);
    let began = Instant::now();
    shutdown.cancel();
    agent.await.expect("task").expect("ended");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    pending.await.expect("task").expect_err("cut");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_dead_within_ten_seconds_on_either_side() {
    // The relay is the network: it stops carrying bytes without closing anything.
    let (near, relay_near) = tokio::io::duplex(1 << 16);
    let (relay_far, far) = tokio::io::duplex(1 << 16);
    let cut = CancellationToken::new();
    tokio::spawn({
        let cut = cut.clone();
        async move {
            let (mut a, mut b) = (relay_near, relay_far);
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut a, &mut b) => {}
                () = cut.cancelled() => {}
            }
            std::future::pending::<()>().await;
            drop((a, b));
        }
    });
    let agent = tokio::spawn(serve(far, routes(), CancellationToken::new()));
    let caller = Caller::connect(near).await.expect("channel");
    assert!(caller.is_alive(Duration::from_secs(5)).await);
    let began = tokio::time::Instant::now();
    cut.cancel();
    caller.link().ended().await;
    agent.await.expect("task").expect("ended");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_quiet_but_living_connection_stays() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let _agent = tokio::spawn(serve(far, routes(), CancellationToken::new()));
    let caller = Caller::connect(near).await.expect("channel");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!caller.link().has_ended());
    assert!(caller.is_alive(Duration::from_secs(5)).await);
}
