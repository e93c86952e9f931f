//! Reads who a verified client certificate stands for.

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::{HostId, InvalidHostId, SpkiHash};

/// Scheme of the URI name that binds a certificate to a host id.
pub(super) const URI_PREFIX: &str = "nodeless:host:";

/// What a host's certificate says. Its chain and validity have been checked by the TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPeer {
    /// The host id in its URI name.
    pub host_id: HostId,
    /// Hash of the key that the peer proved to hold.
    pub key: SpkiHash,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// End of validity in Unix seconds.
    pub not_after_unix: i64,
}

/// A certificate is not a host's.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Not X.509.
    #[error("parse client certificate")]
    Parse(#[source] x509_parser::nom::Err<x509_parser::error::X509Error>),
    /// Not exactly one of our URI names.
    #[error("client certificate names no host")]
    NoHost,
    /// The name is no host id.
    #[error("client certificate names a host")]
    HostId(#[source] InvalidHostId),
}

impl HostPeer {
    /// Reads a leaf certificate.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<HostPeer, PeerError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(PeerError::Parse)?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let mut hosts = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(URI_PREFIX),
            _ => None,
        });
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(PeerError::NoHost);
        };
        Ok(HostPeer {
            host_id: HostId::new(host).map_err(PeerError::HostId)?,
            key: SpkiHash::of_spki(certificate.public_key().raw),
            serial: hex::encode(certificate.raw_serial()),
            not_after_unix: certificate.validity().not_after.timestamp(),
        })
    }
}
