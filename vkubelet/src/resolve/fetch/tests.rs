use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::broadcast;

use super::*;
use crate::ports::ReferenceChanged;

#[derive(Default)]
struct FakeReferences {
    config_maps: BTreeMap<String, ReferencedObject>,
    secrets: BTreeMap<String, ReferencedObject>,
    token_asks: Mutex<u32>,
    broken: bool,
}

#[async_trait]
impl References for FakeReferences {
    async fn config_map(&self, _: &str, name: &str) -> Result<Option<ReferencedObject>, PortError> {
        if self.broken {
            return Err(PortError::CouldNotAsk { what: format!("configmap {name}"), source: "refused".into() });
        }
        Ok(self.config_maps.get(name).cloned())
    }
    async fn secret(&self, _: &str, name: &str) -> Result<Option<ReferencedObject>, PortError> {
        Ok(self.secrets.get(name).cloned())
    }
    async fn token(&self, _: &TokenAsk) -> Result<Option<Token>, PortError> {
        let mut asks = self.token_asks.lock().unwrap();
        *asks += 1;
        Ok(Some(Token { token: format!("t{asks}"), expires_unix: 2000 }))
    }
    fn changes(&self) -> broadcast::Receiver<ReferenceChanged> {
        broadcast::channel(1).1
    }
}

fn object(keys: &[(&str, &str)]) -> ReferencedObject {
    ReferencedObject {
        type_: String::new(),
        data: keys.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect(),
    }
}

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"spec": spec})).unwrap()
}

async fn run(fake: &FakeReferences, pod: &Pod, held: &[HeldToken], now: i64) -> Outcome {
    let pod_ref = PodRef { uid: "u".into(), namespace: "ns".into(), name: "p".into() };
    let settings = ClusterSettings { service_host: "10.0.0.1".into(), service_port: 443, ..Default::default() };
    fetch(fake, &pod_ref, pod, &Needs::of(pod), held, &settings, now).await
}

fn env_pod(optional: bool) -> Pod {
    let source = json!({"configMapKeyRef": {"name": "m", "key": "k", "optional": optional}});
    pod(json!({"containers": [{"name": "a", "env": [{"name": "X", "valueFrom": source}]}]}))
}

fn waits(outcome: Outcome) -> Vec<Wait> {
    match outcome {
        Outcome::Waiting(waits) => waits,
        Outcome::Resolved(r) => panic!("resolved: {r:?}"),
    }
}

fn resolved(outcome: Outcome) -> Resolution {
    match outcome {
        Outcome::Resolved(resolution) => *resolution,
        Outcome::Waiting(waits) => panic!("waits: {waits:?}"),
    }
}

#[tokio::test]
async fn a_volumes_missing_object_holds_the_pod_under_its_contract_name() {
    let pod = pod(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "configMap": {"name": "m"}}]}));
    let list = waits(run(&FakeReferences::default(), &pod, &[], 0).await);
    assert_eq!((list[0].reason, list[0].container_reason), ("MandatoryConfigMapNotFound", "ContainerCreating"));
    assert!(list[0].message.contains("\"m\""));
}

/// The agent, as a kubelet, has that container wait, and starts the others.
#[tokio::test]
async fn an_environments_missing_object_or_key_holds_its_container_only() {
    let resolution = resolved(run(&FakeReferences::default(), &env_pod(false), &[], 0).await);
    assert!(resolution.incomplete && resolution.resolved.config_maps.is_empty());
    assert_eq!(resolution.warnings[0].reason, "MandatoryConfigMapNotFound");
    let mut fake = FakeReferences::default();
    fake.config_maps.insert("m".into(), object(&[("other", "1")]));
    let resolution = resolved(run(&fake, &env_pod(false), &[], 0).await);
    assert!(resolution.incomplete && resolution.resolved.config_maps.len() == 1);
    let message = &resolution.warnings[0].message;
    assert!(message.contains("couldn't find key k in ConfigMap ns/m"), "{message}");
    fake.config_maps.insert("m".into(), object(&[("k", "1")]));
    assert!(!resolved(run(&fake, &env_pod(false), &[], 0).await).incomplete);
}

