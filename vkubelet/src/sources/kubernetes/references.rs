//! ConfigMaps, Secrets and bound tokens from the API server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::broadcast;

use super::port_error;
use crate::ports::{PortError, ReferenceChanged, ReferenceKind, ReferencedObject, References, Token, TokenAsk};

/// How long an object that was found is not asked for again: a burst of pods of one namespace reads
/// `kube-root-ca.crt` once. An absent one is asked for each time.
const KEEP: Duration = Duration::from_secs(5);
/// Objects kept at most.
const MOST: usize = 1024;

type Slot = Arc<tokio::sync::Mutex<Option<(Instant, ReferencedObject)>>>;
type Key = (ReferenceKind, String, String);

/// Looks references up, each once at a time.
pub(super) struct KubernetesReferences {
    client: Client,
    slots: Mutex<HashMap<Key, Slot>>,
    changes: broadcast::Sender<ReferenceChanged>,
}

impl KubernetesReferences {
    pub(super) fn new(client: Client) -> Self {
        Self { client, slots: Mutex::new(HashMap::new()), changes: broadcast::channel(1).0 }
    }

    fn slot(&self, kind: ReferenceKind, namespace: &str, name: &str) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if slots.len() >= MOST {
            slots.clear();
        }
        Arc::clone(slots.entry((kind, namespace.to_owned(), name.to_owned())).or_default())
    }

    async fn object(
        &self,
        kind: ReferenceKind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ReferencedObject>, PortError> {
        let slot = self.slot(kind, namespace, name);
        let mut slot = slot.lock().await;
        if let Some((at, object)) = slot.as_ref()
            && at.elapsed() < KEEP
        {
            return Ok(Some(object.clone()));
        }
        *slot = None;
        let found = match kind {
            ReferenceKind::ConfigMap => self.get_config_map(namespace, name).await,
            ReferenceKind::Secret => self.get_secret(namespace, name).await,
        }?;
        if let Some(object) = &found {
            *slot = Some((Instant::now(), object.clone()));
        }
        Ok(found)
    }

    async fn get_config_map(&self, namespace: &str, name: &str) -> Result<Option<ReferencedObject>, PortError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await.map_err(|e| port_error(format!("configmap {namespace}/{name}"), e))?;
        Ok(found.map(|map| {
            let text = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
            let binary = map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
            ReferencedObject { type_: String::new(), data: text.chain(binary).collect() }
        }))
    }

    async fn get_secret(&self, namespace: &str, name: &str) -> Result<Option<ReferencedObject>, PortError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await.map_err(|e| port_error(format!("secret {namespace}/{name}"), e))?;
        Ok(found.map(|secret| ReferencedObject {
            type_: secret.type_.unwrap_or_default(),
            data: secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect(),
        }))
    }
}

#[async_trait]
impl References for KubernetesReferences {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ReferencedObject>, PortError> {
        self.object(ReferenceKind::ConfigMap, namespace, name).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<ReferencedObject>, PortError> {
        self.object(ReferenceKind::Secret, namespace, name).await
    }

    async fn token(&self, ask: &TokenAsk) -> Result<Option<Token>, PortError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &ask.pod.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: (!ask.audience.is_empty()).then(|| vec![ask.audience.clone()]),
                expiration_seconds: Some(ask.expiration_seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(ask.pod.name.clone()),
                    uid: Some(ask.pod.uid.clone()),
                }),
            }),
            ..TokenRequest::default()
        };
        let what = format!("token of service account {}/{}", ask.pod.namespace, ask.service_account);
        let answer: Result<TokenRequest, _> =
            api.create_subresource("token", &ask.service_account, &PostParams::default(), &request).await;
        match answer {
            Ok(answer) => {
                let status = answer.status.unwrap_or_default();
                let (Some(token), Some(expires)) = (status.token, status.expiration_timestamp) else {
                    return Err(PortError::CouldNotAsk { what, source: "the answer holds no token".into() });
                };
                Ok(Some(Token { token, expires_unix: expires.0.as_second() }))
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(error) => Err(port_error(what, error)),
        }
    }

    fn changes(&self) -> broadcast::Receiver<ReferenceChanged> {
        self.changes.subscribe()
    }
}
