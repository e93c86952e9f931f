//! Takes a host out of service: kills every pod and leaves nothing in the kernel. Images, certificates and usage records
//! that vkubelet has not fetched yet stay in the state directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox::contract::{SandboxError, Sandboxes};
use sandbox::namespace::{Config as SandboxConfig, NamespaceSandboxes};
use sandbox::sys::spread::Spread;

use crate::config::Config;
use crate::link;
use crate::meter::{Meter, MeterConfig, MeterError, Released, UsedNow, UsedProvider};
use crate::network::{Network, NetworkError};
use crate::pod::volumes::PodDirs;
use crate::pod::volumes::disk::{self, VolumeError};
use crate::run::{AHEAD, meter_config, network_config, sandbox_config};

/// Why something is left. The reset may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// Sandboxes, keeper or cgroups.
    #[error("remove the sandboxes")]
    Sandboxes(#[source] SandboxError),
    /// Links, addresses or rules.
    #[error("remove the network")]
    Network(#[source] NetworkError),
    /// The bill of what was running could not be closed.
    #[error("close the open usage intervals")]
    Meter(#[source] MeterError),
    /// Volumes, or the tmpfs of secret material.
    #[error("remove the pods' volumes")]
    Volumes(#[source] VolumeError),
    /// A directory.
    #[error("remove {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Nobody is running any more: nothing more can be learnt of what was used.
#[derive(Debug)]
struct Nothing;

#[async_trait::async_trait]
impl UsedProvider for Nothing {
    async fn used(&self, _sandbox_id: &str) -> Option<UsedNow> {
        None
    }
}

/// Removes everything. Refused while an agent runs (the run directory's lock).
pub async fn run(config: &Config) -> Result<(), ResetError> {
    let no_pool = SandboxConfig { pool_size: 0, ..sandbox_config(config) };
    let sandboxes = NamespaceSandboxes::open(no_pool).await.map_err(ResetError::Sandboxes)?;
    let held = sandboxes.list().await.map_err(ResetError::Sandboxes)?;
    sandboxes.reset().await.map_err(ResetError::Sandboxes)?;
    // A host that never joined has no bills.
    if let Ok(identity) = link::load(&config.state_dir) {
        let meter = meter_config(config, identity.host_id.as_str());
        close_bills(meter, held.into_iter().map(|found| found.id.0)).await?;
    }
    let network = Network::open(network_config(config)).await.map_err(ResetError::Network)?;
    network.reconcile(&[]).await.map_err(ResetError::Network)?;
    network.remove().await.map_err(ResetError::Network)?;
    let pods = config.state_dir.join("pods");
    for uid in names(&pods)? {
        disk::remove(&PodDirs::new(&config.state_dir, &config.run_dir, &uid)).map_err(ResetError::Volumes)?;
    }
    disk::release_secrets(&config.run_dir).map_err(ResetError::Volumes)?;
    Spread::of(&pods).remove().map_err(|source| ResetError::Remove { path: pods.clone(), source })?;
    let ahead = config.state_dir.join(AHEAD);
    Spread::of(&ahead).remove().map_err(|source| ResetError::Remove { path: ahead.clone(), source })?;
    for directory in [&pods, &ahead, &config.state_dir.join("ledger"), &config.run_dir] {
        remove(directory)?;
    }
    Ok(())
}

/// Ends what is still being billed, at this instant.
async fn close_bills(config: MeterConfig, held: impl Iterator<Item = String>) -> Result<(), ResetError> {
    let meter = Meter::open(config, Arc::new(Nothing)).map_err(ResetError::Meter)?;
    let now = crate::clock::Now::read();
    let released: Vec<Released> =
        held.map(|sandbox_id| Released { sandbox_id, boottime_ns: now.boottime_ns }).collect();
    meter.adopt(&[], &released).await.map(drop).map_err(ResetError::Meter)
}

fn names(directory: &Path) -> Result<Vec<String>, ResetError> {
    let failed = |source| ResetError::Remove { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(source) => return Err(failed(source)),
    };
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

fn remove(directory: &Path) -> Result<(), ResetError> {
    match std::fs::remove_dir_all(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ResetError::Remove { path: directory.to_owned(), source }),
    }
}