#[tokio::test]
async fn a_missing_optional_object_is_left_out_and_told() {
    let resolution = resolved(run(&FakeReferences::default(), &env_pod(true), &[], 0).await);
    assert!(resolution.resolved.config_maps.is_empty());
    assert_eq!(resolution.warnings[0].reason, "OptionalConfigMapNotFound");
    assert!(!resolution.incomplete);
}

#[tokio::test]
async fn a_volumes_missing_key_holds_the_pod() {
    let mut fake = FakeReferences::default();
    fake.config_maps.insert("m".into(), object(&[("other", "1")]));
    let volume = json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "k"}]}});
    let list = waits(run(&fake, &pod(json!({"containers": [{"name": "a"}], "volumes": [volume]})), &[], 0).await);
    assert!(list[0].message.contains("couldn't find key k in ConfigMap ns/m"), "{}", list[0].message);
}

#[tokio::test]
async fn could_not_ask_is_not_absent_even_for_optional_objects() {
    let fake = FakeReferences { broken: true, ..Default::default() };
    let list = waits(run(&fake, &env_pod(true), &[], 0).await);
    assert_eq!(list[0].reason, "ReferenceUnavailable");
    assert!(list[0].message.contains("refused"), "{}", list[0].message);
}

#[tokio::test]
async fn a_token_is_asked_for_again_only_after_eighty_percent_of_its_life() {
    let fake = FakeReferences::default();
    let pod = pod(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token"}}]}}]}));
    let first = resolved(run(&fake, &pod, &[], 1000).await);
    assert_eq!(first.refresh_unix, Some(1800));
    let again = resolved(run(&fake, &pod, &first.tokens, 1799).await);
    assert_eq!(again.resolved, first.resolved);
    let later = resolved(run(&fake, &pod, &again.tokens, 1800).await);
    assert_eq!(later.resolved.tokens[0].token, "t2");
    assert_eq!(later.resolved.service_env["KUBERNETES_SERVICE_HOST"], "10.0.0.1");
}

#[tokio::test]
async fn a_missing_pull_secret_only_warns() {
    let pod = pod(json!({"containers": [{"name": "a"}], "imagePullSecrets": [{"name": "x"}]}));
    let resolution = resolved(run(&FakeReferences::default(), &pod, &[], 0).await);
    assert_eq!(resolution.warnings[0].reason, "FailedToRetrieveImagePullSecret");
}

#[tokio::test]
async fn all_credentials_of_a_registry_are_sent_in_the_order_of_the_pull_secrets_equal_ones_once() {
    let mut fake = FakeReferences::default();
    let auths = |auths: serde_json::Value| object(&[(".dockerconfigjson", &json!({"auths": auths}).to_string())]);
    let of = |user: &str| json!({"username": user, "password": "p"});
    fake.secrets.insert("z".into(), auths(json!({"r.io": of("first"), "other.io": of("x")})));
    fake.secrets.insert("a".into(), auths(json!({"r.io": of("second")})));
    fake.secrets.insert("copy".into(), auths(json!({"r.io": of("first")})));
    let names = ["z", "a", "copy"].map(|name| json!({"name": name}));
    let pod = pod(json!({"containers": [{"name": "a"}], "imagePullSecrets": names}));
    let sent = resolved(run(&fake, &pod, &[], 0).await).resolved.registry_credentials;
    let sent: Vec<_> = sent.iter().map(|c| (c.registry.as_str(), c.username.as_str())).collect();
    assert_eq!(sent, [("other.io", "x"), ("r.io", "first"), ("r.io", "second")]);
}

#[tokio::test]
async fn unusable_variable_names_are_told() {
    let mut fake = FakeReferences::default();
    fake.config_maps.insert("m".into(), object(&[("good", "1"), ("a=b", "2")]));
    let pod = pod(json!({"containers": [{"name": "a", "envFrom": [{"configMapRef": {"name": "m"}}]}]}));
    let resolution = resolved(run(&fake, &pod, &[], 0).await);
    assert_eq!(resolution.warnings[0].reason, "InvalidEnvironmentVariableNames");
    assert!(resolution.warnings[0].message.contains("[a=b]"));
}
