//! Asks a source for everything a pod needs, side by side.

use std::collections::BTreeSet;

use agent_api::proto::{ClusterDns, Object, Resolved, ServiceAccountToken};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;

use super::credentials::credentials;
use super::needs::{Need, Needs, TokenNeed};
use super::service::{ClusterSettings, service_env};
use crate::desired::PodRef;
use crate::ports::{PortError, ReferenceKind, ReferencedObject, References, Token, TokenAsk};

/// A token is asked for again after this part of its life ...
const REFRESH_AFTER_PERCENT: i64 = 80;
/// ... and in any case after a day.
const REFRESH_AFTER_SECONDS: i64 = 24 * 3600;

/// A token and when it was given.
#[derive(Debug, Clone)]
pub struct HeldToken {
    /// For which place.
    pub need: TokenNeed,
    token: Token,
    refresh_unix: i64,
}

/// Why a pod cannot go on yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// The Event's reason, such as `MandatoryConfigMapNotFound`.
    pub reason: &'static str,
    /// The reason in the waiting state of the pod's containers.
    pub container_reason: &'static str,
    /// For people: what is missing, where it is used, what to do.
    pub message: String,
    /// The field that uses it.
    pub field: String,
}

/// Everything a pod refers to.
#[derive(Debug, Clone, Default)]
pub struct Resolution {
    /// As it travels.
    pub resolved: Resolved,
    /// To be handed in again at the next fetch, so that fresh tokens are not asked for twice.
    pub tokens: Vec<HeldToken>,
    /// Seconds since 1970: fetch again then, because a token ages.
    pub refresh_unix: Option<i64>,
    /// What does not stop the pod but should be told: (reason, message, field).
    pub warnings: Vec<Wait>,
    /// Some container waits for what is not there: to be looked for again.
    pub incomplete: bool,
}

/// What came of asking.
#[derive(Debug)]
pub enum Outcome {
    /// Complete.
    Resolved(Box<Resolution>),
    /// Something mandatory is missing or could not be asked for.
    Waiting(Vec<Wait>),
}

/// Asks for all of a pod's needs. `held` are the tokens of the last time; `now_unix` in seconds.
pub async fn fetch(
    references: &dyn References,
    pod_ref: &PodRef,
    pod: &Pod,
    needs: &Needs,
    held: &[HeldToken],
    cluster: &ClusterSettings,
    now_unix: i64,
) -> Outcome {
    let mut resolution = Resolution::default();
    let mut waits = Vec::new();
    let namespace = &pod_ref.namespace;
    let objects = join_all(needs.objects.iter().map(|((kind, name), need)| async move {
        let found = match kind {
            ReferenceKind::ConfigMap => references.config_map(namespace, name).await,
            ReferenceKind::Secret => references.secret(namespace, name).await,
        };
        (*kind, name, need, found)
    }));
    let pulls =
        join_all(needs.pull_secrets.iter().map(|name| async move { (name, references.secret(namespace, name).await) }));
    let account = &service_account(pod);
    let tokens = join_all(needs.tokens.iter().map(|need| async move {
        let fresh = held.iter().find(|h| h.need == *need && h.refresh_unix > now_unix);
        let answer = match fresh {
            Some(held) => Ok(Some((held.token.clone(), held.refresh_unix))),
            None => {
                let ask = TokenAsk {
                    pod: pod_ref.clone(),
                    service_account: account.clone(),
                    audience: need.audience.clone(),
                    expiration_seconds: need.expiration_seconds,
                };
                references.token(&ask).await.map(|t| t.map(|t| (t.clone(), refresh_at(now_unix, t.expires_unix))))
            }
        };
        (need, answer)
    }));
    let (objects, pulls, tokens) = futures::join!(objects, pulls, tokens);

    for (kind, name, need, found) in objects {
        match found {
            Ok(Some(object)) => {
                waits.extend(missing_keys(kind, namespace, &need.mounted_keys, name, need, &object));
                let missing = missing_keys(kind, namespace, &need.keys, name, need, &object);
                resolution.incomplete |= !missing.is_empty();
                resolution.warnings.extend(missing);
                resolution.warnings.extend(invalid_names(kind, name, need, &object));
                let object =
                    Object { name: name.clone(), data: object.data.into_iter().map(|(k, v)| (k, v.into())).collect() };
                match kind {
                    ReferenceKind::ConfigMap => resolution.resolved.config_maps.push(object),
                    ReferenceKind::Secret => resolution.resolved.secrets.push(object),
                }
            }
            Ok(None) => {
                let wait = absent(kind, namespace, name, need, references.absent_hint());
                // Its agent has the containers wait that cannot do without it, and starts the others.
                resolution.incomplete |= need.mandatory;
                if need.mounted { waits.push(wait) } else { resolution.warnings.push(wait) }
            }
            Err(error) => waits.push(unanswered(&error, &need.field)),
        }
    }
    for (name, found) in pulls {
        match found {
            Ok(found) => pull_secret(name, found.as_ref(), &mut resolution),
            Err(error) => waits.push(unanswered(&error, "spec.imagePullSecrets")),
        }
    }
    for (need, answer) in tokens {
        match answer {
            Ok(Some((token, refresh_unix))) => take_token(need, token, refresh_unix, &mut resolution),
            Ok(None) => waits.push(Wait {
                reason: "FailedMount",
                container_reason: "ContainerCreating",
                message: format!(
                    "serviceaccount \"{namespace}/{account}\" not found: create it, or set spec.serviceAccountName"
                ),
                field: format!("spec.volumes{{{}}}", need.volume),
            }),
            Err(error) => waits.push(unanswered(&error, &format!("spec.volumes{{{}}}", need.volume))),
        }
    }
    if !waits.is_empty() {
        return Outcome::Waiting(waits);
    }
    if pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true) || !needs.tokens.is_empty() {
        resolution.resolved.service_env = service_env(cluster);
    }
    resolution.resolved.dns = (!cluster.dns_servers.is_empty()).then(|| ClusterDns {
        servers: cluster.dns_servers.iter().map(ToString::to_string).collect(),
        domain: cluster.dns_domain.clone(),
    });
    Outcome::Resolved(Box::new(resolution))
}

