use agent_api::usage::{Held, Kind, Used};
use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;
use crate::live::{LiveError, LiveInterval, NoLiveUsage};
use crate::store::sqlite::SqliteStore;
use crate::testing::Chain;

const TOKEN: &str = "0123456789abcdef0123";

struct Server {
    _dir: TempDir,
    router: Router,
    store: SqliteStore,
    chain: Chain,
}

impl Server {
    fn new(live: Arc<dyn LiveUsage>, authorizer: Arc<dyn Authorizer>, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("ledger.db")).unwrap();
        let billing = Billing { store: Arc::new(store.clone()), live, authorizer, plan: Arc::new(Plan::default()) };
        Self { _dir: dir, router: router(billing, limits), store, chain: Chain::new("h", "b") }
    }

    fn plain() -> Self {
        Self::new(Arc::new(NoLiveUsage), Arc::new(BearerToken::new(TOKEN)), Limits::default())
    }

    async fn pod(&mut self, pod: &str, start: u64) {
        let records =
            vec![self.chain.add(Kind::Start, pod, start, start), self.chain.add(Kind::Tick, pod, start, start + 10)];
        self.store.ingest("h", "b", records).await.unwrap();
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.ask(Method::GET, path, Some(&format!("Bearer {TOKEN}"))).await
    }

    async fn ask(&self, method: Method, path: &str, authorization: Option<&str>) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let response = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        if !status.is_success() {
            assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        }
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        if !status.is_success() {
            assert_eq!(value["status"], status.as_u16());
        }
        (status, value)
    }
}

