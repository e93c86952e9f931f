//! A host's private key and its request for a certificate.

use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData};

use super::{HostId, SpkiHash};

/// An ECDSA P-256 key, made on the host, which never leaves it.
pub struct HostKey(KeyPair);

/// Making or reading a host key failed.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// No key could be made.
    #[error("generate host key")]
    Generate(#[source] rcgen::Error),
    /// The PEM text is no private key.
    #[error("read host key")]
    Parse(#[source] rcgen::Error),
    /// The request could not be signed.
    #[error("sign certificate request")]
    Request(#[source] rcgen::Error),
}

impl HostKey {
    /// Makes a new key.
    pub fn generate() -> Result<HostKey, HostKeyError> {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(HostKey).map_err(HostKeyError::Generate)
    }

    /// Reads a PKCS#8 key.
    pub fn from_pem(pem: &str) -> Result<HostKey, HostKeyError> {
        KeyPair::from_pem(pem).map(HostKey).map_err(HostKeyError::Parse)
    }

    /// The key as PKCS#8 PEM; secret.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The hash of its public half.
    pub fn spki_hash(&self) -> SpkiHash {
        SpkiHash::of_spki(&self.0.subject_public_key_info())
    }

    /// A PKCS#10 request in PEM, signed with this key.
    pub fn request(&self, host_id: &HostId) -> Result<String, HostKeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, host_id.as_str());
        let request = params.serialize_request(&self.0).map_err(HostKeyError::Request)?;
        request.pem().map_err(HostKeyError::Request)
    }
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HostKey").field(&self.spki_hash().to_string()).finish()
    }
}
