//! HTTP over the node's Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// One connection for each request: nothing here is in a hurry.
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Result<http::Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .with_context(|| format!("cannot connect to vkubelet at {}", self.socket.display()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("cannot speak HTTP")?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "nodeless");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(String::new, |body| body.to_string());
        let request = request.body(Full::new(Bytes::from(body))).context("cannot make the request")?;
        sender.send_request(request).await.with_context(|| format!("cannot send {method} {path}"))
    }

    async fn expect(&self, method: &str, path: &str, body: Option<Value>) -> Result<http::Response<Incoming>> {
        let response = self.send(method, path, body).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = read(response).await?;
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        bail!("{method} {path}: {status}: {}", problem["detail"].as_str().unwrap_or(&text));
    }

    /// The text at `path`.
    pub(crate) async fn text(&self, path: &str) -> Result<String> {
        read(self.expect("GET", path, None).await?).await
    }

    /// The object at `path`.
    pub(crate) async fn json(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.text(path).await?).with_context(|| format!("cannot parse the answer of {path}"))
    }

    /// The object at `path`; None when it says that there is none.
    pub(crate) async fn json_if_there(&self, path: &str) -> Result<Option<Value>> {
        if self.exists(path).await? { self.json(path).await.map(Some) } else { Ok(None) }
    }

    /// Whether there is anything at `path`. An answer that is neither yes nor no is an error.
    pub(crate) async fn exists(&self, path: &str) -> Result<bool> {
        let response = self.send("GET", path, None).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            status => bail!("GET {path}: {status}"),
        }
    }

    /// An answer of one JSON object a line.
    pub(crate) async fn lines(&self, method: &str, path: &str, body: Option<Value>) -> Result<Lines> {
        let response = self.expect(method, path, body).await?;
        Ok(Lines { body: response.into_body(), buffer: Vec::new() })
    }
}

async fn read(response: http::Response<Incoming>) -> Result<String> {
    let bytes = response.into_body().collect().await.context("the answer broke off")?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// JSON objects, as they come.
pub(crate) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next object; None at the end. Waits `patience` for it.
    pub(crate) async fn next(&mut self, patience: Duration) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).context("cannot parse a line of the answer");
            }
            let frame = tokio::time::timeout(patience, self.body.frame()).await.context("nothing came")?;
            match frame {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame.context("the answer broke off")?;
                    self.buffer.extend(frame.into_data().unwrap_or_default());
                }
            }
        }
    }
}
