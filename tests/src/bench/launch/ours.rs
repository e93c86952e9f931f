//! Our side: the namespace backend with a run directory and a cgroup of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sandbox::contract::{SandboxEvent, Sandboxes};
use sandbox::namespace::{Config, NamespaceSandboxes};
use sandbox::spec::{ContainerSpec, Layer, Namespaces, Resources, Rootfs, SandboxId, SandboxSpec, Security, User};
use sandbox::sys::clock::boottime_ns;
use tokio::task::JoinSet;

use super::{Options, milliseconds, oci};

const PATIENCE: Duration = Duration::from_secs(60);

/// The backend and what a container of it is made of.
pub(super) struct Ours {
    sandboxes: NamespaceSandboxes,
    config: Config,
    made: Arc<Made>,
}

struct Made {
    options: Options,
    number: AtomicU32,
}

/// Opens the backend, measures on it, and takes it down again whatever came of it.
pub(super) async fn with<T>(
    options: &Options,
    pool_size: usize,
    measure: impl AsyncFnOnce(&Ours) -> Result<T>,
) -> Result<T> {
    let ours = Ours::open(options, pool_size).await?;
    let measured = match ours.wait_for_pool(pool_size).await {
        Ok(()) => measure(&ours).await,
        Err(error) => Err(error),
    };
    ours.close().await?;
    measured
}

impl Ours {
    async fn open(options: &Options, pool_size: usize) -> Result<Self> {
        let layers = options.layer.parent().context("a layer lies in a directory")?.to_owned();
        let config = Config {
            // As on a host: a file system in memory.
            run_dir: PathBuf::from(format!("/run/nodeless-bench-launch-{}", std::process::id())),
            state_dir: options.dir.join("state"),
            shim_program: options.shim.clone(),
            cgroup_parent: format!("nodeless-bench-{}", std::process::id()),
            layer_dirs: vec![layers],
            pool_size,
        };
        let sandboxes = NamespaceSandboxes::open(config.clone()).await.context("open the backend")?;
        let made = Arc::new(Made { options: options.clone(), number: AtomicU32::new(0) });
        Ok(Self { sandboxes, config, made })
    }

    pub(super) async fn wait_for_pool(&self, size: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.sandboxes.warm().await < size {
            ensure!(Instant::now() < deadline, "the pool was not filled within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// One launch, in milliseconds; its sandbox is destroyed afterwards.
    pub(super) async fn launch(&self) -> Result<f64> {
        let begin = boottime_ns();
        let (id, first) = self.made.launch(&self.sandboxes).await?;
        self.sandboxes.destroy(&id).await.context("destroy")?;
        Ok(milliseconds(Duration::from_nanos(first - begin)))
    }

    /// As many at once, from a full pool: seconds until the last first byte.
    pub(super) async fn burst(&self, count: usize) -> Result<f64> {
        self.wait_for_pool(count).await?;
        let begin = boottime_ns();
        let mut launches = JoinSet::new();
        for _ in 0..count {
            let (made, sandboxes) = (Arc::clone(&self.made), self.sandboxes.clone());
            launches.spawn(async move { made.launch(&sandboxes).await });
        }
        let launched = launches.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
        let last = launched.iter().map(|(_, first)| *first).max().unwrap_or(begin);
        for (id, _) in launched {
            self.sandboxes.destroy(&id).await.context("destroy")?;
        }
        Ok(Duration::from_nanos(last - begin).as_secs_f64())
    }

    /// Takes everything down; nothing is left but the directory.
    async fn close(self) -> Result<()> {
        self.sandboxes.reset().await.context("take the backend down")?;
        drop(self.sandboxes);
        std::fs::remove_dir_all(&self.config.run_dir).context("remove the run directory")
    }
}

impl Made {
    /// The sandbox and when the first byte came, in nanoseconds of boot time.
    async fn launch(&self, sandboxes: &NamespaceSandboxes) -> Result<(SandboxId, u64)> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let id = SandboxId(format!("launch-{number}"));
        let dir = self.options.dir.join("pods").join(&id.0);
        sandboxes.prepare(&id).await.context("prepare")?;
        let spec = SandboxSpec {
            hostname: id.0.clone(),
            sysctls: BTreeMap::new(),
            share_process_namespace: false,
            resources: oci::resources(),
            log_dir: dir.join("logs"),
            labels: BTreeMap::new(),
            namespaces: Namespaces::default(),
        };
        sandboxes.configure(&id, &spec).await.context("configure")?;
        let mut events = sandboxes.events(&id).await.context("subscribe")?;
        let container = ContainerSpec {
            name: "main".to_owned(),
            attempt: 0,
            args: oci::ARGS.map(str::to_owned).to_vec(),
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            cwd: "/".to_owned(),
            user: User::default(),
            rootfs: Rootfs {
                layers: vec![Layer { id: "sha256:bench".to_owned(), path: self.options.layer.clone() }],
                writable: Some(dir.join("writable")),
            },
            readonly_rootfs: false,
            mounts: Vec::new(),
            resources: Resources::default(),
            security: Security::default(),
            stop_signal: 15,
            stdin: false,
            tty: false,
        };
        sandboxes.start(&id, &container).await.context("start")?;
        loop {
            match events.recv().await {
                Some(SandboxEvent::FirstByte { boottime_ns, .. }) => return Ok((id, boottime_ns)),
                Some(SandboxEvent::Started { .. }) => {}
                other => bail!("no first byte, but {other:?}"),
            }
        }
    }
}
