mod fake_agent;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use agent_api::codes::{Code, StatusExt};
use agent_api::identity::HostKey;
use agent_api::proto;
use agent_api::transport::preamble::Preamble;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::tokens::TokenOptions;
use super::*;
use fake_agent::{Credentials, FakeAgent, enrol, knock, renew};

struct Bench {
    hosts: Hosts,
    events: broadcast::Receiver<HostEvent>,
    state: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Bench {
    async fn new() -> Bench {
        Bench::with_state(tempfile::tempdir().expect("tempdir")).await
    }

    async fn with_state(state: tempfile::TempDir) -> Bench {
        let config = HostsConfig {
            listen: "127.0.0.1:0".parse().expect("address"),
            state_dir: state.path().to_owned(),
            node_name: "node-1".into(),
            version: "test".into(),
        };
        let shutdown = CancellationToken::new();
        let epochs = Arc::new(FileEpoch::new(state.path()));
        let hosts = Hosts::listen(config, epochs, shutdown.clone()).await.expect("listening");
        Bench { events: hosts.events(), hosts, state, shutdown }
    }

    fn token(&self, options: TokenOptions) -> String {
        tokens::create(self.state.path(), &options).expect("a token")
    }

    async fn enrol(&self, host_id: &str) -> Credentials {
        let token = self.token(TokenOptions::default());
        self.enrol_with(&token, host_id, Arc::new(HostKey::generate().expect("key"))).await.expect("enrolled")
    }

    async fn enrol_with(&self, token: &str, host_id: &str, key: Arc<HostKey>) -> Result<Credentials, tonic::Status> {
        enrol(self.hosts.local_addr(), self.hosts.ca_hash(), token, host_id, key).await
    }

    async fn event(&mut self) -> HostEvent {
        let event = tokio::time::timeout(Duration::from_secs(60), self.events.recv()).await;
        event.expect("an event in time").expect("no lag")
    }

    async fn connected(&mut self) -> ConnectedHost {
        loop {
            match self.event().await {
                HostEvent::Connected(host) => return host,
                HostEvent::Changed { .. } => {}
                other => panic!("expected a connection: {other:?}"),
            }
        }
    }

    async fn disconnected(&mut self) -> String {
        loop {
            match self.event().await {
                HostEvent::Disconnected { host_id, .. } => return host_id,
                HostEvent::Changed { .. } => {}
                other => panic!("expected the end of a connection: {other:?}"),
            }
        }
    }
}

fn intent(uid: &str) -> proto::Intent {
    proto::Intent { uid: uid.into(), ..proto::Intent::default() }
}

#[tokio::test]
async fn an_agent_enrols_connects_and_is_called() {
    let mut bench = Bench::new().await;
    let credentials = bench.enrol("edge-1").await;
    let agent = FakeAgent::new("edge-1");
    let stop = agent.start(bench.hosts.local_addr(), &credentials).await;
    let host = bench.connected().await;
    assert_eq!((host.handle.host_id(), host.status.capacity_pods), ("edge-1", 1));
    assert_eq!(bench.hosts.list().len(), 1);

    let handle = bench.hosts.handle("edge-1").expect("connected");
    assert!(handle.apply(intent("a")).await.expect("applied").accepted);
    handle.sync(["a", "b", "c"].map(intent), vec![]).await.expect("synced");
    assert_eq!(*agent.synced.lock().expect("lock"), ["a", "b", "c"]);
    handle.sync([], vec![]).await.expect("an empty set is complete too");
    assert!(agent.synced.lock().expect("lock").is_empty());
    assert!(handle.forget("a").await.expect_err("unknown").is_not_found());
    let mut logs = handle.logs(proto::LogsRequest::default()).await.expect("logs");
    let mut bytes = 0;
    while let Some(chunk) = logs.message().await.expect("chunk") {
        bytes += chunk.data.len();
    }
    assert_eq!(bytes, 8 << 20);

    agent.status.send_modify(|status| status.capacity_pods = 2);
    let changed = bench.event().await;
    assert!(matches!(&changed, HostEvent::Changed { status, .. } if status.capacity_pods == 2), "{changed:?}");
    stop.cancel();
    assert_eq!(bench.disconnected().await, "edge-1");
    assert!(bench.hosts.handle("edge-1").is_none() && bench.hosts.list().is_empty());
    assert!(handle.apply(intent("a")).await.expect_err("over").is_unanswered());
}

#[tokio::test]
async fn readers_that_have_stopped_reading_hold_up_nobody_else_on_their_host() {
    let mut bench = Bench::new().await;
    let credentials = bench.enrol("edge-1").await;
    let agent = FakeAgent::new("edge-1");
    let _stop = agent.start(bench.hosts.local_addr(), &credentials).await;
    let handle = bench.connected().await.handle;
    let mut stuck = Vec::new();
    let others = async {
        for _ in 0..100 {
            stuck.push(handle.logs(proto::LogsRequest::default()).await.expect("logs"));
        }
        // Each has as much under way as its window lets.
        for logs in &mut stuck {
            assert!(logs.message().await.expect("chunk").is_some());
        }
        handle.apply(intent("a")).await.expect("an answer");
        let mut logs = handle.logs(proto::LogsRequest::default()).await.expect("logs");
        let mut size = 0;
        while let Some(chunk) = logs.message().await.expect("chunk") {
            size += chunk.data.len();
        }
        size
    };
    let size = tokio::time::timeout(Duration::from_secs(60), others).await.expect("others are served");
    assert_eq!(size, 8 << 20);
}

#[tokio::test]
async fn a_second_living_agent_of_the_same_identity_is_refused_and_the_first_goes_on() {
    let mut bench = Bench::new().await;
    let credentials = bench.enrol("edge-1").await;
    let agent = FakeAgent::new("edge-1");
    let _stop = agent.start(bench.hosts.local_addr(), &credentials).await;
    let first = bench.connected().await;
    let (_, welcome) = knock(bench.hosts.local_addr(), &credentials).await.expect("an answer");
    let Preamble::Refused { code, message } = welcome else { panic!("admitted") };
    assert_eq!(code, Code::HostConnected);
    assert!(message.contains("edge-1") && message.contains("127.0.0.1"), "{message}");
    assert!(matches!(bench.event().await, HostEvent::Refused { code: Code::HostConnected, .. }));
    assert!(first.handle.apply(intent("a")).await.expect("the first goes on").accepted);
}

#[tokio::test]
async fn an_agent_that_restarted_takes_over_from_its_silent_connection() {
    let mut bench = Bench::new().await;
    let credentials = bench.enrol("edge-1").await;
    let agent = FakeAgent::new("edge-1");
    // The first one's host lost power: its socket stays open here and nothing answers.
    let frozen = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let (address, agent, credentials) = (bench.hosts.local_addr(), agent.clone(), credentials.clone());
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (up, ready) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let stop = agent.start(address, &credentials).await;
                // Served until Hello is through, then the thread stops polling.
                let (done, freeze) = tokio::sync::oneshot::channel();
                let _ = up.send(done);
                let _ = freeze.await;
                drop(stop);
            });
            let _ = wait.recv();
            drop(runtime);
        });
        let done: tokio::sync::oneshot::Sender<()> = ready.await.expect("connected");
        let first = bench.connected().await;
        done.send(()).expect("freeze");
        (first, go, thread)
    };
    let began = Instant::now();
    let _stop = agent.start(bench.hosts.local_addr(), &credentials).await;
    assert_eq!(bench.disconnected().await, "edge-1");
    let second = bench.connected().await;
    assert!(second.handle.connection() > frozen.0.handle.connection());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(!frozen.0.handle.is_connected());
    frozen.1.send(()).expect("thaw");
    tokio::task::spawn_blocking(move || frozen.2.join()).await.expect("join").expect("thread");
}

