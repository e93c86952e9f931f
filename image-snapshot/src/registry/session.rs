//! One image in a registry, seen with one caller's credentials.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use reqwest::{Method, Response, StatusCode, header};

use super::{
    auth::{Challenge, answer, challenge},
    body::{read, refuse, transport},
    endpoint::{Endpoint, Registries},
    pace::{Pace, longest},
    retry::Retry,
};
use crate::{
    Credential, Digest, Secret,
    manifest::{ACCEPT, Descriptor},
    reference::RegistryReference,
    source::{BlobSink, Fetched, Source, SourceError, Top, check},
    store::Access,
};

/// Connections that one blob may use up, however much each of them brought.
const MAX_CUTS: u32 = 50;

/// Credentials with the name under which the store remembers them.
pub(crate) type Named = (Credential, String);

/// Hears of a failure that will be tried again, and of the pause before.
pub(crate) type Notice = Box<dyn Fn(&SourceError, std::time::Duration) + Send + Sync>;

/// Those that speak of `image`, the most exact first, else in their order.
pub(crate) fn select<'a>(all: &'a [Named], image: &RegistryReference) -> Vec<&'a Named> {
    let mut found: Vec<&Named> = all.iter().filter(|(c, _)| c.matches(image)).collect();
    found.sort_by_key(|(c, _)| std::cmp::Reverse(c.scope.len()));
    found
}

/// See the module.
pub(crate) struct Session {
    registries: Arc<Registries>,
    image: RegistryReference,
    endpoints: Vec<Peer>,
    access: Mutex<Access>,
    notice: Notice,
}

/// An endpoint and how we stand with it.
struct Peer {
    endpoint: Endpoint,
    /// Tried in order; `None` is anonymous.
    candidates: Vec<Option<Named>>,
    standing: tokio::sync::Mutex<Standing>,
}

/// How requests are authorized at present.
#[derive(Default, Clone)]
struct Standing {
    /// Changes with each change.
    generation: u64,
    header: Option<Secret>,
    /// Which candidate made the header.
    candidate: usize,
    /// What the header answers.
    challenge: Option<Challenge>,
    /// The header has been accepted at least once, so a refusal means that it is too old.
    proven: bool,
}

impl Session {
    /// `credentials`: all that the caller has. `notice` hears of failures that will be tried again, and of the pause.
    pub(crate) fn new(
        registries: Arc<Registries>,
        image: RegistryReference,
        credentials: &[Named],
        notice: Notice,
    ) -> Self {
        let peer = |endpoint: Endpoint| {
            // A mirror gets only what is meant for it.
            let mut mine = select(credentials, &image.served_by(&endpoint.host));
            let mut candidates: Vec<Option<Named>> = mine.drain(..).cloned().map(Some).collect();
            candidates.push(None);
            Peer { endpoint, candidates, standing: tokio::sync::Mutex::default() }
        };
        let endpoints = registries.endpoints(&image).into_iter().map(peer).collect();
        Self { registries, image, endpoints, access: Mutex::default(), notice }
    }

    fn url(&self, peer: &Peer, kind: &str, which: &str) -> String {
        format!("{}/v2/{}/{kind}/{which}", peer.endpoint.base, self.image.repository())
    }

    /// One request, authorized as needed; any status that is not success is an error.
    async fn send(&self, peer: &Peer, method: Method, url: &str, from: Option<u64>) -> Result<Response, SourceError> {
        let client = self.registries.client(&peer.endpoint)?;
        let timeouts = &self.registries.timeouts;
        let what = format!("{method} {url}");
        // What the first said who knows who asks.
        let mut forbidden = None;
        loop {
            let standing = peer.standing.lock().await.clone();
            let mut request = client.request(method.clone(), url).header(header::ACCEPT, ACCEPT);
            if let Some(value) = &standing.header {
                request = request.header(header::AUTHORIZATION, value.expose());
            }
            if let Some(from) = from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let response = request.send().await.map_err(|e| transport(&what, timeouts.progress, e))?;
            let status = response.status();
            if status.is_success() {
                self.proved(peer, &standing).await;
                return Ok(response);
            }
            let refused = status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN;
            let next = if refused { self.reauthorize(peer, &standing, &response).await } else { Ok(false) };
            let named = standing.header.is_some() && peer.candidates[standing.candidate].is_some();
            let error = match next {
                Ok(true) if named && status == StatusCode::FORBIDDEN && forbidden.is_none() => {
                    forbidden = Some((refuse(&what, response, timeouts.progress).await, standing));
                    continue;
                }
                Ok(true) => continue,
                Ok(false) => refuse(&what, response, timeouts.progress).await,
                Err(error) => error,
            };
            return Err(match forbidden {
                // That others, or nobody, are not let in either says less.
                Some((said, known)) if !error.is_transient() => {
                    self.go_back(peer, &standing, known).await;
                    said
                }
                _ => error,
            });
        }
    }

