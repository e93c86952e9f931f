//! Whether a connection with a verified certificate may become a host's session. Pure.

use agent_api::codes::Code;
use agent_api::identity::HostPeer;
use agent_api::transport::preamble::Preamble;

use super::roster::EnrolledHost;

/// What the roster says about a peer.
pub(super) fn check(peer: &HostPeer, enrolled: Option<&EnrolledHost>) -> Result<(), Preamble> {
    let refuse = |code, message: String| Err(Preamble::Refused { code, message });
    let host = &peer.host_id;
    match enrolled {
        None => refuse(Code::CertificateRefused, format!("host {host} is not enrolled here: join again")),
        Some(known) if known.revoked_unix.is_some() => refuse(Code::Revoked, format!("host {host} was revoked")),
        Some(known) if known.key != peer.key => refuse(
            Code::CertificateRefused,
            format!("host {host} has joined again with another key: this one is not valid any more"),
        ),
        Some(_) => Ok(()),
    }
}

/// The refusal of a second living agent.
pub(super) fn already_connected(peer: &HostPeer, other: &str) -> Preamble {
    let host = &peer.host_id;
    Preamble::Refused {
        code: Code::HostConnected,
        message: format!(
            "an agent with the host id {host} is connected from {other} and answers: two agents must not share one identity. \
             Stop one of them, or join it anew with a --state-dir and a --host-id of its own"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_api::identity::{HostId, SpkiHash};

    #[test]
    fn only_the_enrolled_key_of_a_host_that_was_not_revoked_is_admitted() {
        let peer = HostPeer {
            host_id: HostId::new("edge-1").expect("id"),
            key: SpkiHash::of_spki(b"1"),
            serial: "01".into(),
            not_after_unix: 0,
        };
        let enrolled = EnrolledHost { key: peer.key, enrolled_unix: 1, revoked_unix: None };
        let code = |enrolled: Option<&EnrolledHost>| match check(&peer, enrolled) {
            Err(Preamble::Refused { code, .. }) => Some(code),
            _ => None,
        };
        assert_eq!(code(Some(&enrolled)), None);
        assert_eq!(code(None), Some(Code::CertificateRefused));
        let other = EnrolledHost { key: SpkiHash::of_spki(b"2"), ..enrolled.clone() };
        assert_eq!(code(Some(&other)), Some(Code::CertificateRefused));
        let revoked = EnrolledHost { revoked_unix: Some(2), ..enrolled };
        assert_eq!(code(Some(&revoked)), Some(Code::Revoked));
    }
}
