//! What is answered to one request.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use futures::StreamExt as _;
use http::{Method, StatusCode, header};
use tokio::net::TcpListener;

use super::image::digest;
use super::{Fault, Image, Shelves};

/// Serves until the runtime ends.
pub(super) async fn serve(listener: TcpListener, shelves: Arc<Shelves>) {
    let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
    let router = Router::new().fallback(answer).with_state((shelves, address));
    let _ = axum::serve(listener, router).await;
}

async fn answer(State((shelves, address)): State<(Arc<Shelves>, String)>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/token" {
        return token(&shelves, &request);
    }
    let Some((repository, kind, which)) = split(&path) else { return status(StatusCode::NOT_FOUND) };
    let (image, faults) = {
        let mut all = shelves.lock();
        let Some(shelf) = all.get_mut(repository) else {
            return error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "repository name not known to registry");
        };
        shelf.requests.push(format!("{} {path}", request.method()));
        (shelf.image.clone(), shelf.faults.clone())
    };
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    for fault in &faults {
        match fault {
            Fault::Status(code, name) => {
                return error(
                    StatusCode::from_u16(*code).unwrap_or(StatusCode::IM_A_TEAPOT),
                    name,
                    "as the test wants it",
                );
            }
            Fault::SlowDown(seconds) => {
                let mut response = error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "slow down");
                response.headers_mut().insert(header::RETRY_AFTER, (*seconds).into());
                return response;
            }
            Fault::Silence => std::future::pending::<()>().await,
            Fault::Basic(user, password) if sent != basic(user, password) => {
                return challenge("Basic realm=\"test\"".to_owned());
            }
            Fault::Bearer(..) if sent != format!("Bearer token-of-{repository}") => {
                return challenge(format!(
                    "Bearer realm=\"http://{address}/token\",service=\"test\",scope=\"repository:{repository}:pull\""
                ));
            }
            _ => {}
        }
    }
    let Some(image) = image else { return status(StatusCode::NOT_FOUND) };
    match kind {
        "manifests" => manifest(&image, which, &faults),
        _ => blob(&image, which, &faults, request.method()),
    }
}

fn split(path: &str) -> Option<(&str, &str, &str)> {
    let rest = path.strip_prefix("/v2/")?;
    ["manifests", "blobs"].into_iter().find_map(|kind| {
        let (repository, which) = rest.split_once(&format!("/{kind}/"))?;
        Some((repository, kind, which))
    })
}

fn manifest(image: &Image, which: &str, faults: &[Fault]) -> Response {
    if which != "1" && which != image.manifest {
        return error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown");
    }
    let mut bytes = image.blobs.get(&image.manifest).cloned().unwrap_or_default();
    if faults.contains(&Fault::OtherManifest) {
        bytes.push(b' ');
    }
    Response::builder()
        .header(header::CONTENT_TYPE, "application/vnd.oci.image.manifest.v1+json")
        .header("Docker-Content-Digest", &image.manifest)
        .body(Body::from(bytes))
        .unwrap_or_default()
}

fn blob(image: &Image, which: &str, faults: &[Fault], method: &Method) -> Response {
    let Some(mut bytes) = image.blobs.get(which).cloned() else {
        return error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    let mut response = Response::builder().header(header::CONTENT_LENGTH, bytes.len());
    if which == image.own_layer {
        if faults.contains(&Fault::OtherLayer) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        if faults.contains(&Fault::HalfLayer) && method != Method::HEAD {
            bytes.truncate(bytes.len() / 2);
            let broken = futures::stream::iter([Ok(Bytes::from(bytes)), Err(std::io::Error::other("cut"))]);
            // The header goes out with the first half before the connection breaks.
            let slowly = broken.then(|part| async {
                if part.is_err() {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                part
            });
            return response.body(Body::from_stream(slowly)).unwrap_or_default();
        }
    }
    response = response.header("Docker-Content-Digest", digest(&bytes));
    response.body(Body::from(bytes)).unwrap_or_default()
}

fn token(shelves: &Shelves, request: &Request) -> Response {
    let query = request.uri().query().unwrap_or_default().replace("%3A", ":").replace("%2F", "/");
    let scope = query.split('&').find_map(|pair| pair.strip_prefix("scope=repository:")).unwrap_or_default();
    let repository = scope.strip_suffix(":pull").unwrap_or_default();
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let all = shelves.lock();
    let right = all.get(repository).is_some_and(|shelf| {
        shelf.faults.iter().any(|fault| matches!(fault, Fault::Bearer(user, password) if sent == basic(user, password)))
    });
    if !right {
        return error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "wrong name or password");
    }
    let body = serde_json::json!({"token": format!("token-of-{repository}")}).to_string();
    Response::builder().header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap_or_default()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn challenge(words: String) -> Response {
    let mut response = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
    if let Ok(value) = words.parse() {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

fn status(code: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = code;
    response
}

fn error(code: StatusCode, name: &str, message: &str) -> Response {
    let body = serde_json::json!({"errors": [{"code": name, "message": message}]}).to_string();
    let response = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    response.body(body.into()).unwrap_or_default()
}
