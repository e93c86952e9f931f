//! Joining a vkubelet: a token and a certificate request for an identity.

use std::path::PathBuf;
use std::time::Duration;

use agent_api::codes::{Code, StatusExt};
use agent_api::identity::{HostId, HostKeyError, SpkiHash, tls};
use agent_api::proto::JoinRequest;
use agent_api::proto::enrollment_client::EnrollmentClient;
use agent_api::transport::{Caller, ConnectError};

use super::dial::{self, DialError};
use super::identity::{self, IdentityError, LinkIdentity};

const ANSWER: Duration = Duration::from_secs(15);

/// What `nodeless-agent join` was told.
#[derive(Clone)]
pub struct JoinOptions {
    /// `HOST:PORT` of vkubelet's agent listener.
    pub vkubelet: String,
    /// The join token; secret.
    pub token: String,
    /// The CA to trust, as `vkubelet ca-hash` prints it.
    pub ca_hash: SpkiHash,
    /// Our id.
    pub host_id: HostId,
    /// The agent's state directory.
    pub state_dir: PathBuf,
    /// Our version, for people.
    pub version: String,
}

/// What a join came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Our id.
    pub host_id: HostId,
    /// The node that we are part of now.
    pub node_name: String,
}

/// A join failed. Nothing has changed then, and it may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// vkubelet was not reached or is not the one pinned.
    #[error("reach vkubelet")]
    Dial(#[source] DialError),
    /// TLS could not be set up.
    #[error("set up TLS")]
    Tls(#[source] tls::TlsError),
    /// The other end does not speak our protocol.
    #[error("speak to vkubelet")]
    Http(#[source] ConnectError),
    /// The request could not be made.
    #[error("make a certificate request")]
    Request(#[source] HostKeyError),
    /// vkubelet said no.
    #[error("vkubelet refuses to enrol this host ({code}): {message}")]
    Refused {
        /// For programs.
        code: Code,
        /// vkubelet's own words.
        message: String,
    },
    /// The certificate that came does not fit our key.
    #[error("vkubelet's answer is not usable")]
    Answer(#[source] tls::TlsError),
    /// The identity could not be kept.
    #[error("keep this host's identity")]
    Identity(#[source] IdentityError),
}

/// Enrols this host and leaves its identity in the state directory, whole or not at all.
pub async fn join(options: JoinOptions) -> Result<Joined, JoinError> {
    let key = identity::joining_key(&options.state_dir).map_err(JoinError::Identity)?;
    let csr_pem = key.request(&options.host_id).map_err(JoinError::Request)?;
    let config = tls::joining(options.ca_hash).map_err(JoinError::Tls)?;
    let stream = dial::dial(&options.vkubelet, config).await.map_err(JoinError::Dial)?;
    let caller = Caller::connect(stream).await.map_err(JoinError::Http)?;
    let request =
        JoinRequest { token: options.token, host_id: options.host_id.to_string(), csr_pem, version: options.version };
    let mut client = EnrollmentClient::new(caller.channel());
    let answer = tokio::time::timeout(ANSWER, client.join(request)).await;
    let answer = answer.unwrap_or_else(|_| Err(Code::DeadlineExceeded.status("no answer in time")));
    let reply = answer
        .map_err(|status| JoinError::Refused { code: status.error_code(), message: status.message().to_owned() })?
        .into_inner();
    let key_pem = key.to_pem();
    tls::agent(&reply.ca_pem, &reply.certificate_pem, &key_pem).map_err(JoinError::Answer)?;
    let identity = LinkIdentity {
        host_id: options.host_id,
        vkubelet: options.vkubelet,
        node_name: reply.node_name,
        certificate_pem: reply.certificate_pem,
        ca_pem: reply.ca_pem,
        key_pem,
    };
    identity::store(&options.state_dir, &identity).map_err(JoinError::Identity)?;
    Ok(Joined { host_id: identity.host_id, node_name: identity.node_name })
}
