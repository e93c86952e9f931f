//! A registry on a loopback port that can be told to misbehave, request by request.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::Semaphore,
};

use super::images::Made;

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    /// How many requests with this method and path came before.
    pub(crate) earlier: usize,
}

/// An answer, and how much of it really leaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Say nothing more after this many bytes of the body (0: not even the status).
    pub(crate) hang: Option<usize>,
    /// Send byte by byte with this pause in milliseconds.
    pub(crate) drip: Option<u64>,
    /// Say nothing before somebody opens these.
    pub(crate) gates: Vec<Arc<Gate>>,
}

/// Holds answers back, and knows how many.
#[derive(Debug)]
pub(crate) struct Gate {
    waiting: AtomicUsize,
    most: AtomicUsize,
    passes: Semaphore,
}

impl Gate {
    pub(crate) fn shut() -> Arc<Self> {
        Arc::new(Self { waiting: AtomicUsize::new(0), most: AtomicUsize::new(0), passes: Semaphore::new(0) })
    }

    /// Lets so many through.
    pub(crate) fn open(&self, answers: usize) {
        self.passes.add_permits(answers);
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// The most that ever waited at once.
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    fn enter(&self) {
        self.most.fetch_max(self.waiting.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    }

    async fn pass(&self) {
        self.passes.acquire().await.expect("never closed").forget();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        self
    }
}

type Hook = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

/// Serves images; `hook` may answer instead.
#[derive(Clone)]
pub(crate) struct FakeRegistry {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    blobs: Mutex<BTreeMap<String, Vec<u8>>>,
    tags: Mutex<BTreeMap<String, String>>,
    log: Mutex<Vec<Request>>,
    hook: Box<Hook>,
}

impl FakeRegistry {
    pub(crate) async fn start(hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Self {
        Self::listen(Box::new(hook), None).await
    }

    /// Over TLS, with a certificate for 127.0.0.1 of a CA of its own, given as PEM.
    pub(crate) async fn over_tls() -> (Self, Vec<u8>) {
        Self::certified(Box::new(|_| None)).await
    }

    /// The same, and `hook` may answer instead.
    pub(crate) async fn over_tls_with(hook: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Self {
        Self::certified(Box::new(hook)).await.0
    }

    async fn certified(hook: Box<Hook>) -> (Self, Vec<u8>) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("server config");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        (Self::listen(hook, Some(acceptor)).await, made.cert.pem().into_bytes())
    }

    async fn listen(hook: Box<Hook>, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let state = Arc::new(State { blobs: Mutex::default(), tags: Mutex::default(), log: Mutex::default(), hook });
        let serving = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(state, stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(state, stream).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, state }
    }

    pub(crate) async fn plain() -> Self {
        Self::start(|_| None).await
    }

    /// Makes an image pullable; gives its name.
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &Made) -> String {
        self.state.blobs.lock().expect("lock").extend(image.blobs.clone());
        self.state.tags.lock().expect("lock").insert(format!("{repository}:{tag}"), image.manifest.clone());
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Requests so far, `METHOD path`.
    pub(crate) fn log(&self) -> Vec<String> {
        let log = self.state.log.lock().expect("lock");
        log.iter().map(|r| format!("{} {}", r.method, r.path)).collect()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.log.lock().expect("lock").clone()
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.log().iter().filter(|l| l.contains(part)).count()
    }
}

async fn serve(state: Arc<State>, stream: impl AsyncRead + AsyncWrite) {
    let (read, mut write) = tokio::io::split(Box::pin(stream));
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(first)) = lines.next_line().await {
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        while let Ok(Some(line)) = lines.next_line().await {
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let request = {
            let mut log = state.log.lock().expect("lock");
            let earlier = log.iter().filter(|r| r.method == method && r.path == path).count();
            log.push(Request { method, path, headers, earlier });
            log[log.len() - 1].clone()
        };
        let reply = (state.hook)(&request).unwrap_or_else(|| answer(&state, &request));
        if send(&mut write, &request, &reply).await.is_err() {
            return;
        }
    }
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), request: &Request, reply: &Reply) -> std::io::Result<()> {
    reply.gates.iter().for_each(|gate| gate.enter());
    for gate in &reply.gates {
        gate.pass().await;
    }
    let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    let body: &[u8] = if request.method == "HEAD" { &[] } else { &reply.body };
    if reply.hang == Some(0) {
        std::future::pending::<()>().await;
    }
    write.write_all(head.as_bytes()).await?;
    let end = reply.cut.or(reply.hang).unwrap_or(body.len()).min(body.len());
    match reply.drip {
        None => write.write_all(&body[..end]).await?,
        Some(pause) => {
            for byte in &body[..end] {
                write.write_all(&[*byte]).await?;
                tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
            }
        }
    }
    write.flush().await?;
    if reply.hang.is_some() {
        std::future::pending::<()>().await;
    }
    if reply.cut.is_some() {
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    }
    Ok(())
}

fn answer(state: &State, request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default();
    // As a proxy is asked.
    let path = path.strip_prefix("http://").and_then(|rest| rest.find('/').map(|at| &rest[at..])).unwrap_or(path);
    let Some(rest) = path.strip_prefix("/v2/") else { return Reply::status(404) };
    let unknown =
        || Reply::status(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#);
    let blobs = state.blobs.lock().expect("lock");
    if let Some((repository, which)) = rest.split_once("/manifests/") {
        let tags = state.tags.lock().expect("lock");
        let digest = tags.get(&format!("{repository}:{which}")).map_or(which, String::as_str);
        let Some(bytes) = blobs.get(digest) else { return unknown() };
        return Reply::status(200)
            .with("Docker-Content-Digest", digest)
            .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
            .with("Content-Length", &bytes.len().to_string())
            .body(bytes.clone());
    }
    if let Some((_, digest)) = rest.split_once("/blobs/") {
        let Some(bytes) = blobs.get(digest) else { return unknown() };
        let from = request.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        return match from {
            None => Reply::status(200).body(bytes.clone()),
            Some(from) => {
                let from: usize = from;
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Reply::status(206).with("Content-Range", &range).body(bytes[from..].to_vec())
            }
        };
    }
    Reply::status(404)
}
