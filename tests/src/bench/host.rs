//! Our side of the benchmarks of sandboxes: the namespace backend on this host, with a run directory and a cgroup of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sandbox::contract::{Prepared, SandboxEvent, Sandboxes};
use sandbox::namespace::{Config, NamespaceSandboxes};
use sandbox::spec::{
    ContainerSpec, LOG_BYTES_PER_SECOND, Layer, Namespaces, Resources, Rootfs, SandboxId, SandboxSpec, Security, User,
};
use sandbox::sys::spread::Spread;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;

use super::{leftovers, oci};

/// The directory of a pod's logs in its own.
const LOGS: &str = "logs";
/// Longest wait for anything that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Sandboxes that are made or destroyed at once where only the result counts.
const AT_ONCE: usize = 8;

/// A container that keeps still, as all peers run it too.
pub const SLEEP: [&str; 2] = ["/bin/sleep", "1000000000"];

/// What a benchmark of sandboxes is given.
#[derive(Debug, Clone)]
pub struct Host {
    /// The static `nodeless-shim`.
    pub shim: PathBuf,
    /// An EROFS layer of the root that [`super::rootfs`] makes.
    pub layer: PathBuf,
    /// A directory on the state's file system, empty.
    pub dir: PathBuf,
    /// The peers by name, with their bundles.
    pub peers: Vec<oci::Peer>,
}

/// The backend and what its containers are made of. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Backend {
    pub(super) sandboxes: NamespaceSandboxes,
    config: Config,
    host: Arc<Host>,
    number: Arc<AtomicU32>,
    /// Where pods' directories are made.
    spread: Spread,
}

/// A sandbox with one container.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) id: SandboxId,
    events: Receiver<SandboxEvent>,
}

impl Host {
    /// Where a benchmark may have a store of images.
    pub(super) fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Opens the backend, measures on it when its pool is full, and takes it down again whatever came of it.
    pub(super) async fn with_backend<T>(
        &self,
        pool_size: usize,
        measure: impl AsyncFnOnce(&Backend) -> Result<T>,
    ) -> Result<T> {
        let backend = self.open(pool_size).await?;
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let measured = tokio::select! {
            measured = async { backend.wait_for_pool(pool_size).await?; measure(&backend).await } => measured,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        };
        backend.close().await?;
        measured
    }

    async fn open(&self, pool_size: usize) -> Result<Backend> {
        let layers = self.layer.parent().context("a layer lies in a directory")?.to_owned();
        // The keeper opens it when it starts.
        let store_layers = self.store().join("layers");
        std::fs::create_dir_all(&store_layers).context("make the directory of a store's layers")?;
        leftovers::remove(&self.shim).await?;
        let pods = self.dir.join("pods");
        std::fs::create_dir_all(&pods).context("make the pods' directory")?;
        // As the agent does.
        if let Err(error) = Spread::of(&pods).prepare() {
            eprintln!("the pods' directories are not spread over the disk: {error}");
        }
        let config = Config {
            run_dir: leftovers::run_dir(&leftovers::own_name()),
            shim_program: self.shim.clone(),
            cgroup_parent: leftovers::own_name(),
            layer_dirs: vec![layers, store_layers],
            pool_size,
            ahead_dir: Some(self.dir.join("ahead")),
            limit_writable: true,
        };
        let sandboxes = NamespaceSandboxes::open(config.clone()).await.context("open the backend")?;
        Ok(Backend {
            sandboxes,
            config,
            host: Arc::new(self.clone()),
            number: Arc::default(),
            spread: Spread::of(&pods),
        })
    }
}

