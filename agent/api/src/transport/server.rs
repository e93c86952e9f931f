//! The serving end: HTTP/2 server on one given connection.

use std::io;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use super::{
    CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Link, MAX_MESSAGE, MAX_STREAMS, STREAM_WINDOW, Watched,
};
use crate::proto::agent_server::{Agent, AgentServer};

/// Calls in flight get this long to end when the serving side shuts down.
const DRAIN: Duration = Duration::from_secs(1);

/// Serving a connection failed for a reason other than its end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The HTTP/2 server refused to run.
    #[error("serve connection")]
    Serve(#[source] tonic::transport::Error),
}

/// The routes of an agent, with the message limits of this wire. Several connections may share a clone.
pub fn agent_routes<T: Agent>(service: T) -> Routes {
    let server =
        AgentServer::new(service).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
    Routes::new(server).prepare()
}

/// Serves `routes` on this one connection until it ends or `shutdown` is cancelled (calls in flight then get a
/// second). Returns the connection's [`Link`], which knows the last I/O error.
pub async fn serve<S>(io: S, routes: Routes, shutdown: CancellationToken) -> Result<Link, ServeError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (io, link) = Watched::new(io);
    // The stream stays pending after its only item: its end would be taken for a shutdown.
    let incoming = stream::once(async move { Ok::<_, io::Error>(io) }).chain(stream::pending());
    let stop = {
        let (link, shutdown) = (link.clone(), shutdown.clone());
        async move {
            tokio::select! {
                () = link.ended() => {}
                () = shutdown.cancelled() => {}
            }
        }
    };
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop);
    let limit = {
        let link = link.clone();
        async move {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN).await;
            link.close();
            // The server ends once it has dropped the stream.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        served = serving => served.map_err(ServeError::Serve)?,
        () = limit => {}
    }
    link.close();
    Ok(link)
}
