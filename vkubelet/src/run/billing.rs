//! The ledger and its two doors: the public one with its tokens, the internal one for the client socket.

use std::sync::Arc;

use ::billing::api::{AuthError, Authorizer, BearerToken, Billing, Identity, Limits, router};
use ::billing::price::Plan;
use ::billing::store::Store;
use ::billing::store::sqlite::SqliteStore;
use async_trait::async_trait;
use axum::Router;
use http::{HeaderValue, Request, header};
use tower::ServiceBuilder;
use uuid::Uuid;

use super::RunError;
use crate::billing_pull::HostsLive;
use crate::config::Config;
use crate::hosts::Hosts;
use crate::node::billing_access::ClusterAuthorizer;

/// The routes of both doors.
pub(super) struct Doors {
    /// With a bearer token, or in a cluster with any token that its reviews admit.
    pub(super) public: Router,
    /// For callers that were admitted already.
    pub(super) internal: Router,
}

pub(super) fn open(config: &Config) -> Result<Arc<dyn Store>, RunError> {
    let path = config.state_dir.join("billing.sqlite");
    SqliteStore::open(&path)
        .map(|store| Arc::new(store) as Arc<dyn Store>)
        .map_err(|error| RunError::Ledger(Box::new(error)))
}

pub(super) fn token(config: &Config) -> Result<BearerToken, RunError> {
    BearerToken::load_or_create(&config.billing_token_file).map_err(RunError::BillingToken)
}

/// The node's own token opens everything; other tokens are the cluster's to judge.
#[derive(Debug)]
struct Either {
    token: BearerToken,
    cluster: ClusterAuthorizer,
}

const OWN: &str = "nodeless:bearer";

#[async_trait]
impl Authorizer for Either {
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        match self.token.authenticate(token).await {
            Ok(_) => Ok(Identity { user: OWN.to_owned(), groups: Vec::new() }),
            Err(_) => {
                let identity = self.cluster.authenticate(token).await?;
                // A cluster user of that name is not the node's own token.
                if identity.user == OWN { Err(AuthError::Unauthenticated) } else { Ok(identity) }
            }
        }
    }

    async fn authorize(&self, identity: &Identity, namespace: Option<&str>) -> Result<(), AuthError> {
        if identity.user == OWN { Ok(()) } else { self.cluster.authorize(identity, namespace).await }
    }
}

pub(super) fn doors(store: &Arc<dyn Store>, token: BearerToken, cluster: Option<kube::Client>, hosts: &Hosts) -> Doors {
    let plan = Arc::new(Plan::default());
    let billing = |authorizer: Arc<dyn Authorizer>| Billing {
        store: Arc::clone(store),
        live: Arc::new(HostsLive::new(hosts.clone())),
        authorizer,
        plan: Arc::clone(&plan),
    };
    let authorizer: Arc<dyn Authorizer> = match cluster {
        Some(client) => Arc::new(Either { token, cluster: ClusterAuthorizer::new(client) }),
        None => Arc::new(token),
    };
    let secret = format!("{}{}", Uuid::new_v4(), Uuid::new_v4());
    let internal = router(billing(Arc::new(BearerToken::new(&secret))), Limits::default());
    let with_secret = ServiceBuilder::new().map_request(move |mut request: Request<axum::body::Body>| {
        if let Ok(value) = HeaderValue::try_from(format!("Bearer {secret}")) {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        request
    });
    Doors { public: router(billing(authorizer), Limits::default()), internal: internal.layer(with_secret) }
}
