//! The kubelet's HTTPS API: what the API server and metrics readers ask of a node.
//!
//! ```text
//! TLS (client certificate optional) ──> authn (certificate, else TokenReview) ──> authz (SubjectAccessReview) ──> routes
//! ```
//!
//! Never anonymous and never "always allow": a request without an identity gets 401, one without the right 403, also for
//! paths that do not exist. Only HTTP/1.1 is offered, since the streaming protocols upgrade from it.

pub mod access;
pub mod authn;
pub mod authz;
pub mod logs;
pub mod pods;
pub mod remote;
pub mod routes;
pub mod server;
pub mod spdy;

use std::net::SocketAddr;
use std::sync::Arc;

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::pod::access::PodAccess;

/// Starts the kubelet API of a node; it ends when `stop` is cancelled. Returns the address that was bound.
///
/// # Errors
/// When a TLS file is missing or damaged, or the port is taken: nothing runs then.
pub async fn start(
    listen: SocketAddr,
    tls: &server::TlsFiles,
    client: Client,
    node_name: &str,
    access: PodAccess,
    stop: CancellationToken,
) -> Result<SocketAddr, server::ServeError> {
    let tls = server::tls_config(tls)?;
    let listener = server::bind(listen).await?;
    let address = listener.local_addr().map_err(|source| server::ServeError::Listen { address: listen, source })?;
    let api = routes::Api {
        tokens: authn::Tokens::new(client.clone()),
        authorizer: authz::Authorizer::new(client, node_name.to_owned()),
        pods: Arc::new(pods::HostedPods::new(access)),
        sessions: Arc::new(tokio::sync::Semaphore::new(routes::MOST_SESSIONS)),
    };
    tokio::spawn(server::serve(listener, tls, routes::router(Arc::new(api)), stop));
    Ok(address)
}
