//! Who may read bills in a cluster: whoever may `get` the virtual resource `billingrecords.nodeless.dev`, in the bill's
//! namespace or in all of them. No such objects exist; RBAC rules may name them all the same.

use async_trait::async_trait;
use billing::api::{AuthError, Authorizer, Identity};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::kubelet_api::authn::{AuthnError, Tokens};

/// The resource's API group.
pub const GROUP: &str = "nodeless.dev";
/// The resource.
pub const RESOURCE: &str = "billingrecords";

/// TokenReview and SubjectAccessReview for the billing interface.
pub struct ClusterAuthorizer {
    tokens: Tokens,
    reviews: Api<SubjectAccessReview>,
}

impl std::fmt::Debug for ClusterAuthorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterAuthorizer(..)")
    }
}

impl ClusterAuthorizer {
    /// Asks through this client.
    pub fn new(client: Client) -> Self {
        Self { tokens: Tokens::new(client.clone()), reviews: Api::all(client) }
    }
}

fn review(identity: &Identity, namespace: Option<&str>) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(identity.user.clone()),
            groups: Some(identity.groups.clone()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some("get".to_owned()),
                group: Some(GROUP.to_owned()),
                version: Some("v1alpha1".to_owned()),
                resource: Some(RESOURCE.to_owned()),
                namespace: namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

#[async_trait]
impl Authorizer for ClusterAuthorizer {
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        match self.tokens.identify(token).await {
            Ok(identity) => Ok(Identity { user: identity.user, groups: identity.groups }),
            Err(AuthnError::Missing | AuthnError::Refused) => Err(AuthError::Unauthenticated),
            Err(AuthnError::CouldNotAsk { source }) => Err(AuthError::Unavailable(source)),
        }
    }

    async fn authorize(&self, identity: &Identity, namespace: Option<&str>) -> Result<(), AuthError> {
        let asked = self.reviews.create(&PostParams::default(), &review(identity, namespace)).await;
        let status = asked.map_err(|e| AuthError::Unavailable(Box::new(e)))?.status.unwrap_or_default();
        if status.allowed && status.denied != Some(true) {
            return Ok(());
        }
        let what = namespace.map_or_else(|| "all namespaces".to_owned(), |n| format!("namespace {n}"));
        Err(AuthError::Forbidden { user: identity.user.clone(), what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_namespaces_are_asked_for_without_one() {
        let identity = Identity { user: "u".into(), groups: vec![] };
        let of = |namespace| review(&identity, namespace).spec.resource_attributes.unwrap().namespace;
        assert_eq!(of(None), None);
        assert_eq!(of(Some("team")), Some("team".to_owned()));
    }
}