impl Backend {
    pub(super) async fn wait_for_pool(&self, size: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.sandboxes.warm().await < size {
            ensure!(Instant::now() < deadline, "the pool was not filled within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// A sandbox in which the program was executed.
    pub(super) async fn start(&self, args: &[&str]) -> Result<Pod> {
        let prepared = self.prepare().await?;
        self.start_in(prepared, args).await
    }

    /// A sandbox that nothing runs in, and its pod's directories, which are made while the sandbox is, as the agent does.
    pub(super) async fn prepare(&self) -> Result<Prepared> {
        let id = SandboxId(format!("bench-{}", self.number.fetch_add(1, Ordering::Relaxed)));
        let prepared = async { self.sandboxes.prepare(&id).await.context("prepare") };
        let made = async { self.make_dirs(&id).context("make the pod's directories") };
        let (prepared, made) = tokio::join!(biased; prepared, made);
        made?;
        prepared
    }

    fn make_dirs(&self, id: &SandboxId) -> std::io::Result<()> {
        self.spread.make(&id.0, 0o711)?;
        std::fs::create_dir(self.dir_of(id).join(LOGS))
    }

    /// Where the keeper listens.
    pub(super) fn keeper_socket(&self) -> PathBuf {
        self.config.run_dir.join("keeper.sock")
    }

    /// Makes a prepared sandbox a pod of one container.
    pub(super) async fn start_in(&self, prepared: Prepared, args: &[&str]) -> Result<Pod> {
        let layer = Layer { id: "sha256:bench".to_owned(), path: self.host.layer.clone() };
        self.start_on(prepared, &[layer], args).await
    }

    /// The same on a root of these layers.
    pub(super) async fn start_on(&self, prepared: Prepared, layers: &[Layer], args: &[&str]) -> Result<Pod> {
        let Prepared { id, .. } = prepared;
        let dir = self.dir_of(&id);
        let spec = SandboxSpec {
            hostname: id.0.clone(),
            sysctls: BTreeMap::new(),
            share_process_namespace: false,
            resources: oci::resources(),
            log_dir: dir.join(LOGS),
            log_bytes_per_second: LOG_BYTES_PER_SECOND,
            labels: BTreeMap::new(),
            namespaces: Namespaces::default(),
        };
        let events = self.sandboxes.events(&id).await.context("subscribe")?;
        let container = ContainerSpec {
            name: "main".to_owned(),
            attempt: 0,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            cwd: "/".to_owned(),
            user: User::default(),
            rootfs: Rootfs { layers: layers.to_vec(), writable: Some(dir.join("writable")), writable_limit: None },
            readonly_rootfs: false,
            mounts: Vec::new(),
            resources: Resources::default(),
            security: Security::default(),
            stop_signal: 15,
            stdin: false,
            stdin_once: false,
            tty: false,
            target: None,
        };
        // All is known: nothing has to wait for an answer.
        let configured = async { self.sandboxes.configure(&id, &spec).await.context("configure") };
        let started = async { self.sandboxes.start(&id, &container).await.context("start") };
        tokio::try_join!(biased; configured, started)?;
        Ok(Pod { id, events })
    }

    /// As many pods that keep still.
    pub(super) async fn crowd(&self, count: usize) -> Result<Vec<Pod>> {
        let mut starting = JoinSet::new();
        let mut pods = Vec::with_capacity(count);
        for _ in 0..count {
            if starting.len() == AT_ONCE {
                pods.extend(starting.join_next().await.transpose()?.transpose()?);
            }
            let backend = self.clone();
            starting.spawn(async move { backend.start(&SLEEP).await });
        }
        while let Some(started) = starting.join_next().await {
            pods.push(started??);
        }
        Ok(pods)
    }

    /// Releases all that the pod holds, its directory too.
    pub(super) async fn destroy(&self, id: &SandboxId) -> Result<()> {
        self.sandboxes.destroy(id).await.context("destroy")?;
        tokio::fs::remove_dir_all(self.dir_of(id)).await.context("remove a pod's directory")
    }

    /// The pods' control groups that there are.
    pub(super) fn cgroups(&self) -> Result<Vec<PathBuf>> {
        let parent = &self.config.cgroup_parent;
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").context("list the control groups")?;
        let hierarchies: Vec<PathBuf> = hierarchies.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        let parents = hierarchies.iter().map(|one| one.join(parent)).chain([Path::new("/sys/fs/cgroup").join(parent)]);
        let children = parents.filter_map(|parent| std::fs::read_dir(parent).ok()).flatten();
        Ok(children.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
    }

    fn dir_of(&self, id: &SandboxId) -> PathBuf {
        self.host.dir.join("pods").join(&id.0)
    }

    /// Takes everything down; nothing is left but the host's directory.
    async fn close(self) -> Result<()> {
        self.sandboxes.reset().await.context("take the backend down")?;
        drop(self.sandboxes);
        std::fs::remove_dir_all(&self.config.run_dir).context("remove the run directory")
    }
}

impl Pod {
    /// When its first byte came, in nanoseconds of boot time.
    pub(super) async fn first_byte(&mut self) -> Result<u64> {
        loop {
            match self.events.recv().await {
                Some(SandboxEvent::FirstByte { boottime_ns, .. }) => return Ok(boottime_ns),
                Some(SandboxEvent::Started { .. }) => {}
                other => bail!("no first byte, but {other:?}"),
            }
        }
    }

    /// Waits until its container has ended well.
    pub(super) async fn exited(&mut self) -> Result<()> {
        loop {
            match self.events.recv().await {
                Some(SandboxEvent::Exited { exit, .. }) => {
                    ensure!(exit.code == 0, "the container ended with {exit:?}");
                    return Ok(());
                }
                Some(SandboxEvent::Started { .. } | SandboxEvent::FirstByte { .. }) => {}
                other => bail!("no exit, but {other:?}"),
            }
        }
    }
}
