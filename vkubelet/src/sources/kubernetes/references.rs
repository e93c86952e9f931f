//! ConfigMaps, Secrets and bound tokens from the API server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::api::PostParams;
use kube::core::Status;
use kube::{Api, Client};
use tokio::sync::broadcast;

use super::{Traffic, port_error};
use crate::ports::{PortError, ReferenceChanged, ReferenceKind, ReferencedObject, References, Token, TokenAsk};

/// How long an object that was found is not asked for again: a burst of pods of one namespace reads
/// `kube-root-ca.crt` once. An absent one is asked for each time.
const KEEP: Duration = Duration::from_secs(5);
/// Pauses before an object is asked for again that the API server does not show us yet: its view of who may see what, and
/// of which pods there are, comes by watches of its own and lags behind a new pod, the more so when many come at once.
const LAG: [Duration; 7] = [
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
    Duration::from_millis(320),
    Duration::from_millis(640),
];
/// Objects kept at most.
const MOST: usize = 1024;

type Slot = Arc<tokio::sync::Mutex<Option<(Instant, ReferencedObject)>>>;
type Key = (ReferenceKind, String, String);

/// Looks references up, each once at a time.
pub(super) struct KubernetesReferences {
    client: Client,
    traffic: Traffic,
    slots: Mutex<HashMap<Key, Slot>>,
    changes: broadcast::Sender<ReferenceChanged>,
}

impl KubernetesReferences {
    pub(super) fn new(client: Client, traffic: Traffic) -> Self {
        Self { client, traffic, slots: Mutex::new(HashMap::new()), changes: broadcast::channel(1).0 }
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
        let found = patiently(|| api.get_opt(name)).await;
        let found = found.map_err(|e| port_error(format!("configmap {namespace}/{name}"), e))?;
        Ok(found.map(|map| {
            let text = map.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
            let binary = map.binary_data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
            ReferencedObject { type_: String::new(), data: text.chain(binary).collect() }
        }))
    }

    async fn get_secret(&self, namespace: &str, name: &str) -> Result<Option<ReferencedObject>, PortError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = patiently(|| api.get_opt(name)).await;
        let found = found.map_err(|e| port_error(format!("secret {namespace}/{name}"), e))?;
        Ok(found.map(|secret| ReferencedObject {
            type_: secret.type_.unwrap_or_default(),
            data: secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect(),
        }))
    }
}

/// Asks again while the answer may only be behind the times.
async fn patiently<T, F>(ask: impl Fn() -> F) -> Result<T, kube::Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    for pause in LAG {
        match ask().await {
            Err(kube::Error::Api(status)) if status.is_forbidden() || is_about_pod(&status) => {
                tracing::debug!(detail = status.message, "the API server is behind the times; asking again");
                tokio::time::sleep(pause).await;
            }
            answer => return answer,
        }
    }
    ask().await
}

/// A pod was not found, though something else was asked for. The API server's admission plugins say `pod`, its storage `pods`.
fn is_about_pod(status: &Status) -> bool {
    status.is_not_found() && status.details.as_ref().is_some_and(|details| ["pod", "pods"].contains(&&*details.kind))
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
        let _urgent = self.traffic.urgent();
        let params = PostParams::default();
        let answer: Result<TokenRequest, _> =
            patiently(|| api.create_subresource("token", &ask.service_account, &params, &request)).await;
        match answer {
            Ok(answer) => {
                let status = answer.status.unwrap_or_default();
                let (Some(token), Some(expires)) = (status.token, status.expiration_timestamp) else {
                    return Err(PortError::CouldNotAsk { what, source: "the answer holds no token".into() });
                };
                Ok(Some(Token { token, expires_unix: expires.0.as_second() }))
            }
            // It is the account that is not there; a pod that is not there yet, or not any more, says nothing of it.
            Err(kube::Error::Api(status)) if status.is_not_found() && !is_about_pod(&status) => Ok(None),
            Err(error) => Err(port_error(what, error)),
        }
    }

    fn changes(&self) -> broadcast::Receiver<ReferenceChanged> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn refusal(code: u16, kind: &str) -> kube::Error {
        let status = serde_json::json!({"status": "Failure", "code": code, "message": "", "details": {"kind": kind},
            "reason": if code == 403 { "Forbidden" } else { "NotFound" }});
        kube::Error::Api(serde_json::from_value(status).unwrap())
    }

    async fn tries(answers: impl Fn(usize) -> Result<(), kube::Error>) -> (usize, Result<(), kube::Error>) {
        let asked = AtomicUsize::new(0);
        let answer = patiently(|| async { answers(asked.fetch_add(1, SeqCst)) }).await;
        (asked.into_inner(), answer)
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pod_that_the_api_server_does_not_see_yet_is_asked_for_again() {
        let behind = [(403, "secrets"), (404, "pods"), (404, "pod")];
        let (asked, answer) = tries(|n| behind.get(n).map_or(Ok(()), |(code, kind)| Err(refusal(*code, kind)))).await;
        assert_eq!(asked, 4);
        answer.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_there_is_told_at_once_and_what_is_denied_after_a_while() {
        assert_eq!(tries(|_| Err(refusal(404, "serviceaccounts"))).await.0, 1);
        let began = tokio::time::Instant::now();
        let (asked, answer) = tries(|_| Err(refusal(403, "secrets"))).await;
        assert!(answer.is_err() && asked == LAG.len() + 1);
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}