fn service_account(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    spec.and_then(|s| s.service_account_name.clone().or_else(|| s.service_account.clone()))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "default".to_owned())
}

fn refresh_at(now_unix: i64, expires_unix: i64) -> i64 {
    let life = expires_unix.saturating_sub(now_unix).max(0);
    now_unix + (life * REFRESH_AFTER_PERCENT / 100).min(REFRESH_AFTER_SECONDS)
}

fn take_token(need: &TokenNeed, token: Token, refresh_unix: i64, resolution: &mut Resolution) {
    resolution.resolved.tokens.push(ServiceAccountToken {
        volume: need.volume.clone(),
        path: need.path.clone(),
        token: token.token.clone(),
        expires_unix: token.expires_unix,
    });
    let soonest = resolution.refresh_unix.map_or(refresh_unix, |so_far| so_far.min(refresh_unix));
    resolution.refresh_unix = Some(soonest);
    resolution.tokens.push(HeldToken { need: need.clone(), token, refresh_unix });
}

fn pull_secret(name: &str, found: Option<&ReferencedObject>, resolution: &mut Resolution) {
    let warning = |message: String| Wait {
        reason: "FailedToRetrieveImagePullSecret",
        container_reason: "",
        message,
        field: "spec.imagePullSecrets".to_owned(),
    };
    match found.map(credentials) {
        // A registry may know several names, of which each image wants another: all of them are tried, in this order.
        Some(Ok(list)) => {
            let all = &mut resolution.resolved.registry_credentials;
            for credential in list {
                if !all.contains(&credential) {
                    all.push(credential);
                }
            }
        }
        Some(Err(error)) => resolution.warnings.push(warning(format!("pull secret {name}: {error}"))),
        None => {
            resolution.warnings.push(warning(format!("pull secret {name} was not found: images are pulled without it")))
        }
    }
}

fn kind_name(kind: ReferenceKind) -> &'static str {
    match kind {
        ReferenceKind::ConfigMap => "configmap",
        ReferenceKind::Secret => "secret",
    }
}

/// As its objects spell their kind.
fn kind_of(kind: ReferenceKind) -> &'static str {
    match kind {
        ReferenceKind::ConfigMap => "ConfigMap",
        ReferenceKind::Secret => "Secret",
    }
}

fn container_reason(need: &Need) -> &'static str {
    if need.env && !need.mounted { "CreateContainerConfigError" } else { "ContainerCreating" }
}

fn absent(kind: ReferenceKind, namespace: &str, name: &str, need: &Need, hint: Option<&str>) -> Wait {
    let reason = match (kind, need.mandatory) {
        (ReferenceKind::ConfigMap, true) => "MandatoryConfigMapNotFound",
        (ReferenceKind::ConfigMap, false) => "OptionalConfigMapNotFound",
        (ReferenceKind::Secret, true) => "MandatorySecretNotFound",
        (ReferenceKind::Secret, false) => "OptionalSecretNotFound",
    };
    Wait {
        reason,
        container_reason: container_reason(need),
        message: format!(
            "{} \"{name}\" not found in namespace {namespace}, used by {}{}",
            kind_name(kind),
            need.field,
            hint.map(|h| format!(": {h}")).unwrap_or_default()
        ),
        field: need.field.clone(),
    }
}

fn missing_keys(
    kind: ReferenceKind,
    namespace: &str,
    keys: &BTreeSet<String>,
    name: &str,
    need: &Need,
    object: &ReferencedObject,
) -> Vec<Wait> {
    keys.iter()
        .filter(|key| !object.data.contains_key(*key))
        .map(|key| Wait {
            reason: match kind {
                ReferenceKind::ConfigMap => "MandatoryConfigMapNotFound",
                ReferenceKind::Secret => "MandatorySecretNotFound",
            },
            container_reason: container_reason(need),
            message: format!("couldn't find key {key} in {} {namespace}/{name}", kind_of(kind)),
            field: need.field.clone(),
        })
        .collect()
}

/// Kubernetes >= 1.34 takes any printable ASCII but `=` in a variable's name; the rest is skipped and told.
fn invalid_names(kind: ReferenceKind, name: &str, need: &Need, object: &ReferencedObject) -> Option<Wait> {
    let bad: Vec<String> = need
        .env_from_prefixes
        .iter()
        .flat_map(|prefix| object.data.keys().map(move |key| format!("{prefix}{key}")))
        .filter(|n| n.is_empty() || n.contains('=') || !n.bytes().all(|b| (0x20..0x7f).contains(&b)))
        .collect();
    (!bad.is_empty()).then(|| Wait {
        reason: "InvalidEnvironmentVariableNames",
        container_reason: "",
        message: format!(
            "keys [{}] from {} {name} were skipped since they are not valid environment variable names",
            bad.join(", "),
            kind_name(kind)
        ),
        field: need.field.clone(),
    })
}

fn unanswered(error: &PortError, field: &str) -> Wait {
    let reason = match error {
        PortError::Unsupported { .. } => "ReferenceUnsupported",
        _ => "ReferenceUnavailable",
    };
    let cause = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
    Wait {
        reason,
        container_reason: "CreateContainerConfigError",
        message: format!("{error}{cause}, used by {field}"),
        field: field.to_owned(),
    }
}

#[cfg(test)]
mod tests;
