//! Renewing the certificate before it ends, while it still lets us in.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use agent_api::codes::{Code, StatusExt};
use agent_api::identity::{HOST_VALIDITY, HostKey, HostKeyError, HostPeer, tls};
use agent_api::proto::RenewRequest;
use agent_api::proto::enrollment_client::EnrollmentClient;
use agent_api::transport::{Caller, ConnectError};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::dial::{self, DialError};
use super::identity::{self, IdentityError, LinkIdentity};

const LOOK: Duration = Duration::from_secs(6 * 3600);
const AGAIN: Duration = Duration::from_secs(600);
const ANSWER: Duration = Duration::from_secs(15);

/// A certificate could not be renewed; the old one still counts.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewError {
    #[error("read this host's key")]
    Key(#[source] HostKeyError),
    #[error("use this host's identity")]
    Tls(#[source] tls::TlsError),
    #[error("reach vkubelet")]
    Dial(#[source] DialError),
    #[error("speak to vkubelet")]
    Http(#[source] ConnectError),
    #[error("vkubelet refuses to renew ({code}): {message}")]
    Refused { code: Code, message: String },
    #[error("keep the renewed certificate")]
    Store(#[source] IdentityError),
}

/// Renews whenever it is time. Never ends.
pub(super) async fn keep_fresh(identity: &Mutex<LinkIdentity>, address: &str, state_dir: &Path, version: &str) {
    loop {
        let current = identity.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut wait = LOOK;
        if is_due(&current.certificate_pem, now) {
            match Box::pin(renew(&current, address, state_dir, version)).await {
                Ok(renewed) => {
                    tracing::info!(host.id = %renewed.host_id, "renewed this host's certificate");
                    *identity.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "could not renew this host's certificate; trying again");
                    wait = AGAIN;
                }
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// Whether a third of its life or less is left. What cannot be read is not renewed: the dialler will say what is wrong.
fn is_due(certificate_pem: &str, now_unix: u64) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(certificate_pem.as_bytes()) else { return false };
    let Ok(peer) = HostPeer::from_certificate(&der) else { return false };
    let end = u64::try_from(peer.not_after_unix).unwrap_or(0);
    end.saturating_sub(now_unix) <= HOST_VALIDITY.as_secs() / 3
}

/// Fetches a new certificate for the same key and keeps it.
pub(super) async fn renew(
    identity: &LinkIdentity,
    address: &str,
    state_dir: &Path,
    version: &str,
) -> Result<LinkIdentity, RenewError> {
    let LinkIdentity { ca_pem, certificate_pem, key_pem, .. } = identity;
    let key = HostKey::from_pem(key_pem).map_err(RenewError::Key)?;
    let csr_pem = key.request(&identity.host_id).map_err(RenewError::Key)?;
    let config = tls::renewing(ca_pem, certificate_pem, key_pem).map_err(RenewError::Tls)?;
    let stream = dial::dial(address, config).await.map_err(RenewError::Dial)?;
    let caller = Caller::connect(stream).await.map_err(RenewError::Http)?;
    let mut client = EnrollmentClient::new(caller.channel());
    let request = RenewRequest { csr_pem, version: version.to_owned() };
    let answer = tokio::time::timeout(ANSWER, client.renew(request)).await;
    let answer = answer.unwrap_or_else(|_| Err(Code::DeadlineExceeded.status("no answer in time")));
    let refused =
        |status: tonic::Status| RenewError::Refused { code: status.error_code(), message: status.message().to_owned() };
    let reply = answer.map_err(refused)?.into_inner();
    let renewed = LinkIdentity { certificate_pem: reply.certificate_pem, ..identity.clone() };
    tls::agent(ca_pem, &renewed.certificate_pem, key_pem).map_err(RenewError::Tls)?;
    identity::store(state_dir, &renewed).map_err(RenewError::Store)?;
    Ok(renewed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_api::identity::{Authority, HostId};

    #[test]
    fn a_certificate_is_renewed_in_the_last_third_of_its_life() {
        let dir = tempfile::tempdir().expect("tempdir");
        let authority = Authority::open_or_create(dir.path()).expect("CA");
        let id = HostId::new("edge-1").expect("id");
        let csr = HostKey::generate().expect("key").request(&id).expect("csr");
        let (pem, _) = authority.sign_host(&csr, &id).expect("signed");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("now").as_secs();
        let life = HOST_VALIDITY.as_secs();
        assert!(!is_due(&pem, now) && !is_due(&pem, now + life / 2));
        assert!(is_due(&pem, now + life * 3 / 4) && is_due(&pem, now + life * 2));
        assert!(!is_due("no certificate", now));
    }
}
