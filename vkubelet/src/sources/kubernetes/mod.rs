//! Pods from the API server: those whose `spec.nodeName` is this node.
//!
//! ```text
//! watch (raw objects) ──> desired          references: ConfigMaps, Secrets (cached briefly), bound tokens
//! status, events ──> the API server        pods: creation and deletion by people
//! ```
//!
//! The node acts as `system:node:NAME`: the Node authorizer shows it only what pods bound to it refer to, and its graph
//! may lag behind a binding by some milliseconds. A 403 is therefore "ask again", never "does not exist".

mod pods;
mod raw;
mod references;
mod traffic;
mod watch;

use std::sync::Arc;

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::desired::{Desired, SourceKind};
use crate::events::EventWriter;
use crate::ports::{PortError, SourcePorts};
use crate::status::StatusWriter;

pub use raw::RawPod;
pub(crate) use traffic::Traffic;

/// Starts the watch and the writers; they run until `stop` is cancelled.
pub fn start(client: Client, node_name: &str, desired: Desired, stop: CancellationToken) -> SourcePorts {
    tokio::spawn(watch::run(client.clone(), node_name.to_owned(), desired.clone(), stop.clone()));
    let traffic = Traffic::default();
    SourcePorts {
        kind: SourceKind::Kubernetes,
        status: Arc::new(StatusWriter::new(client.clone(), desired, traffic.clone(), stop.clone())),
        events: Arc::new(EventWriter::start(client.clone(), node_name, traffic.clone(), stop)),
        references: Arc::new(references::KubernetesReferences::new(client.clone(), traffic)),
        pods: Arc::new(pods::KubernetesPods::new(client, node_name.to_owned())),
    }
}

/// Tells "no", "not now" and "not there any more" apart.
pub(crate) fn port_error(what: String, error: kube::Error) -> PortError {
    match error {
        kube::Error::Api(status) if status.is_forbidden() => PortError::Denied { what, message: status.message },
        kube::Error::Api(status) if status.is_already_exists() => PortError::AlreadyExists { what },
        kube::Error::Api(status) if status.is_invalid() => PortError::Invalid { message: status.message },
        other => PortError::CouldNotAsk { what, source: Box::new(other) },
    }
}
