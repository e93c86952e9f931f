//! Whether a caller may: SubjectAccessReview on the node, with the kubelet's cache times.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::access::Access;
use super::authn::Identity;

/// How long "yes" is remembered (the kubelet's `authorization.webhook.cacheAuthorizedTTL`).
const KEEP_YES: Duration = Duration::from_secs(300);
/// How long "no" is remembered (`cacheUnauthorizedTTL`).
const KEEP_NO: Duration = Duration::from_secs(30);
/// Answers remembered at most.
const MOST: usize = 4096;

/// Why a caller may not.
#[derive(Debug, thiserror::Error)]
pub enum AuthzError {
    /// The API server said no.
    #[error("user {user} may not {verb} nodes/{subresource} of this node")]
    Forbidden {
        /// Who asked.
        user: String,
        /// The verb.
        verb: &'static str,
        /// The coarsest subresource that would have done.
        subresource: &'static str,
    },
    /// The API server could not be asked.
    #[error("the right of user {user} could not be checked")]
    CouldNotAsk {
        /// Who asked.
        user: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

type Question = (Identity, &'static str, &'static str);

/// Asks the API server what callers may do to this node.
pub struct Authorizer {
    api: Api<SubjectAccessReview>,
    node: String,
    known: Mutex<HashMap<Question, (Instant, bool)>>,
}

impl Authorizer {
    /// For the node of this name.
    pub fn new(client: Client, node: String) -> Self {
        Self { api: Api::all(client), node, known: Mutex::new(HashMap::new()) }
    }

    /// Allows or says why not.
    pub async fn check(&self, identity: &Identity, access: &Access) -> Result<(), AuthzError> {
        for subresource in access.subresources {
            if self.allowed(identity, access.verb, subresource).await? {
                return Ok(());
            }
        }
        Err(AuthzError::Forbidden {
            user: identity.user.clone(),
            verb: access.verb,
            subresource: access.subresources.last().copied().unwrap_or("proxy"),
        })
    }

    async fn allowed(
        &self,
        identity: &Identity,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, AuthzError> {
        let question = (identity.clone(), verb, subresource);
        if let Some(answer) = self.remembered(&question) {
            return Ok(answer);
        }
        let review = self.review(identity, verb, subresource);
        let answer = self
            .api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|source| AuthzError::CouldNotAsk { user: identity.user.clone(), source: Box::new(source) })?;
        let allowed = answer.status.is_some_and(|s| s.allowed && s.denied != Some(true));
        self.remember(question, allowed);
        Ok(allowed)
    }

    fn review(&self, identity: &Identity, verb: &str, subresource: &str) -> SubjectAccessReview {
        SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(identity.user.clone()),
                uid: (!identity.uid.is_empty()).then(|| identity.uid.clone()),
                groups: Some(identity.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        }
    }

    fn remembered(&self, question: &Question) -> Option<bool> {
        let known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (at, answer) = known.get(question)?;
        let keep = if *answer { KEEP_YES } else { KEEP_NO };
        (at.elapsed() < keep).then_some(*answer)
    }

    fn remember(&self, question: Question, answer: bool) {
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(question, (Instant::now(), answer));
    }
}
