//! Who asks: a client certificate that the TLS layer has verified, else a bearer token by TokenReview.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long a good token is not asked about again (the kubelet's default).
const KEEP: Duration = Duration::from_secs(120);
/// Answers remembered at most.
const MOST: usize = 4096;

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Identity {
    /// User name.
    pub user: String,
    /// User id, when the authenticator gives one.
    pub uid: String,
    /// Groups, `system:authenticated` included.
    pub groups: Vec<String>,
}

/// Why a caller has no identity.
#[derive(Debug, thiserror::Error)]
pub enum AuthnError {
    /// Neither certificate nor token.
    #[error("no client certificate and no bearer token was given")]
    Missing,
    /// The API server does not know the token.
    #[error("the bearer token is not valid")]
    Refused,
    /// The API server could not be asked.
    #[error("the bearer token could not be checked")]
    CouldNotAsk {
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

/// The identity in a verified client certificate: common name and organisations, as Kubernetes reads them.
pub fn from_certificate(der: &[u8]) -> Option<Identity> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push("system:authenticated".to_owned());
    (!user.is_empty()).then_some(Identity { user, uid: String::new(), groups })
}

/// Checks bearer tokens with the API server and remembers good ones for a while, by hash.
pub struct Tokens {
    api: Api<TokenReview>,
    known: Mutex<HashMap<[u8; 32], (Instant, Identity)>>,
}

impl Tokens {
    /// Asks through this client.
    pub fn new(client: Client) -> Self {
        Self { api: Api::all(client), known: Mutex::new(HashMap::new()) }
    }

    /// The identity behind a token.
    pub async fn identify(&self, token: &str) -> Result<Identity, AuthnError> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(identity) = self.remembered(&key) {
            return Ok(identity);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let answer = self
            .api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|source| AuthnError::CouldNotAsk { source: Box::new(source) })?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(AuthnError::Refused);
        }
        let identity = Identity {
            user: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
        };
        self.remember(key, identity.clone());
        Ok(identity)
    }

    fn remembered(&self, key: &[u8; 32]) -> Option<Identity> {
        let known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        known.get(key).filter(|(at, _)| at.elapsed() < KEEP).map(|(_, identity)| identity.clone())
    }

    fn remember(&self, key: [u8; 32], identity: Identity) {
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (at, _)| at.elapsed() < KEEP);
        }
        if known.len() < MOST {
            known.insert(key, (Instant::now(), identity));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(cn: &str, organisations: &[&str]) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        let mut name = rcgen::DistinguishedName::new();
        if !cn.is_empty() {
            name.push(rcgen::DnType::CommonName, cn);
        }
        for o in organisations {
            name.push(rcgen::DnType::OrganizationName, *o);
        }
        params.distinguished_name = name;
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_names_user_and_groups() {
        let identity = from_certificate(&certificate("kube-apiserver", &["system:masters"])).unwrap();
        assert_eq!(identity.user, "kube-apiserver");
        assert_eq!(identity.groups, ["system:masters", "system:authenticated"]);
    }

    #[test]
    fn a_certificate_without_a_common_name_is_nobody() {
        assert_eq!(from_certificate(&certificate("", &["system:masters"])), None);
        assert_eq!(from_certificate(b"no certificate"), None);
    }
}
