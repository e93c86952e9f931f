//! The epoch of a vkubelet in a cluster: a counter in the node's Lease, taken by compare-and-swap, so that of two
//! vkubelets for one node, wherever they run, only the newer commands the agents.

use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::lease::NAMESPACE;
use crate::hosts::{EpochError, EpochSource};

/// The Lease annotation that holds the last epoch taken.
pub const ANNOTATION: &str = "nodeless.dev/epoch";
/// Two vkubelets that start together need a few turns; more means that something else writes the Lease all the time.
const TRIES: usize = 20;

/// Epochs from the Lease of one node.
#[derive(Clone)]
pub struct LeaseEpoch {
    client: Client,
    node: String,
}

impl LeaseEpoch {
    /// For this node.
    pub fn new(client: Client, node: String) -> Self {
        Self { client, node }
    }

    async fn take(&self, api: &Api<Lease>, now: u64) -> Result<Option<u64>, kube::Error> {
        let written = match api.get_opt(&self.node).await? {
            None => {
                let mut lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.node.clone()),
                        namespace: Some(NAMESPACE.to_owned()),
                        ..ObjectMeta::default()
                    },
                    spec: None,
                };
                let epoch = set_next(&mut lease, now);
                api.create(&PostParams::default(), &lease).await.map(|_| epoch)
            }
            Some(mut lease) => {
                let epoch = set_next(&mut lease, now);
                // The object carries its resourceVersion: a write in between is a conflict.
                api.replace(&self.node, &PostParams::default(), &lease).await.map(|_| epoch)
            }
        };
        match written {
            Ok(epoch) => Ok(Some(epoch)),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn failed(&self, source: Box<dyn std::error::Error + Send + Sync>) -> EpochError {
        EpochError::Source { from: format!("lease {NAMESPACE}/{}", self.node), source }
    }
}

/// Sets the next epoch: one more than the last, and not below the Unix time in seconds, so that a Lease that was deleted
/// does not fall below what agents have seen.
fn set_next(lease: &mut Lease, now: u64) -> u64 {
    let last = lease.annotations().get(ANNOTATION).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    let next = now.max(last.saturating_add(1));
    lease.annotations_mut().insert(ANNOTATION.to_owned(), next.to_string());
    next
}

#[async_trait]
impl EpochSource for LeaseEpoch {
    async fn next(&self) -> Result<u64, EpochError> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        for _ in 0..TRIES {
            let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
            if let Some(epoch) = self.take(&api, now).await.map_err(|e| self.failed(Box::new(e)))? {
                return Ok(epoch);
            }
        }
        Err(self.failed("somebody else changed it at each of 20 tries".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_above_the_last_one_and_not_below_the_clock() {
        let mut lease = Lease::default();
        assert_eq!(set_next(&mut lease, 100), 100);
        assert_eq!(set_next(&mut lease, 100), 101);
        assert_eq!(set_next(&mut lease, 50), 102);
        assert_eq!(set_next(&mut lease, 500), 500);
    }
}