#[tokio::test]
async fn another_key_needs_a_rejoin_token_which_ends_the_old_keys_connection() {
    let mut bench = Bench::new().await;
    let old = bench.enrol("edge-1").await;
    let agent = FakeAgent::new("edge-1");
    let _stop = agent.start(bench.hosts.local_addr(), &old).await;
    bench.connected().await;

    let key = Arc::new(HostKey::generate().expect("key"));
    let plain = bench.token(TokenOptions::default());
    let refused = bench.enrol_with(&plain, "edge-1", Arc::clone(&key)).await.err().expect("refused");
    assert_eq!(refused.error_code(), Code::HostEnrolled);
    assert!(matches!(bench.event().await, HostEvent::Refused { code: Code::HostEnrolled, .. }));

    let rejoin = bench.token(TokenOptions { rejoin: true, ..TokenOptions::default() });
    let new = bench.enrol_with(&rejoin, "edge-1", key).await.expect("rejoined");
    assert_eq!(bench.disconnected().await, "edge-1");
    let (_, welcome) = knock(bench.hosts.local_addr(), &old).await.expect("an answer");
    assert!(matches!(welcome, Preamble::Refused { code: Code::CertificateRefused, .. }), "{welcome:?}");
    assert!(matches!(bench.event().await, HostEvent::Refused { .. }));
    let _stop = agent.start(bench.hosts.local_addr(), &new).await;
    bench.connected().await;
}

