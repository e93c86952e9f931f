//! The node's heartbeat: a Lease in `kube-node-lease`, renewed every ten seconds, valid for forty.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};

/// How long a renewal is good for (the kubelet's `nodeLeaseDurationSeconds`).
pub const DURATION: Duration = Duration::from_secs(40);
/// How often it is renewed: a quarter of [`DURATION`], as the kubelet does.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);
/// The namespace of node Leases.
pub const NAMESPACE: &str = "kube-node-lease";

/// Renews the Lease once, making it when it is not there.
pub async fn renew(client: &Client, name: &str) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
    let patch = serde_json::json!({"spec": {
        "holderIdentity": name,
        "leaseDurationSeconds": DURATION.as_secs(),
        "renewTime": now,
    }});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            let node = Api::<Node>::all(client.clone()).get(name).await?;
            api.create(&PostParams::default(), &lease(&node, now)).await.map(|_| ())
        }
        Err(error) => Err(error),
    }
}

/// The Lease of a node, owned by it, so that it goes when the Node goes.
fn lease(node: &Node, now: MicroTime) -> Lease {
    let name = node.metadata.name.clone().unwrap_or_default();
    Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: node.metadata.uid.clone().map(|uid| {
                vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: name.clone(),
                    uid,
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name),
            lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    }
}
