//! The node's heartbeat: a Lease in `kube-node-lease`, renewed every ten seconds, valid for forty.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};

/// How long a renewal is good for (the kubelet's `nodeLeaseDurationSeconds`).
pub const DURATION: Duration = Duration::from_secs(40);
/// How often it is renewed: a quarter of [`DURATION`], as the kubelet does.
pub const RENEW_EVERY: Duration = Duration::from_secs(10);
/// The namespace of node Leases.
pub const NAMESPACE: &str = "kube-node-lease";

/// Renews the Lease once, making it when it is not there. It is owned by the Node, so that it goes when the Node goes.
pub async fn renew(client: &Client, name: &str, node_uid: &str) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let lease = lease(name, node_uid, MicroTime(k8s_openapi::jiff::Timestamp::now()));
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&lease)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            api.create(&PostParams::default(), &lease).await.map(|_| ())
        }
        Err(error) => Err(error),
    }
}

fn lease(name: &str, node_uid: &str, now: MicroTime) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.to_owned(),
                uid: node_uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    }
}
