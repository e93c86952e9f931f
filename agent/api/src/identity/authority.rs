//! vkubelet's certificate authority.
//!
//! On disk: one file `ca.pem` (0600, directory 0700) with the certificate and its key, made once and never replaced, so
//! that a crash leaves either none or a whole one, and two processes that start together agree.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::peer::URI_PREFIX;
use super::private_file::{self, PrivateFileError};
use super::{HostId, HostKey, SpkiHash};

/// The logical name that agents verify the server by, whatever address they dial.
pub const SERVER_NAME: &str = "vkubelet.nodeless.internal";
/// A host certificate's life. Agents renew when a third is left.
pub const HOST_VALIDITY: Duration = Duration::from_secs(365 * 86_400);
/// The server certificate's life; it lives in memory and is renewed there.
pub(super) const SERVER_VALIDITY: Duration = Duration::from_secs(90 * 86_400);
const CA_VALIDITY: Duration = Duration::from_secs(20 * 365 * 86_400);
/// Certificates begin in the past by this much: clocks of hosts differ.
const BACKDATE: Duration = Duration::from_secs(3600);

/// The CA: a certificate and its key.
pub struct Authority {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    hash: SpkiHash,
    issuer: Issuer<'static, KeyPair>,
}

/// A CA operation failed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The CA file could not be read or written.
    #[error("keep the CA")]
    File(#[source] PrivateFileError),
    /// No CA exists yet; the daemon makes it on its first start.
    #[error("there is no CA in {0} yet: start vkubelet once with this state directory")]
    Missing(String),
    /// The CA file is damaged.
    #[error("the CA in {path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// Making the CA failed.
    #[error("make the CA")]
    Make(#[source] rcgen::Error),
    /// The request is malformed or not signed by its own key.
    #[error("certificate request is not acceptable")]
    Request(#[source] rcgen::Error),
    /// Signing failed.
    #[error("sign a certificate")]
    Sign(#[source] rcgen::Error),
}

impl Authority {
    /// Opens the CA in `dir`, making it when it does not exist.
    pub fn open_or_create(dir: &Path) -> Result<Authority, AuthorityError> {
        match Authority::open(dir) {
            Err(AuthorityError::Missing(_)) => {}
            opened => return opened,
        }
        private_file::ensure_dir(dir).map_err(AuthorityError::File)?;
        private_file::create(&dir.join("ca.pem"), make()?.as_bytes()).map_err(AuthorityError::File)?;
        // Whoever made it, what is on disk decides.
        Authority::open(dir)
    }

    /// Opens the CA in `dir`.
    pub fn open(dir: &Path) -> Result<Authority, AuthorityError> {
        let path = dir.join("ca.pem");
        let shown = || path.display().to_string();
        let Some(bytes) = private_file::read(&path).map_err(AuthorityError::File)? else {
            return Err(AuthorityError::Missing(dir.display().to_string()));
        };
        let damaged = |problem: String| AuthorityError::Damaged { path: shown(), problem };
        let certificate = CertificateDer::from_pem_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let key = KeyPair::try_from(&key).map_err(|error| damaged(error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| damaged(error.to_string()))?;
        let spki = parsed.public_key().raw;
        if spki != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(damaged("certificate and key do not belong together".to_owned()));
        }
        let hash = SpkiHash::of_spki(spki);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| damaged(error.to_string()))?;
        let certificate_pem = pem(&certificate);
        Ok(Authority { certificate: certificate.clone().into_owned(), certificate_pem, hash, issuer })
    }

    /// The hash by which agents pin this CA.
    pub fn hash(&self) -> SpkiHash {
        self.hash
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Signs a host's request: only the public key is taken from it, everything else is ours. Returns PEM and the key's hash.
    pub fn sign_host(&self, request_pem: &str, host_id: &HostId) -> Result<(String, SpkiHash), AuthorityError> {
        let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(AuthorityError::Request)?;
        let key = SpkiHash::of_spki(&rcgen::PublicKeyData::subject_public_key_info(&request.public_key));
        let mut params = leaf(host_id.as_str(), HOST_VALIDITY, ExtendedKeyUsagePurpose::ClientAuth);
        let uri = format!("{URI_PREFIX}{host_id}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(AuthorityError::Sign)?)];
        let signed = params.signed_by(&request.public_key, &self.issuer).map_err(AuthorityError::Sign)?;
        Ok((signed.pem(), key))
    }

    /// Makes a key and a certificate for the agent listener. `names` are added to [`SERVER_NAME`]; what is no DNS name is left out.
    pub fn issue_server(
        &self,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), AuthorityError> {
        let key = HostKey::generate().map_err(|error| match error {
            super::HostKeyError::Generate(inner)
            | super::HostKeyError::Parse(inner)
            | super::HostKeyError::Request(inner) => AuthorityError::Sign(inner),
        })?;
        let key = KeyPair::from_pem(&key.to_pem()).map_err(AuthorityError::Sign)?;
        let mut params = leaf(SERVER_NAME, SERVER_VALIDITY, ExtendedKeyUsagePurpose::ServerAuth);
        let names = std::iter::once(SERVER_NAME).chain(names.iter().map(String::as_str));
        params.subject_alt_names =
            names.filter_map(|name| name.try_into().ok()).map(SanType::DnsName).collect::<Vec<_>>();
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        let signed = params.signed_by(&key, &self.issuer).map_err(AuthorityError::Sign)?;
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        // The CA goes along: an agent that joins has only its hash.
        Ok((vec![signed.der().clone(), self.certificate.clone()], private.into()))
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("hash", &self.hash.to_string()).finish_non_exhaustive()
    }
}

fn make() -> Result<String, AuthorityError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Make)?;
    let mut params = dated("nodeless agent CA", CA_VALIDITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(AuthorityError::Make)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

fn leaf(common_name: &str, validity: Duration, purpose: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = dated(common_name, validity);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    params
}

fn dated(common_name: &str, validity: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + validity).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        text.extend(line.iter().map(|b| char::from(*b)));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
