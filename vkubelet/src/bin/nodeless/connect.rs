//! HTTP over vkubelet's Unix socket: one connection per request.

use std::io::ErrorKind;
use std::path::PathBuf;

use bytes::Bytes;
use form_urlencoded::Serializer;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use vkubelet::client_api::Problem;
use vkubelet::client_api::frames::PROTOCOL;

use crate::failure::Failure;

/// Where vkubelet is.
pub(crate) struct Connection {
    socket: PathBuf,
}

/// A path with its query, encoded.
pub(crate) fn target(segments: &[&str], query: &[(&str, &str)]) -> String {
    let path: String = segments
        .iter()
        // A name with an odd character is refused by vkubelet; here it only must not change the path.
        .map(|s| format!("/{}", form_urlencoded::byte_serialize(s.as_bytes()).collect::<String>().replace('+', "%20")))
        .collect();
    if query.is_empty() {
        return path;
    }
    let mut serializer = Serializer::new(String::new());
    serializer.extend_pairs(query);
    format!("{path}?{}", serializer.finish())
}

fn talk(error: impl std::fmt::Display) -> Failure {
    Failure::Talk(error.to_string())
}

impl Connection {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    async fn open(&self) -> Result<UnixStream, Failure> {
        UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Failure::NoSocket(self.socket.clone()),
            ErrorKind::ConnectionRefused => Failure::Refused(self.socket.clone()),
            ErrorKind::PermissionDenied => Failure::Denied(self.socket.clone()),
            _ => Failure::Connect { path: self.socket.clone(), source: error },
        })
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        let stream = self.open().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(talk)?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.map_err(talk)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = response.into_body().collect().await.map_err(talk)?.to_bytes();
        let problem = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Problem::new(status, String::from_utf8_lossy(&body).into_owned()));
        Err(Failure::Problem(problem))
    }

    /// Sends a request with an optional JSON body.
    pub(crate) async fn request(
        &self,
        method: Method,
        target: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Response<Incoming>, Failure> {
        let request = Request::builder().method(method).uri(target).header(header::HOST, "vkubelet");
        let request = match body {
            None => request.body(Full::default()),
            Some(body) => {
                request.header(header::CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(body.to_string())))
            }
        };
        self.send(request.map_err(talk)?).await
    }

    /// A JSON answer.
    pub(crate) async fn json<T: DeserializeOwned>(&self, method: Method, target: &str) -> Result<T, Failure> {
        let response = self.request(method, target, None).await?;
        let body = response.into_body().collect().await.map_err(talk)?.to_bytes();
        serde_json::from_slice(&body).map_err(talk)
    }

    /// Upgrades to an exec connection.
    pub(crate) async fn exec(&self, target: &str) -> Result<TokioIo<hyper::upgrade::Upgraded>, Failure> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(target)
            .header(header::HOST, "vkubelet")
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, PROTOCOL)
            .body(Full::default())
            .map_err(talk)?;
        let response = self.send(request).await?;
        hyper::upgrade::on(response).await.map(TokioIo::new).map_err(talk)
    }
}

/// Reads an answer of one JSON object a line.
pub(crate) struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(response: Response<Incoming>) -> Self {
        Self { body: response.into_body(), rest: Vec::new() }
    }

    /// The next object; `None` at the end.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(talk);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(talk(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_change_the_path() {
        assert_eq!(target(&["v1", "pods", "a/../b"], &[]), "/v1/pods/a%2F..%2Fb");
        assert_eq!(target(&["x"], &[("command", "a b"), ("command", "c&d")]), "/x?command=a+b&command=c%26d");
    }
}
