//! What is added with an API server: the source, the node object, the kubelet API.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;

use agent_api::proto::HostStatus;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config as ClientConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::RunError;
use crate::config::{Config, KubernetesConfig};
use crate::desired::Desired;
use crate::hosts::EpochSource;
use crate::kubelet_api;
use crate::kubelet_api::server::TlsFiles;
use crate::node::controller;
use crate::node::epoch::LeaseEpoch;
use crate::node::object::NodeSettings;
use crate::observe::Readiness;
use crate::pod::access::PodAccess;
use crate::ports::SourcePorts;
use crate::resolve::ClusterSettings;
use crate::sources::kubernetes;

/// The API server as configured.
pub(super) struct Cluster {
    pub(super) client: Client,
    settings: KubernetesConfig,
    server: http::Uri,
}

impl Cluster {
    /// Reads the credentials; asks nothing yet.
    pub(super) async fn prepare(settings: &KubernetesConfig) -> Result<Self, RunError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| RunError::Kubeconfig {
            path: settings.kubeconfig.clone(),
            source,
        };
        let file = Kubeconfig::read_from(&settings.kubeconfig).map_err(|e| failed(Box::new(e)))?;
        let options = KubeConfigOptions::default();
        let config = ClientConfig::from_custom_kubeconfig(file, &options).await.map_err(|e| failed(Box::new(e)))?;
        let server = config.cluster_url.clone();
        let client = super::cluster_client::connect(config).map_err(failed)?;
        Ok(Self { client, settings: settings.clone(), server })
    }

    pub(super) fn epochs(&self, node_name: &str) -> Arc<dyn EpochSource> {
        Arc::new(LeaseEpoch::new(self.client.clone(), node_name.to_owned()))
    }

    pub(super) fn start_source(&self, node_name: &str, desired: Desired, stop: CancellationToken) -> SourcePorts {
        kubernetes::start(self.client.clone(), node_name, desired, stop)
    }

    /// Starts the kubelet API, then the node object that names its port.
    pub(super) async fn serve(
        self,
        config: &Config,
        access: PodAccess,
        hosts: watch::Receiver<Vec<HostStatus>>,
        readiness: Readiness,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<SocketAddr, RunError> {
        let tls = TlsFiles {
            certificate: self.settings.tls_cert_file.clone(),
            key: self.settings.tls_private_key_file.clone(),
            client_ca: self.settings.client_ca_file.clone(),
        };
        let (listen, client) = (self.settings.kubelet_listen, self.client.clone());
        let bound = kubelet_api::start(listen, &tls, client, &config.node_name, access, stop.clone())
            .await
            .map_err(RunError::KubeletApi)?;
        let address = match self.settings.node_ip {
            Some(ip) => ip,
            None if !bound.ip().is_unspecified() => bound.ip(),
            None => towards(&self.server).unwrap_or(IpAddr::from([127, 0, 0, 1])),
        };
        let settings = NodeSettings {
            name: config.node_name.clone(),
            address: address.to_string(),
            kubelet_port: self.settings.kubelet_port_public.unwrap_or(bound.port()),
            labels: self.settings.node_labels.clone(),
            taints: self.settings.taints.clone(),
        };
        readiness.set("node", Err("not registered yet".to_owned()));
        let (ready, mut registered) = watch::channel(false);
        tracker.spawn(controller::run(self.client, settings, hosts, ready, stop.clone()));
        tracker.spawn(async move {
            if registered.wait_for(|ready| *ready).await.is_ok() {
                readiness.set("node", Ok(()));
            }
        });
        Ok(bound)
    }
}

/// The local address from which the API server is reached: nothing is sent.
fn towards(server: &http::Uri) -> Option<IpAddr> {
    let port = server.port_u16().unwrap_or(443);
    let target = (server.host()?.trim_matches(['[', ']']), port).to_socket_addrs().ok()?.next()?;
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// What pods are told: as configured, else the kubeconfig's server.
pub(super) fn settings(config: &Config, cluster: Option<&Cluster>) -> ClusterSettings {
    let mut settings = config.cluster.clone();
    if let (true, Some(cluster)) = (settings.service_host.is_empty(), cluster) {
        settings.service_host = cluster.server.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        settings.service_port = cluster.server.port_u16().unwrap_or(443);
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_address_is_the_one_towards_the_server() {
        let uri = http::Uri::from_static("https://127.0.0.1:6443");
        assert_eq!(towards(&uri), Some(IpAddr::from([127, 0, 0, 1])));
    }
}
