//! Puts everything together: what is opened, bound, started and stopped, in which order.
//!
//! ```text
//!  directories, lock ─> ledger ─> ports bound ─> sources ─> controller ─> servers ─> addresses.json ─> wait ─> stop
//! ```
//!
//! Nothing is told to any agent before everything that can fail at the start has succeeded. Stopping ends servers and tasks;
//! pods go on under their agents.

mod billing;
mod cluster_client;
mod kubernetes;
mod places;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_api::proto::HostStatus;
use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::billing_pull::{self, PullMetrics};
use crate::client_api::{self, ClientApi};
use crate::config::Config;
use crate::desired::{Desired, SourceKind};
use crate::hosts::{EpochSource, FileEpoch, Hosts, HostsConfig, HostsError};
use crate::observe::{Metrics, Readiness, router};
use crate::pod::access::PodAccess;
use crate::pod::{Controller, ControllerSettings};
use crate::snapshots;
use crate::sources::manifest::{ManifestSettings, ManifestSource, RecordsError};

/// Tasks have this long to end.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory or file of ours.
    #[error("{verb} {path}")]
    Place {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another vkubelet works in this state directory.
    #[error("another vkubelet runs with state directory {path}: stop it, or give --state-dir")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A port.
    #[error("listen on {address} for {what}: give another {flag}, or port 0")]
    Bind {
        /// For what.
        what: &'static str,
        /// The flag that names it.
        flag: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The agent listener.
    #[error("start the agent listener")]
    Hosts(#[source] Box<HostsError>),
    /// The manifest source.
    #[error("start the manifest source")]
    Manifest(#[source] RecordsError),
    /// The ledger.
    #[error("open the billing ledger")]
    Ledger(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The token of the billing API.
    #[error("open the billing token")]
    BillingToken(#[source] ::billing::api::TokenFileError),
    /// The credentials for the API server.
    #[error("use kubeconfig {path}")]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kubelet API.
    #[error("start the kubelet API")]
    KubeletApi(#[source] crate::kubelet_api::server::ServeError),
}

/// Runs the daemon until `stop` is cancelled.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), RunError> {
    let _lock = places::prepare(&config)?;
    let ended = Box::pin(serve_all(&config, stop)).await;
    places::clean(&config);
    ended
}

async fn serve_all(config: &Config, stop: CancellationToken) -> Result<(), RunError> {
    let tracker = TaskTracker::new();
    let readiness = Readiness::default();
    let metrics = Metrics::default();

    let store = billing::open(config)?;
    let token = billing::token(config)?;
    let http = bind("health and metrics", "--http-listen", config.http_listen).await?;
    let billing_socket = bind("bills", "--billing-listen", config.billing_listen).await?;
    let client_socket = places::client_socket(config)?;
    let cluster = match &config.kubernetes {
        Some(settings) => Some(kubernetes::Cluster::prepare(settings).await?),
        None => None,
    };
    let epochs: Arc<dyn EpochSource> = match &cluster {
        Some(cluster) => cluster.epochs(&config.node_name),
        None => Arc::new(FileEpoch::new(&config.state_dir)),
    };
    let hosts_config = HostsConfig {
        listen: config.agent_listen,
        state_dir: config.state_dir.clone(),
        node_name: config.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let hosts = Hosts::listen(hosts_config, epochs, stop.clone()).await.map_err(|e| RunError::Hosts(Box::new(e)))?;

    let expected = [
        config.manifest_path.as_ref().map(|_| SourceKind::Manifest),
        config.kubernetes.as_ref().map(|_| SourceKind::Kubernetes),
    ];
    let desired = Desired::new(expected.into_iter().flatten());
    let manifest = start_manifest(config, &desired, &tracker, &stop)?;
    let mut sources: Vec<_> = manifest.iter().map(ManifestSource::ports).collect();
    if let Some(cluster) = &cluster {
        sources.push(cluster.start_source(&config.node_name, desired.clone(), stop.clone()));
    }
    let settings = ControllerSettings {
        desired: desired.clone(),
        sources,
        cluster: kubernetes::settings(config, cluster.as_ref()),
        metrics: metrics.clone(),
    };
    let controller = Controller::start(settings, hosts.clone(), &config.state_dir, &tracker, &stop);
    let access = PodAccess::new(controller.board().clone(), hosts.clone());

    let mut addresses = BTreeMap::from([("agent", hosts.local_addr())]);
    let doors = billing::doors(&store, token, cluster.as_ref().map(|c| c.client.clone()), &hosts);
    addresses.insert("billing", serve(billing_socket, doors.public, &tracker, &stop)?);
    let mut registry = metrics.registry(controller.board().clone());
    let pulled = PullMetrics::register(&mut registry);
    tracker.spawn(billing_pull::run(hosts.clone(), store, pulled, stop.clone()));
    addresses.insert("http", serve(http, router(registry, readiness.clone()), &tracker, &stop)?);
    if let Some(cluster) = cluster {
        if let Some(ports) = controller.source(SourceKind::Kubernetes) {
            let setting = snapshots::Setting {
                client: cluster.client.clone(),
                node: config.node_name.clone(),
                hosts: hosts.clone(),
                references: Arc::clone(&ports.references),
            };
            tracker.spawn(snapshots::run(setting, stop.clone()));
        }
        let statuses = follow_hosts(hosts.clone(), &tracker, &stop);
        let address = cluster.serve(config, access.clone(), statuses, readiness.clone(), &tracker, &stop).await?;
        addresses.insert("kubelet", address);
    }
    let api = ClientApi { controller, access, hosts, manifest, billing: doors.internal };
    tracker.spawn(client_api::serve(client_socket, api, stop.clone()));

    readiness.set("sources", Err("the first list of pods is not complete".to_owned()));
    tracker.spawn({
        let (desired, readiness) = (desired.clone(), readiness.clone());
        async move {
            desired.complete().await;
            readiness.set("sources", Ok(()));
        }
    });
    places::write_addresses(config, &addresses)?;
    tracing::info!(node = config.node_name, ?addresses, "vkubelet is up");
    stop.cancelled().await;
    tracker.close();
    if tokio::time::timeout(STOP_WITHIN, tracker.wait()).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    tracing::info!("vkubelet ended; pods go on");
    Ok(())
}

fn start_manifest(
    config: &Config,
    desired: &Desired,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Option<ManifestSource>, RunError> {
    let Some(directory) = config.manifest_path.clone() else { return Ok(None) };
    let settings =
        ManifestSettings { directory, state_dir: config.state_dir.clone(), node_name: config.node_name.clone() };
    ManifestSource::start(settings, desired.clone(), tracker, stop).map(Some).map_err(RunError::Manifest)
}

async fn bind(what: &'static str, flag: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| RunError::Bind { what, flag, address, source })
}

fn serve(
    listener: TcpListener,
    router: Router,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Result<SocketAddr, RunError> {
    let address = listener.local_addr().map_err(|source| RunError::Place {
        verb: "ask the address of",
        path: PathBuf::from("a socket"),
        source,
    })?;
    let stop = stop.clone();
    tracker.spawn(async move {
        // Open streams must not keep the daemon from ending.
        let ended = stop.clone();
        let served = axum::serve(listener, router).with_graceful_shutdown(async move { ended.cancelled().await });
        tokio::select! {
            _ = served.into_future() => {}
            () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_secs(2)).await } => {}
        }
    });
    Ok(address)
}

/// The connected hosts' own statuses, now and on each change.
fn follow_hosts(hosts: Hosts, tracker: &TaskTracker, stop: &CancellationToken) -> watch::Receiver<Vec<HostStatus>> {
    let mut events = hosts.events();
    let list = move || hosts.list().into_iter().map(|host| host.status).collect::<Vec<_>>();
    let (sender, receiver) = watch::channel(list());
    let stop = stop.clone();
    tracker.spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = events.recv() => {
                    if matches!(event, Err(tokio::sync::broadcast::error::RecvError::Closed)) {
                        return;
                    }
                    let now = list();
                    sender.send_if_modified(|known| {
                        let changed = *known != now;
                        *known = now;
                        changed
                    });
                }
            }
        }
    });
    receiver
}
