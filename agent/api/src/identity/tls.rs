//! The TLS configurations of the four roles: listener, agent, joining agent.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{AuthorityError, SERVER_NAME, SERVER_VALIDITY};
use super::{Authority, SpkiHash};
use crate::transport::{ALPN_AGENT, ALPN_JOIN};

/// A TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Certificates or key do not fit.
    #[error("configure TLS")]
    Config(#[source] rustls::Error),
    /// The client verifier could not be made.
    #[error("configure client certificate checks")]
    Verifier(#[source] VerifierBuilderError),
    /// The server certificate could not be issued.
    #[error("issue the listener's certificate")]
    Issue(#[source] AuthorityError),
    /// PEM text could not be read.
    #[error("read {what} in PEM")]
    Pem {
        /// Which text.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The name that a client asks for.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("the constant is a DNS name")
}

/// The agent listener: client certificates of our CA are verified when sent, and optional.
pub fn listener(
    authority: Arc<Authority>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).map_err(TlsError::Config)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::Verifier)?;
    let issuing = Issuing { authority, names, addresses, current: Mutex::default() };
    issuing.certified()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(issuing));
    config.alpn_protocols = vec![ALPN_AGENT.to_vec(), ALPN_JOIN.to_vec()];
    // A resumed session would skip the certificate checks of the moment.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// An enrolled agent that connects.
pub fn agent(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<Arc<ClientConfig>, TlsError> {
    enrolled(ca_pem, certificate_pem, key_pem, ALPN_AGENT)
}

/// An enrolled agent that renews its certificate.
pub fn renewing(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<Arc<ClientConfig>, TlsError> {
    enrolled(ca_pem, certificate_pem, key_pem, ALPN_JOIN)
}

fn enrolled(ca_pem: &str, certificate_pem: &str, key_pem: &str, alpn: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
    let pem = |what| move |source| TlsError::Pem { what, source };
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(pem("the CA certificate"))?;
    roots.add(ca).map_err(TlsError::Config)?;
    let certificate =
        CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(pem("the host certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(pem("the host key"))?;
    let mut config = client_builder()?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .map_err(TlsError::Config)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// An agent that joins: it knows the CA by its hash only.
pub fn joining(pin: SpkiHash) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = client_builder()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin, provider: provider() }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn client_builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)
}

/// Hands out the listener's certificate and issues a new one when a third of its life is left.
#[derive(Debug)]
struct Issuing {
    authority: Arc<Authority>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    current: Mutex<Option<(Arc<CertifiedKey>, Instant)>>,
}

impl Issuing {
    fn certified(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((certified, renew_at)) = &*current
            && Instant::now() < *renew_at
        {
            return Ok(Arc::clone(certified));
        }
        let (chain, key) = self.authority.issue_server(&self.names, &self.addresses).map_err(TlsError::Issue)?;
        let key = provider().key_provider.load_private_key(key).map_err(TlsError::Config)?;
        let certified = Arc::new(CertifiedKey::new(chain, key));
        *current = Some((Arc::clone(&certified), Instant::now() + SERVER_VALIDITY / 3 * 2));
        Ok(certified)
    }
}

impl ResolvesServerCert for Issuing {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self.certified() {
            Ok(certified) => Some(certified),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot renew the agent listener's certificate"
                );
                None
            }
        }
    }
}

/// Accepts a server whose chain holds a CA with the pinned key, and whose leaf that CA signed for [`SERVER_NAME`].
#[derive(Debug)]
struct Pinned {
    pin: SpkiHash,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|der| {
            X509Certificate::from_der(der).is_ok_and(|(_, c)| SpkiHash::of_spki(c.public_key().raw) == self.pin)
        });
        let Some(ca) = pinned else {
            return Err(rustls::CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a TLS failure means to an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFailure {
    /// The server's certificate is not of the CA that this agent trusts.
    UntrustedServer,
    /// The server's certificate is out of its validity (or a clock is wrong).
    ServerExpired,
    /// The server says that our certificate is out of its validity.
    OwnExpired,
    /// The server refused our certificate for another reason.
    OwnRefused,
    /// The other end does not speak this protocol.
    NotOurs,
    /// The connection broke.
    Broken,
}

/// Finds the meaning in an I/O error of a TLS stream.
pub fn classify(error: &std::io::Error) -> TlsFailure {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. },
        )) => TlsFailure::ServerExpired,
        Some(Error::InvalidCertificate(_)) => TlsFailure::UntrustedServer,
        Some(Error::AlertReceived(Alert::CertificateExpired)) => TlsFailure::OwnExpired,
        Some(Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateRevoked
            | Alert::DecryptError
            | Alert::AccessDenied
            | Alert::CertificateRequired
            | Alert::UnsupportedCertificate,
        )) => TlsFailure::OwnRefused,
        Some(_) => TlsFailure::NotOurs,
        None => TlsFailure::Broken,
    }
}

/// How long a TCP connect and a TLS handshake may take together.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
