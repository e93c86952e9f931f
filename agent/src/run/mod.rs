//! Puts the agent together, runs it, and takes it apart in the right order.

mod error;
mod given;

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::transport::agent_routes;
use image_snapshot::{Converter, Images, ImagesConfig, LocalSources};
use sandbox::contract::Sandboxes;
use sandbox::namespace::NamespaceSandboxes;
use sandbox::sys::spread::Spread;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::clock::Now;
use crate::config::Config;
use crate::errors::chain;
use crate::events::Journal;
use crate::host::facts::Facts;
use crate::host::huge_pages;
use crate::host::kernel;
use crate::host::pressure;
use crate::image_gc;
use crate::images::ImageStore;
use crate::ledger::Ledger;
use crate::link::{self, LinkConfig, LinkState};
use crate::meter::Meter;
use crate::metering::{Counters, PodMeter};
use crate::network::Network;
use crate::observe::{self, Metrics};
use crate::pod::spec::HostFacts;
use crate::pod::task::World;
use crate::pod::volumes::atomic;
use crate::pod::volumes::disk;
use crate::pod::volumes::dns::Resolver;
use crate::prepared::Prepared;
use crate::recover;
use crate::roster::Roster;
use crate::service::Service;

pub use error::RunError;
pub(crate) use given::{AHEAD, meter_config, network_config, sandbox_config};
use given::{Given, room, trust};

/// How long sandboxes may fail to be listed at start.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long another agent may hold the state directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Time between two looks at the usage spool for the metrics.
const SPOOL_LOOK: Duration = Duration::from_secs(5);

fn directory(path: &std::path::Path, mode: u32) -> Result<(), RunError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    let made = made.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)));
    made.map_err(|source| RunError::Directory { path: path.to_owned(), source })
}

/// Takes the state directory for this process alone, before anything in it is touched. The lock ends with the process.
fn lock(state_dir: &std::path::Path) -> Result<std::fs::File, RunError> {
    let path = state_dir.join("lock");
    let opened = std::fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|source| RunError::Lock { path: path.clone(), source })?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A child that an agent before us has forked and not yet execed holds it for a moment longer, as it does all others.
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(std::fs::TryLockError::WouldBlock) => return Err(RunError::InUse { path: state_dir.to_owned() }),
            Err(std::fs::TryLockError::Error(source)) => return Err(RunError::Lock { path, source }),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RunError::Interrupted)
}

/// What the parts of a running agent are.
struct Parts {
    sandboxes: NamespaceSandboxes,
    roster: Arc<Roster>,
    meter: Arc<Meter>,
    service: Service,
}

/// Runs until `stop` is cancelled. Pods go on running afterwards.
pub async fn run(config: Config, host_id: Option<String>, stop: CancellationToken) -> Result<(), RunError> {
    if !rustix::process::geteuid().is_root() {
        return Err(RunError::NotRoot);
    }
    blocking(kernel::check).await?.map_err(RunError::Kernel)?;
    let given = Given::read(&config).await?;
    let identity = link::load(&config.state_dir).map_err(RunError::Identity)?;
    if let Some(given) = host_id.filter(|given| *given != identity.host_id.as_str()) {
        return Err(RunError::OtherHost { given, joined: identity.host_id.to_string() });
    }
    let state_dir = config.state_dir.clone();
    let _ours = blocking(move || lock(&state_dir)).await??;
    let listener = TcpListener::bind(config.http_listen).await;
    let listener = listener.map_err(|source| RunError::Listen { address: config.http_listen, source })?;
    let http = listener.local_addr().map_err(|source| RunError::Listen { address: config.http_listen, source })?;
    directory(&config.state_dir, 0o711)?;
    directory(&config.run_dir, 0o711)?;
    let pods = config.state_dir.join("pods");
    directory(&pods, 0o711)?;
    // The keeper, which may be started before the store is opened, wants it to be there.
    directory(&config.state_dir.join("images"), 0o700)?;
    if let Err(error) = Spread::of(&pods).prepare() {
        tracing::debug!(%error, "the pods' directories are not spread over the disk");
    }
    let metrics = Arc::new(Metrics::default());
    let router = observe::router(metrics.clone());
    let http_stop = stop.clone();
    let http_task = tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(http_stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "metrics and health are not served any more");
        }
    });
    let watched = metrics.clone();
    let parts = Box::pin(assemble(&config, given, identity.host_id.as_str(), metrics)).await?;
    let meter = parts.meter.clone();
    let meter_stop = CancellationToken::new();
    let ticking = meter_stop.clone();
    let meter_task =
        tokio::spawn(async move { tokio::join!(meter.run(ticking.clone()), watch_spool(&meter, &watched, ticking)) });
    let pressure = tokio::spawn(pressure::run(parts.roster.clone()));
    let collector = tokio::spawn(image_gc::run(parts.service.images.clone()));
    write_addresses(&config, http)?;
    tracing::info!(host.id = %identity.host_id, %http, "the agent is ready");
    let link_config = LinkConfig {
        identity,
        vkubelet: config.vkubelet.clone(),
        state_dir: config.state_dir.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let (state, _) = watch::channel(LinkState::default());
    Box::pin(link::serve(link_config, agent_routes(parts.service.clone()), state, stop.clone())).await;
    stop.cancelled().await;
    pressure.abort();
    collector.abort();
    meter_stop.cancel();
    Box::pin(close(&config, parts)).await;
    let _ = meter_task.await;
    let _ = http_task.await;
    Ok(())
}