    /// Asks again as before, after others were tried in vain.
    async fn go_back(&self, peer: &Peer, tried: &Standing, before: Standing) {
        let mut standing = peer.standing.lock().await;
        if standing.generation == tried.generation && !standing.proven {
            *standing = Standing { generation: tried.generation + 1, ..before };
        }
    }

    /// Notes by which right an answer was given.
    async fn proved(&self, peer: &Peer, used: &Standing) {
        let right = match (&used.header, &peer.candidates[used.candidate]) {
            (Some(_), Some((_, fingerprint))) => Access { public: false, credentials: [fingerprint.clone()].into() },
            _ => Access { public: true, ..Access::default() },
        };
        {
            let mut access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
            *access = std::mem::take(&mut *access).merge(right);
        }
        let mut standing = peer.standing.lock().await;
        if standing.generation == used.generation {
            standing.proven = true;
        }
    }

    /// After a refusal: finds the next thing to try. False: there is none.
    async fn reauthorize(&self, peer: &Peer, used: &Standing, response: &Response) -> Result<bool, SourceError> {
        let mut standing = peer.standing.lock().await;
        if standing.generation != used.generation {
            return Ok(true);
        }
        // Who knows a name and refuses it need not ask for another: the next one answers the question of before.
        let asked = standing.challenge.clone().filter(|_| !standing.proven);
        let Some(challenge) = challenge(response.headers()).or(asked) else {
            return Ok(false);
        };
        let client = match &challenge {
            Challenge::Bearer { realm, .. } => self.registries.token_client(&peer.endpoint, realm)?,
            Challenge::Basic => self.registries.client(&peer.endpoint)?,
        };
        let stale = standing.header.is_some() && standing.proven && response.status() == StatusCode::UNAUTHORIZED;
        let first = match (&standing.header, stale) {
            (None, _) => 0,
            (Some(_), true) => standing.candidate,
            (Some(_), false) => standing.candidate + 1,
        };
        let mut last_refusal = None;
        for (index, candidate) in peer.candidates.iter().enumerate().skip(first) {
            let auth = candidate.as_ref().map(|(c, _)| &c.auth);
            let timeouts = &self.registries.timeouts;
            let answer = answer(&client, &peer.endpoint, self.image.repository(), &challenge, auth, timeouts).await;
            match answer {
                Ok(None) => {}
                Ok(Some(value)) => {
                    *standing = Standing {
                        generation: used.generation + 1,
                        header: Some(value),
                        candidate: index,
                        challenge: Some(challenge),
                        proven: false,
                    };
                    return Ok(true);
                }
                Err(error @ SourceError::Unauthorized { .. }) => last_refusal = Some(error),
                Err(error) => return Err(error),
            }
        }
        last_refusal.map_or(Ok(false), Err)
    }

