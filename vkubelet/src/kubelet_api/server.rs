//! TLS and HTTP/1.1 for the routes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::authn;
use super::routes::ConnectionIdentity;

/// Time for a TLS handshake, and for a request's headers.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections served at once.
const MOST: usize = 1024;

/// Where the serving certificate, its key and the clients' CA are.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// PEM chain, the leaf first.
    pub certificate: PathBuf,
    /// PEM key.
    pub key: PathBuf,
    /// PEM certificates of the CA that signs client certificates.
    pub client_ca: PathBuf,
}

/// Why the kubelet API cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A PEM file is missing or damaged.
    #[error("read {what} from {}", path.display())]
    Pem {
        /// What was to be read.
        what: &'static str,
        /// From where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// Certificate, key and CA do not make a configuration.
    #[error("set up TLS for the kubelet API")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The port is not to be had.
    #[error("listen on {address} for the kubelet API")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Reads the files and makes the TLS configuration: client certificates are asked for but not demanded, HTTP/1.1 only.
pub fn tls_config(files: &TlsFiles) -> Result<Arc<rustls::ServerConfig>, ServeError> {
    let chain = certificates("the serving certificate", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| ServeError::Pem {
        what: "the serving key",
        path: files.key.clone(),
        source,
    })?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates("the client CA", &files.client_ca)? {
        roots.add(certificate).map_err(|e| ServeError::Tls(Box::new(e)))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .map_err(|e| ServeError::Tls(Box::new(e)))?;
    let mut config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| ServeError::Tls(Box::new(e)))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let failed = |source| ServeError::Pem { what, path: path.to_path_buf(), source };
    CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

/// Binds the port.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

/// Serves until cancelled.
pub async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, router: Router, stop: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(tokio::sync::Semaphore::new(MOST));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "kubelet API connection could not be accepted"
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = connection(acceptor, stream, router) => {}
                () = stop.cancelled() => {}
            }
            drop(place);
        });
    }
}

async fn connection(acceptor: TlsAcceptor, stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let identity = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|certificate| authn::from_certificate(certificate));
    let identity = ConnectionIdentity(identity);
    let service = router.map_request(move |mut request: http::Request<_>| {
        request.extensions_mut().insert(identity.clone());
        request
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(error = &error as &dyn std::error::Error, "kubelet API connection ended");
    }
}
