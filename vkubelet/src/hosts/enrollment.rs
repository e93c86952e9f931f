//! The enrolment service: a join token and a certificate request for a certificate.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use agent_api::codes::Code;
use agent_api::identity::{Authority, HostId, HostPeer};
use agent_api::proto::enrollment_server::Enrollment;
use agent_api::proto::{JoinReply, JoinRequest, RenewRequest};
use agent_api::transport::preamble::Preamble;
use tonic::{Request, Response, Status};

use super::connections::Connections;
use super::roster::{self, Enrolled};
use super::{admission, tokens};

#[derive(Debug, Clone)]
pub(super) struct EnrollmentService {
    pub(super) authority: Arc<Authority>,
    pub(super) state_dir: PathBuf,
    pub(super) node_name: String,
    pub(super) connections: Arc<Connections>,
    /// Whose certificate the caller has shown.
    pub(super) peer: Option<HostPeer>,
}

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let service = self.clone();
        let request = request.into_inner();
        // File locks block.
        let joined = tokio::task::spawn_blocking(move || service.enroll(&request)).await;
        joined.unwrap_or_else(|_| Err(Code::Internal.status("the enrolment failed"))).map(Response::new)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<JoinReply>, Status> {
        self.renew_certificate(&request.into_inner()).map(Response::new)
    }
}

impl EnrollmentService {
    /// Signs first, then spends the token, then records: an answer that is lost can be had again with the same key and token.
    fn enroll(&self, request: &JoinRequest) -> Result<JoinReply, Status> {
        let host_id = HostId::new(request.host_id.clone()).map_err(|e| Code::InvalidArgument.status(e.to_string()))?;
        let (certificate_pem, key) = self
            .authority
            .sign_host(&request.csr_pem, &host_id)
            .map_err(|error| Code::InvalidArgument.status(error.to_string()))?;
        let known = roster::read(&self.state_dir).map_err(|error| internal(&error))?;
        let again = known.get(host_id.as_str()).is_some_and(|host| host.key == key);
        let grant = tokens::redeem(&self.state_dir, &request.token, host_id.as_str(), again)
            .map_err(|error| internal(&error))?
            .ok_or_else(|| {
                tracing::warn!(host.id = %host_id, "refused an enrolment: the join token is not valid");
                Code::TokenRefused
                    .status("the join token is unknown, expired, used up, or made for another host: make one with `vkubelet token create`")
            })?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let enrolled = roster::enroll(&self.state_dir, host_id.as_str(), key, grant.rejoin, now)
            .map_err(|error| internal(&error))?;
        match enrolled {
            Enrolled::New | Enrolled::Again => {}
            Enrolled::Replaced => {
                if let Some(old) = self.connections.get(host_id.as_str()).filter(|old| old.key != key) {
                    old.handle.close();
                }
            }
            Enrolled::Taken => {
                let message = format!(
                    "host {host_id} is enrolled with another key: choose another --host-id, or make a token with --rejoin to replace it"
                );
                self.connections.refused(host_id.as_str(), Code::HostEnrolled, &message);
                tracing::warn!(host.id = %host_id, "refused an enrolment: the host id is taken");
                return Err(Code::HostEnrolled.status(message));
            }
            Enrolled::Revoked => {
                let message = format!("host {host_id} was revoked: make a token with --rejoin to let it in again");
                self.connections.refused(host_id.as_str(), Code::Revoked, &message);
                return Err(Code::Revoked.status(message));
            }
        }
        tracing::info!(host.id = %host_id, key = %key, outcome = ?enrolled, "host enrolled");
        Ok(self.reply(certificate_pem))
    }
}

impl EnrollmentService {
    /// The key stays: were it to change here, an answer that is lost would lock the host out.
    fn renew_certificate(&self, request: &RenewRequest) -> Result<JoinReply, Status> {
        let unknown = || Code::CertificateRefused.status("a certificate is renewed with the one that it follows");
        let peer = self.peer.as_ref().ok_or_else(unknown)?;
        let roster = roster::read(&self.state_dir).map_err(|error| internal(&error))?;
        if let Err(Preamble::Refused { code, message }) = admission::check(peer, roster.get(peer.host_id.as_str())) {
            return Err(code.status(message));
        }
        let signed = self.authority.sign_host(&request.csr_pem, &peer.host_id);
        let (certificate_pem, key) = signed.map_err(|error| Code::InvalidArgument.status(error.to_string()))?;
        if key != peer.key {
            return Err(Code::InvalidArgument.status("a renewed certificate keeps its key; to change it, join again"));
        }
        tracing::info!(host.id = %peer.host_id, "renewed a host's certificate");
        Ok(self.reply(certificate_pem))
    }

    fn reply(&self, certificate_pem: String) -> JoinReply {
        let (ca_pem, node_name) = (self.authority.certificate_pem().to_owned(), self.node_name.clone());
        JoinReply { certificate_pem, ca_pem, node_name }
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Status {
    tracing::error!(error, "enrolment failed");
    Code::Internal.status("vkubelet could not read or write its state; its log says more")
}