    fn attempts(&self) -> Attempts<'_> {
        Attempts { session: self, index: 0, retry: Retry::new(&self.registries.timeouts) }
    }

    /// After a failure: waits, or gives the error back when this server is not to be asked again.
    async fn pause(&self, retry: &mut Retry<'_>, error: SourceError) -> Result<(), SourceError> {
        let Some(pause) = retry.after(&error) else { return Err(error) };
        (self.notice)(&error, pause);
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn document(
        &self,
        kind: &str,
        which: &str,
        limit: u64,
        want: Option<&Digest>,
    ) -> Result<Fetched, SourceError> {
        let mut attempts = self.attempts();
        loop {
            match self.document_once(attempts.peer(), kind, which, limit, want).await {
                Ok(document) => return Ok(document),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    async fn document_once(
        &self,
        peer: &Peer,
        kind: &str,
        which: &str,
        limit: u64,
        want: Option<&Digest>,
    ) -> Result<Fetched, SourceError> {
        let url = self.url(peer, kind, which);
        let response = self.send(peer, Method::GET, &url, None).await?;
        let content_type = header_text(&response, header::CONTENT_TYPE.as_str());
        let said = said_digest(&response);
        let what = format!("GET {url}");
        let bytes = read(&what, response, limit, self.registries.timeouts.progress).await?;
        let digest = match want.or(said.as_ref()) {
            Some(want) => {
                check(what, &bytes, want)?;
                want.clone()
            }
            None => Digest::sha256(&bytes),
        };
        Ok(Fetched { bytes, content_type, digest })
    }

    fn which(&self) -> String {
        match (self.image.digest(), self.image.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or(crate::reference::DEFAULT_TAG).to_owned(),
        }
    }

    /// A blob from one server, in as many connections as it takes: what one has brought, the next goes on with.
    async fn blob_parts(&self, peer: &Peer, url: &str, want: u64, sink: &mut BlobSink) -> Result<(), SourceError> {
        let mut retry = Retry::new(&self.registries.timeouts);
        let mut cuts = 0;
        loop {
            let before = sink.received();
            let mut result = self.blob_part(peer, url, sink).await;
            let got = sink.received();
            if result.is_ok() && got < want {
                result = Err(SourceError::Truncated { what: format!("GET {url}"), got, want });
            }
            match result {
                Ok(()) => return Ok(()),
                // The connection broke on the very last byte.
                Err(error) if error.is_transient() && got == want && got > 0 => return Ok(()),
                Err(error) => {
                    cuts += 1;
                    if got > before && cuts < MAX_CUTS {
                        retry.reset();
                    }
                    self.pause(&mut retry, error).await?;
                }
            }
        }
    }

    /// One connection's worth of a blob.
    async fn blob_part(&self, peer: &Peer, url: &str, sink: &mut BlobSink) -> Result<(), SourceError> {
        let what = format!("GET {url}");
        let from = sink.received();
        let mut response = self.send(peer, Method::GET, url, (from > 0).then_some(from)).await?;
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if from > 0 => {
                let range = header_text(&response, header::CONTENT_RANGE.as_str()).unwrap_or_default();
                if !range.starts_with(&format!("bytes {from}-")) {
                    return Err(SourceError::Protocol { what, problem: "another range than the one asked for" });
                }
                0
            }
            // The registry knows no ranges and begins again.
            _ => from,
        };
        let waited = self.registries.timeouts.progress;
        let mut pace = Pace::new(waited);
        loop {
            let asked = Instant::now();
            let Some(mut bytes) = response.chunk().await.map_err(|e| transport(&what, waited, e))? else {
                return Ok(());
            };
            let enough = pace.came(asked.elapsed(), bytes.len() as u64);
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            sink.push(&what, bytes.split_off(skipped as usize)).await?;
            let least = pace.least();
            enough.map_err(|came| SourceError::TooSlow { what: what.clone(), came, least, after: waited })?;
        }
    }
}

#[async_trait]
impl Source for Session {
    async fn top(&self) -> Result<Top, SourceError> {
        let limit = self.registries.document_bytes;
        self.document("manifests", &self.which(), limit, self.image.digest()).await.map(Top::Document)
    }

    async fn head(&self) -> Result<Option<Digest>, SourceError> {
        let mut attempts = self.attempts();
        loop {
            let peer = attempts.peer();
            let url = self.url(peer, "manifests", &self.which());
            match self.send(peer, Method::HEAD, &url, None).await {
                Ok(response) => return Ok(said_digest(&response)),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Fetched, SourceError> {
        let limit = self.registries.document_bytes;
        let which = descriptor.digest.to_string();
        self.document("manifests", &which, limit, Some(&descriptor.digest)).await
    }

    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let limit = self.registries.document_bytes;
        let which = descriptor.digest.to_string();
        Ok(self.document("blobs", &which, limit, Some(&descriptor.digest)).await?.bytes)
    }

    fn servers(&self) -> Vec<&str> {
        self.endpoints.iter().map(|peer| peer.endpoint.host.as_str()).collect()
    }

    async fn blob(&self, descriptor: &Descriptor, server: usize, mut sink: BlobSink) -> Result<(), SourceError> {
        let peer = &self.endpoints[server];
        let url = self.url(peer, "blobs", &descriptor.digest.to_string());
        let what = format!("GET {url}");
        let (want, after) = (descriptor.size, longest(self.registries.timeouts.layer, descriptor.size));
        let parts = tokio::time::timeout(after, self.blob_parts(peer, &url, want, &mut sink)).await;
        parts
            .unwrap_or_else(|_| Err(SourceError::Overdue { what: what.clone(), got: sink.received(), want, after }))?;
        sink.finish(&what).await
    }

    async fn offers(&self, descriptor: &Descriptor) -> Result<bool, SourceError> {
        // The registry itself: what a mirror says of blobs that it does not guard proves nothing.
        let Some(peer) = self.endpoints.last() else { return Ok(false) };
        let url = self.url(peer, "blobs", &descriptor.digest.to_string());
        match self.send(peer, Method::HEAD, &url, None).await {
            Ok(_) => Ok(true),
            Err(SourceError::NotFound { .. } | SourceError::Unauthorized { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn access(&self) -> Access {
        self.access.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn repository(&self) -> Option<String> {
        Some(self.image.name())
    }
}

/// Endpoints in turn, with retries at each, for what is small and taken as a whole. The last endpoint's error counts: it is the registry itself.
struct Attempts<'a> {
    session: &'a Session,
    index: usize,
    retry: Retry<'a>,
}

impl<'a> Attempts<'a> {
    fn peer(&self) -> &'a Peer {
        &self.session.endpoints[self.index]
    }

    /// After a failure: waits, or turns to the next endpoint, or gives the error back when all has been tried.
    async fn failed(&mut self, error: SourceError) -> Result<(), SourceError> {
        match self.session.pause(&mut self.retry, error).await {
            Err(_) if self.index + 1 < self.session.endpoints.len() => {
                self.index += 1;
                self.retry = Retry::new(&self.session.registries.timeouts);
                Ok(())
            }
            waited => waited,
        }
    }
}

fn header_text(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

fn said_digest(response: &Response) -> Option<Digest> {
    header_text(response, "docker-content-digest")?.parse().ok()
}
