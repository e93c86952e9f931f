//! Dialling vkubelet: TCP, TLS, and errors that an operator can act on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agent_api::codes::Code;
use agent_api::identity::tls::{self, HANDSHAKE_TIMEOUT, TlsError, TlsFailure};
use agent_api::transport::preamble::PreambleError;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;

/// vkubelet could not be reached, or did not take us.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The TCP connection failed: nobody listens, no route, no such name.
    #[error("connect to vkubelet at {address}")]
    Connect {
        /// `HOST:PORT`.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No answer in time.
    #[error("vkubelet at {address} does not answer within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout {
        /// `HOST:PORT`.
        address: String,
    },
    /// The server is not the vkubelet that we trust.
    #[error(
        "the server at {address} is not of the CA that this host trusts: wrong address, wrong --ca-hash, or a new CA (join again)"
    )]
    UntrustedServer {
        /// `HOST:PORT`.
        address: String,
        /// What TLS says.
        #[source]
        source: io::Error,
    },
    /// The server's certificate is out of its validity.
    #[error("the certificate of vkubelet at {address} is not valid now: check the clocks of both hosts")]
    ServerExpired {
        /// `HOST:PORT`.
        address: String,
        /// What TLS says.
        #[source]
        source: io::Error,
    },
    /// Our certificate has ended.
    #[error("this host's certificate is not valid any more: join again with a token made with --rejoin")]
    OwnExpired {
        /// What TLS says.
        #[source]
        source: io::Error,
    },
    /// Our certificate was refused in the handshake.
    #[error(
        "vkubelet at {address} refuses this host's certificate: it was enrolled with another vkubelet (join again)"
    )]
    OwnRefused {
        /// `HOST:PORT`.
        address: String,
        /// What TLS says.
        #[source]
        source: io::Error,
    },
    /// The handshake failed otherwise.
    #[error("TLS handshake with {address}: is this vkubelet's agent port?")]
    Handshake {
        /// `HOST:PORT`.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// vkubelet refused us, and said why.
    #[error("vkubelet at {address} refused this host ({code}): {message}")]
    Refused {
        /// `HOST:PORT`.
        address: String,
        /// For programs.
        code: Code,
        /// vkubelet's own words.
        message: String,
    },
    /// The welcome did not come, or is no welcome.
    #[error("read the welcome of {address}")]
    Welcome {
        /// `HOST:PORT`.
        address: String,
        /// Why.
        #[source]
        source: PreambleError,
    },
    /// Our own key and certificates do not work.
    #[error("use this host's identity")]
    Identity(#[source] TlsError),
    /// The connection ended while it served.
    #[error("serve the connection to {address}")]
    Serve {
        /// `HOST:PORT`.
        address: String,
        /// Why.
        #[source]
        source: agent_api::transport::ServeError,
    },
}

impl DialError {
    /// Whether an operator must act: dialling again will not help by itself (it is done all the same, at the slowest pace).
    pub fn needs_operator(&self) -> bool {
        match self {
            DialError::UntrustedServer { .. }
            | DialError::OwnExpired { .. }
            | DialError::OwnRefused { .. }
            | DialError::Identity(_) => true,
            DialError::Refused { code, .. } => !code.is_retryable(),
            _ => false,
        }
    }

    pub(super) fn of_tls(address: &str, source: io::Error) -> DialError {
        let address = address.to_owned();
        match tls::classify(&source) {
            TlsFailure::UntrustedServer => DialError::UntrustedServer { address, source },
            TlsFailure::ServerExpired => DialError::ServerExpired { address, source },
            TlsFailure::OwnExpired => DialError::OwnExpired { source },
            TlsFailure::OwnRefused => DialError::OwnRefused { address, source },
            TlsFailure::NotOurs | TlsFailure::Broken => DialError::Handshake { address, source },
        }
    }
}

/// How long the kernel may retransmit to a silent peer before it gives up.
const USER_TIMEOUT: Duration = Duration::from_secs(9);

/// Connects and completes the TLS handshake.
pub(super) async fn dial(address: &str, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, DialError> {
    let connect = async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|source| DialError::Connect { address: address.to_owned(), source })?;
        // Best effort: without them calls are slower, and a dead peer is noticed by HTTP/2 alone.
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT.as_millis() as u32);
        let connector = TlsConnector::from(config);
        connector.connect(tls::server_name(), stream).await.map_err(|source| DialError::of_tls(address, source))
    };
    let timeout = |_| DialError::Timeout { address: address.to_owned() };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, Box::pin(connect)).await.map_err(timeout)?
}