/// Shows the usage spool's figures and alarms.
async fn watch_spool(meter: &Meter, metrics: &Metrics, stop: CancellationToken) {
    while !stop.is_cancelled() {
        metrics.spool.update(&meter.spool().health());
        let _ = tokio::time::timeout(SPOOL_LOOK, stop.cancelled()).await;
    }
}

async fn assemble(config: &Config, given: Given, host_id: &str, metrics: Arc<Metrics>) -> Result<Parts, RunError> {
    let facts = Arc::new(blocking(Facts::read).await?.map_err(RunError::Facts)?);
    let run_dir = config.run_dir.clone();
    let mounted = blocking(move || disk::secure_secrets(&run_dir)).await?.map_err(RunError::Secrets)?;
    if mounted {
        tracing::info!(run_dir = ?config.run_dir, "the run directory is not in memory: secrets got a tmpfs of their own");
    }
    let state_dir = config.state_dir.clone();
    let (ledger, epoch) = blocking(move || {
        let ledger = Ledger::open(&state_dir)?;
        let epoch = ledger.epoch()?;
        Ok((ledger, epoch))
    })
    .await?
    .map_err(RunError::Ledger)?;
    // Takes the run directory's lock: before the network, which may be another agent's.
    let sandboxes = match given.cpus {
        Some(_) => NamespaceSandboxes::open_with_cpusets(sandbox_config(config)).await,
        None => NamespaceSandboxes::open(sandbox_config(config)).await,
    };
    let sandboxes = sandboxes.map_err(RunError::Sandboxes)?;
    let network = Network::open(network_config(config)).await.map_err(RunError::Network)?;
    let mut images_config = ImagesConfig::new(config.state_dir.join("images"));
    images_config.insecure_registries.clone_from(&config.insecure_registries);
    images_config.registries.clone_from(&config.registries);
    images_config.copies = config.image_copies;
    images_config.concurrency = config.concurrency.clone();
    if let Some(silence) = config.registry_timeout {
        images_config.timeouts.progress = silence;
        images_config.timeouts.connect = images_config.timeouts.connect.min(silence);
    }
    images_config.converter = converter(std::env::current_exe())?;
    if !config.oci_layouts.is_empty() {
        images_config.local_sources = LocalSources::Under(config.oci_layouts.clone());
    }
    let images = blocking(move || Images::open(images_config)).await?.map_err(RunError::Images)?;
    let disk = image_gc::Room { dir: config.state_dir.clone(), marks: config.image_gc };
    let images = ImageStore::new(images, Some(Arc::new(sandboxes.clone())))
        .with_room(disk)
        .with_metrics(metrics.images.clone())
        .with_host_credentials(config.docker_config.clone());
    images.compare_mounts().await;
    let (state_dir, shelf) = (config.state_dir.clone(), Arc::new(images.clone()));
    let prepared = blocking(move || Prepared::open(&state_dir, shelf)).await?.map_err(RunError::Prepared)?;
    let shared: Arc<dyn Sandboxes> = Arc::new(sandboxes.clone());
    let counters = Arc::new(Counters::new(shared.clone(), network.clone()));
    let meter_config = meter_config(config, host_id);
    let meter = Arc::new(blocking(move || Meter::open(meter_config, counters)).await?.map_err(RunError::Meter)?);
    let room = room(config, &given, &facts);
    let world = Arc::new(World {
        sandboxes: shared,
        images: Arc::new(images.clone()),
        network: Arc::new(network),
        meter: Arc::new(PodMeter(meter.clone())),
        ledger,
        // Numbers of an earlier agent must not come again.
        journal: Journal::starting_after(Now::read().wall_ns / 1_000_000),
        board: Board::default(),
        metrics,
        host: HostFacts {
            ips: facts.addresses.clone(),
            hostname: facts.hostname.clone(),
            capacity: room.amounts,
            memory: facts.memory,
            page_sizes: huge_pages::limited(&facts.huge_pages),
            cpus: given.cpus,
            policy: config.policy,
            trust: trust(config, given.devices),
        },
        resolver: resolver(config),
        state_dir: config.state_dir.clone(),
        thresholds: config.thresholds,
        run_dir: config.run_dir.clone(),
        boot_id: facts.boot_id.clone(),
        measuring: Arc::new(tokio::sync::Semaphore::new(1)),
    });
    let survivors = recover::run_patiently(&world, PATIENCE).await.map_err(RunError::Recover)?;
    tracing::info!(pods = survivors.len(), epoch, "pods of before are taken back");
    let roster = Arc::new(Roster::new(world.clone(), room, epoch));
    roster.recovered(survivors).await;
    world.images.allow_collection();
    let service = Service {
        roster: roster.clone(),
        images,
        prepared: Arc::new(prepared),
        meter: meter.clone(),
        facts,
        labels: config.host_labels.clone(),
        host_id: host_id.to_owned(),
        pod_cidr: config.pod_cidr.to_string(),
    };
    Ok(Parts { sandboxes, roster, meter, service })
}