#[tokio::test]
async fn a_revoked_host_is_disconnected_and_not_let_in_again() {
    let mut bench = Bench::new().await;
    let credentials = bench.enrol("edge-1").await;
    let _stop = FakeAgent::new("edge-1").start(bench.hosts.local_addr(), &credentials).await;
    bench.connected().await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("now").as_secs();
    assert!(roster::revoke(bench.state.path(), "edge-1", now).expect("revoked"));
    assert_eq!(bench.disconnected().await, "edge-1");
    let (_, welcome) = knock(bench.hosts.local_addr(), &credentials).await.expect("an answer");
    assert!(matches!(welcome, Preamble::Refused { code: Code::Revoked, .. }), "{welcome:?}");
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_host_and_key_only() {
    let mut bench = Bench::new().await;
    let credentials = bench.enrol("edge-1").await;
    let address = bench.hosts.local_addr();
    let renewed = renew(address, &credentials, &credentials.key).await.expect("renewed");
    assert_ne!(renewed.certificate_pem, credentials.certificate_pem);
    let _stop = FakeAgent::new("edge-1").start(address, &renewed).await;
    assert_eq!(bench.connected().await.handle.host_id(), "edge-1");
    let other = HostKey::generate().expect("key");
    let refused = renew(address, &credentials, &other).await.err().expect("another key");
    assert_eq!(refused.error_code(), Code::InvalidArgument);
    assert!(roster::revoke(bench.state.path(), "edge-1", 1).expect("revoked"));
    let refused = renew(address, &credentials, &credentials.key).await.err().expect("revoked");
    assert_eq!(refused.error_code(), Code::Revoked);
}

#[tokio::test]
async fn a_bad_token_enrols_nobody() {
    let bench = Bench::new().await;
    let key = Arc::new(HostKey::generate().expect("key"));
    let refused = bench.enrol_with("nlj_guess", "edge-1", Arc::clone(&key)).await.err().expect("refused");
    assert_eq!(refused.error_code(), Code::TokenRefused);
    assert!(roster::read(bench.state.path()).expect("roster").is_empty());
    let once = bench.token(TokenOptions { uses: Some(1), ..TokenOptions::default() });
    bench.enrol_with(&once, "edge-1", Arc::clone(&key)).await.expect("first use");
    bench.enrol_with(&once, "edge-1", key).await.expect("the same join repeated");
    let other = Arc::new(HostKey::generate().expect("key"));
    let refused = bench.enrol_with(&once, "edge-2", other).await.err().expect("refused");
    assert_eq!(refused.error_code(), Code::TokenRefused);
}

#[tokio::test]
async fn an_agent_that_has_seen_a_higher_epoch_is_left_alone() {
    let mut bench = Bench::new().await;
    let credentials = bench.enrol("edge-1").await;
    let agent = FakeAgent::new("edge-1");
    *agent.seen_epoch.lock().expect("lock") = u64::MAX;
    let _stop = agent.start(bench.hosts.local_addr(), &credentials).await;
    let event = bench.event().await;
    assert!(matches!(event, HostEvent::Refused { code: Code::EpochFenced, .. }), "{event:?}");
    assert!(bench.hosts.handle("edge-1").is_none());
}

#[tokio::test]
async fn the_next_life_has_a_higher_epoch_and_knows_its_hosts() {
    let bench = Bench::new().await;
    let (epoch, hash) = (bench.hosts.epoch(), bench.hosts.ca_hash());
    let credentials = bench.enrol("edge-1").await;
    bench.shutdown.cancel();
    let mut bench = Bench::with_state(bench.state).await;
    assert!(bench.hosts.epoch() > epoch);
    assert_eq!(bench.hosts.ca_hash(), hash);
    let agent = FakeAgent::new("edge-1");
    *agent.not_ready_for.lock().expect("lock") = 3;
    let _stop = agent.start(bench.hosts.local_addr(), &credentials).await;
    bench.connected().await;
    assert_eq!(*agent.seen_epoch.lock().expect("lock"), bench.hosts.epoch());
}

#[tokio::test]
async fn an_agent_that_says_another_name_than_its_certificate_is_refused() {
    let mut bench = Bench::new().await;
    let credentials = bench.enrol("edge-1").await;
    let _stop = FakeAgent::new("edge-2").start(bench.hosts.local_addr(), &credentials).await;
    assert!(matches!(bench.event().await, HostEvent::Refused { code: Code::CertificateRefused, .. }));
}

#[tokio::test]
async fn silent_callers_are_dropped_and_do_not_block_others() {
    let mut bench = Bench::new().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(bench.hosts.local_addr()).await.expect("connect"));
    }
    let credentials = bench.enrol("edge-1").await;
    let _stop = FakeAgent::new("edge-1").start(bench.hosts.local_addr(), &credentials).await;
    bench.connected().await;
    for stream in &mut silent {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
        end.expect("dropped in time").ok();
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let bench = Bench::new().await;
    let config = HostsConfig {
        listen: bench.hosts.local_addr(),
        state_dir: bench.state.path().to_owned(),
        node_name: "node-1".into(),
        version: "test".into(),
    };
    let epochs = Arc::new(FileEpoch::new(bench.state.path()));
    let error = Hosts::listen(config, epochs, CancellationToken::new()).await.expect_err("in use");
    assert!(error.to_string().contains(&bench.hosts.local_addr().to_string()), "{error}");
}
