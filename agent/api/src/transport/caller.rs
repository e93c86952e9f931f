//! The calling end: an HTTP/2 client on one given connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{future, io};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::{CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Link, STREAM_WINDOW, Watched};
use crate::proto::ForgetReply;

/// The HTTP/2 handshake on the connection failed.
#[derive(Debug, thiserror::Error)]
#[error("start HTTP/2 on the connection")]
pub struct ConnectError(#[source] tonic::transport::Error);

/// A channel over one connection. It never reconnects: when the connection is over, each call answers "unavailable".
#[derive(Debug, Clone)]
pub struct Caller {
    channel: Channel,
    link: Link,
}

impl Caller {
    /// Makes a channel of a connection.
    pub async fn connect<S>(io: S) -> Result<Caller, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (io, link) = Watched::new(io);
        let once = Arc::new(Mutex::new(Some(TokioIo::new(io))));
        let connector = tower::service_fn(move |_: Uri| {
            let taken = once.lock().unwrap_or_else(PoisonError::into_inner).take();
            let gone = || io::Error::new(io::ErrorKind::NotConnected, "the connection is over");
            future::ready(taken.ok_or_else(gone))
        });
        let channel = Endpoint::from_static("http://agent.nodeless.internal")
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector(connector)
            .await
            .map_err(ConnectError)?;
        Ok(Caller { channel, link })
    }

    /// The channel to make clients of.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The connection.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Whether the peer answers anything at all within `deadline`: a call of a method that does not exist is answered too.
    pub async fn is_alive(&self, deadline: Duration) -> bool {
        if self.link.has_ended() {
            return false;
        }
        let mut grpc = Grpc::new(self.channel());
        let ask = async {
            if grpc.ready().await.is_err() {
                return false;
            }
            let path = http::uri::PathAndQuery::from_static("/nodeless.transport/Ping");
            let codec = ProstCodec::<ForgetReply, ForgetReply>::default();
            match grpc.unary(tonic::Request::new(ForgetReply {}), path, codec).await {
                Ok(_) => true,
                Err(status) => status.code() == tonic::Code::Unimplemented,
            }
        };
        tokio::time::timeout(deadline, ask).await.unwrap_or(false)
    }
}