#[tokio::test]
async fn nothing_but_healthz_is_answered_without_the_token() {
    let server = Server::plain();
    for path in ["/v1/records", "/v1/pods/x", "/v1/verify", "/openapi.json", "/nowhere"] {
        for authorization in
            [None, Some("Bearer wrong"), Some("Bearer "), Some("Basic 0123456789abcdef0123"), Some(TOKEN)]
        {
            let (status, problem) = server.ask(Method::GET, path, authorization).await;
            assert_eq!(
                (status, problem["type"].as_str()),
                (StatusCode::UNAUTHORIZED, Some("urn:nodeless:problem:unauthenticated")),
                "{path}"
            );
        }
    }
    assert_eq!(server.ask(Method::GET, "/healthz", None).await.0, StatusCode::OK);
    assert_eq!(
        server.ask(Method::POST, "/v1/records", Some(&format!("bearer {TOKEN}"))).await.0,
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert_eq!(server.get("/nowhere").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn pages_follow_the_cursor_to_the_end() {
    let mut server = Server::plain();
    for n in 0..5 {
        server.pod(&format!("p{n}"), n).await;
    }
    let (mut names, mut path) = (Vec::new(), "/v1/records?limit=2&namespace=default".to_owned());
    loop {
        let (status, page) = server.get(&path).await;
        assert_eq!(status, StatusCode::OK);
        names.extend(page["records"].as_array().unwrap().iter().map(|bill| bill["name"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        path = format!("/v1/records?limit=2&namespace=default&cursor={cursor}");
        let (status, problem) = server.get(&format!("/v1/records?cursor={cursor}")).await;
        assert_eq!((status, problem["parameter"].as_str()), (StatusCode::BAD_REQUEST, Some("cursor")));
    }
    assert_eq!(names, ["p0", "p1", "p2", "p3", "p4"]);
}

#[tokio::test]
async fn a_wrong_parameter_is_named() {
    let server = Server::plain();
    for (path, parameter) in [
        ("/v1/records?from=noon", "from"),
        ("/v1/records?color=red", "color"),
        ("/v1/pods/x?limit=2", "limit"),
        ("/v1/verify?deep=1", "deep"),
    ] {
        let (status, problem) = server.get(path).await;
        assert_eq!((status, problem["parameter"].as_str()), (StatusCode::BAD_REQUEST, Some(parameter)), "{path}");
    }
}

/// Tells that `sb-web`, started at 100, is still held at 5,000,000,123.
#[derive(Debug)]
struct Told(bool);

#[async_trait]
impl LiveUsage for Told {
    async fn live(&self, uid: &str) -> Result<Vec<LiveInterval>, LiveError> {
        if !self.0 {
            return Err(LiveError { host: "h".into(), source: "gone".into() });
        }
        if uid != "uid-web" {
            return Ok(Vec::new());
        }
        Ok(vec![LiveInterval {
            host: "h".into(),
            boot_id: "b".into(),
            now_ns: 5_000_000_123,
            now_wall_ns: 1_700_000_005_000_000_123,
            uid: uid.into(),
            namespace: "default".into(),
            name: "web".into(),
            sandbox_id: "sb-web".into(),
            start_ns: 100,
            start_wall_ns: 1_700_000_000_000_000_100,
            held: Held { milli_cpu: 500, memory_bytes: 1 << 30, ..Held::default() },
            used: Used { cpu_ns: 77, ..Used::default() },
            sandbox_kind: "namespace".into(),
            price_class: "on-demand".into(),
            images: Vec::new(),
        }])
    }
}

#[tokio::test]
async fn an_open_pod_is_counted_to_this_nanosecond() {
    let mut server = Server::new(Arc::new(Told(true)), Arc::new(BearerToken::new(TOKEN)), Limits::default());
    let (_, unseen) = server.get("/v1/pods/uid-web").await;
    assert_eq!(unseen["duration_ns"], 5_000_000_023_u64, "live before the first record arrives");
    server.pod("web", 100).await;
    let (status, bill) = server.get("/v1/pods/uid-web").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (&bill["duration_ns"], &bill["billed_seconds"], &bill["state"], &bill["live"]),
        (&5_000_000_023_u64.into(), &6.into(), &"open".into(), &true.into())
    );
    assert_eq!(bill["used"]["cpu_ns"], 77);
    assert_eq!(server.get("/v1/pods/uid-none").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn stored_figures_are_given_when_hosts_do_not_answer() {
    let mut server = Server::new(Arc::new(Told(false)), Arc::new(BearerToken::new(TOKEN)), Limits::default());
    server.pod("web", 100).await;
    let (status, bill) = server.get("/v1/pods/uid-web").await;
    assert_eq!((status, &bill["duration_ns"], &bill["live"]), (StatusCode::OK, &10.into(), &false.into()));
}

/// Alice may read `default`; the one who decides about Bob cannot be asked.
#[derive(Debug)]
struct Cluster;

#[async_trait]
impl Authorizer for Cluster {
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        if token == TOKEN {
            Ok(Identity { user: "alice".into(), groups: Vec::new() })
        } else {
            Err(AuthError::Unavailable("no answer".into()))
        }
    }

    async fn authorize(&self, identity: &Identity, namespace: Option<&str>) -> Result<(), AuthError> {
        match namespace {
            Some("default") => Ok(()),
            other => Err(AuthError::Forbidden {
                user: identity.user.clone(),
                what: other.unwrap_or("all namespaces").into(),
            }),
        }
    }
}

#[tokio::test]
async fn a_tenant_sees_its_own_namespace_only() {
    let mut server = Server::new(Arc::new(NoLiveUsage), Arc::new(Cluster), Limits::default());
    server.pod("web", 100).await;
    assert_eq!(server.get("/v1/records?namespace=default").await.0, StatusCode::OK);
    assert_eq!(server.get("/v1/pods/uid-web").await.0, StatusCode::OK);
    for path in ["/v1/records", "/v1/records?namespace=other", "/v1/verify", "/v1/pods/uid-unknown"] {
        assert_eq!(server.get(path).await.0, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(server.ask(Method::GET, "/v1/verify", Some("Bearer bob")).await.0, StatusCode::SERVICE_UNAVAILABLE);
}

/// Never answers.
#[derive(Debug)]
struct Silent;

#[async_trait]
impl LiveUsage for Silent {
    async fn live(&self, _uid: &str) -> Result<Vec<LiveInterval>, LiveError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_or_crowded_server_says_so() {
    let limits = Limits { concurrent: 1, request: Duration::from_secs(1), live: Duration::from_secs(60) };
    let server = Server::new(Arc::new(Silent), Arc::new(BearerToken::new(TOKEN)), limits);
    let (slow, crowded) = tokio::join!(server.get("/v1/pods/a"), server.get("/v1/pods/b"));
    assert_eq!((slow.0, crowded.0), (StatusCode::GATEWAY_TIMEOUT, StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test]
async fn the_openapi_document_lists_every_route_and_resolves() {
    let server = Server::plain();
    let (status, document) = server.get("/openapi.json").await;
    assert_eq!(status, StatusCode::OK);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let listed: Vec<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    // The routes, as the router's own source names them.
    let source = include_str!("mod.rs");
    let routed: Vec<&str> = source.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(routed.len(), 5);
    assert!(routed.iter().all(|route| listed.contains(route)) && listed.len() == routed.len(), "{listed:?} {routed:?}");
    // Every reference points to something, every operation names its security and at least one answer.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
    for (path, operations) in document["paths"].as_object().unwrap() {
        let operation = &operations["get"];
        assert!(operation["responses"].as_object().is_some_and(|answers| answers.contains_key("200")), "{path}");
        assert!(operation["security"].is_array(), "{path}");
        for name in path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()) {
            let declared = operation["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .any(|parameter| parameter["name"] == name && parameter["in"] == "path");
            assert!(declared, "{path} {name}");
        }
    }
    insta::assert_json_snapshot!(document);
}

#[test]
fn a_token_file_is_made_once_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("billing.token");
    let made = BearerToken::load_or_create(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        made.matches(text.trim())
            && BearerToken::load_or_create(&path).unwrap().matches(text.trim())
            && !made.matches("x")
    );
    std::fs::write(&path, "short\n").unwrap();
    assert!(matches!(BearerToken::load_or_create(&path), Err(TokenFileError::Short { .. })));
}