/// Untrusted archives are parsed by a process without privileges, which is this program again; never by the agent itself, as root.
fn converter(program: std::io::Result<std::path::PathBuf>) -> Result<Converter, RunError> {
    let program = program.map_err(RunError::Program)?;
    // Of one that was removed the link says so in words.
    std::fs::metadata(&program).map_err(RunError::Program)?;
    Ok(Converter::Program { program, args: vec!["convert-layer".to_owned()] })
}

/// The resolver that pods get; one on the host's loopback is of no use to them.
fn resolver(config: &Config) -> Resolver {
    const UPLINK: &str = "/run/systemd/resolve/resolv.conf";
    let read = |path: &std::path::Path| std::fs::read_to_string(path).map(|text| Resolver::parse(&text));
    let found = read(&config.resolv_conf).unwrap_or_else(|error| {
        tracing::warn!(%error, path = ?config.resolv_conf, "the host's resolver file cannot be read");
        Resolver::default()
    });
    if found.is_loopback_only() {
        return read(std::path::Path::new(UPLINK)).unwrap_or(found);
    }
    found
}

fn write_addresses(config: &Config, http: std::net::SocketAddr) -> Result<(), RunError> {
    let path = config.run_dir.join("addresses.json");
    let text = serde_json::json!({ "http": http.to_string() }).to_string();
    atomic::write_file(&path, text.as_bytes(), 0o644)
        .map_err(|error| RunError::Directory { path, source: std::io::Error::other(chain(&error)) })
}

/// Pods stay. When there are none, nothing stays.
async fn close(config: &Config, parts: Parts) {
    let empty = parts.roster.world().board.all().iter().all(|posted| posted.terminated);
    parts.roster.close().await;
    let _ = std::fs::remove_file(config.run_dir.join("addresses.json"));
    if !empty {
        tracing::info!("the agent ends; its pods go on");
        return;
    }
    if let Err(error) = parts.sandboxes.drain_pool().await {
        tracing::warn!(error = chain(&error), "warm sandboxes were not cleared");
    }
    if let Err(error) = disk::release_secrets(&config.run_dir) {
        tracing::warn!(error = chain(&error), "the place for secrets was not cleared");
    }
    tracing::info!("the agent ends; nothing runs");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_that_another_holds_for_a_moment_is_waited_for_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let other = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(RunError::InUse { .. })));
        let leaves = std::thread::spawn(move || {
            std::thread::sleep(LOCK_PAUSE * 5);
            drop(other);
        });
        assert!(lock(dir.path()).is_ok());
        leaves.join().unwrap();
    }

    #[test]
    fn an_agent_that_does_not_find_its_program_does_not_start() {
        let error = converter(Err(std::io::ErrorKind::NotFound.into())).unwrap_err();
        assert!(matches!(error, RunError::Program(_)), "{error}");
        let removed = converter(Ok("/usr/bin/nodeless-agent (deleted)".into())).unwrap_err();
        assert!(matches!(removed, RunError::Program(_)), "{removed}");
        let found = converter(std::env::current_exe()).unwrap();
        assert!(matches!(found, Converter::Program { .. }), "{found:?}");
    }
}
