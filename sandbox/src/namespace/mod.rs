//! Namespace sandboxes: the agent's side of them.
//!
//! ```text
//!  NamespaceSandboxes ── keeper.rs ──> keeper: layer clones, new shims
//!        │   └── make.rs: a slot; slots.rs: found and cleared; pool.rs: some are kept warm, take.rs: and taken; layout.rs: what is written down
//!        └────── client.rs ──> shims: everything about one sandbox; start.rs: a container, with the root that was made ahead or
//!                without (ahead.rs); events.rs, exec.rs, attach.rs: what comes back
//! ```
//!
//! It opens what a container is made of on the host ([`sources`]) and hands descriptors on; it mounts nothing itself and
//! never forks. All it knows that matters after its own death is in the run directory and in the shims.

mod ahead;
mod attach;
mod client;
mod events;
mod exec;
mod keeper;
mod layers;
mod layout;
mod leftovers;
mod make;
mod pool;
mod program;
mod protection;
mod reset;
mod room;
mod shims;
mod slots;
mod sources;
mod start;
mod take;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use rustix::net::SocketAddrUnix;
use tokio::sync::{Mutex, mpsc};

use self::client::Delivered;
use self::keeper::{Keeper, unexpected};
use self::layers::Layers;
use self::layout::{Layout, Slot};
use self::leftovers::Leftovers;
use self::shims::Shims;
use self::slots::{Pool, blocking, cgroup_failed, io_failed};
use crate::cgroup::{DeviceProgram, Tree};
use crate::contract::{
    Attachment, ExecProcess, Listed, Prepared, SandboxError, SandboxEvent, SandboxStats, Sandboxes, Started, Stdio,
};
use crate::protocol::shim::{Reply, Request};
use crate::spec::{ContainerName, ContainerSpec, ExecSpec, Namespaces, Resources, SandboxId, SandboxSpec};

/// A shim's socket in its sandbox's directory.
const SHIM_SOCKET: &str = "shim.sock";
/// The directory of its event record there.
const RECORD: &str = "record";
/// How long another backend may hold the run directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// How long a shim may take to say what runs, before figures are told without it.
const STATUS: Duration = Duration::from_secs(2);

/// Bytes of a container's writable directory that it has not written: what a file system of its own takes when it is empty
/// ([`Rootfs::writable_limit`](crate::spec::Rootfs::writable_limit)). What it has written last is not on the disk as long as the
/// kernel has it in memory: see [`Sandboxes::written`]. Blocking.
///
/// # Errors
/// The kernel's.
pub fn overhead_bytes(writable: &std::path::Path) -> io::Result<u64> {
    room::image::overhead(writable)
}

/// How the backend is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory for sockets and records; on a file system in memory (`/run/…`): all of it is about this boot's processes.
    pub run_dir: PathBuf,
    /// The `nodeless-shim` program, linked statically.
    pub shim_program: PathBuf,
    /// Cgroup under which all pods live, relative to the hierarchies' roots (`nodeless`).
    pub cgroup_parent: String,
    /// Directories below which layer files must lie; the keeper mounts nothing else.
    pub layer_dirs: Vec<PathBuf>,
    /// Warm sandboxes to keep.
    pub pool_size: usize,
    /// A directory of the backend's own on the file system of the containers' writable directories, in which those that are
    /// made ahead wait; `None`: none are, and no roots either.
    pub ahead_dir: Option<PathBuf>,
    /// Whether [`Rootfs::writable_limit`](crate::spec::Rootfs::writable_limit) is kept, as far as the host can.
    pub limit_writable: bool,
}

/// The namespace backend.
#[derive(Debug, Clone)]
pub struct NamespaceSandboxes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    layout: Layout,
    _lock: File,
    tree: Tree,
    /// The usual rules about devices, loaded once for all containers; the host may not take such programs.
    device_program: Option<DeviceProgram>,
    keeper: Keeper,
    pool: Mutex<Pool>,
    /// Held by who fills the pool, or empties it.
    refilling: Mutex<()>,
    pool_wanted: AtomicBool,
    pool_changes: mpsc::Sender<pool::Change>,
    leftovers: Leftovers,
    /// The protection of all pods together is about to be summed up.
    summing: AtomicBool,
    layers: Layers,
    roots: ahead::Roots,
    room: room::Room,
    shims: Shims,
    /// Sandboxes that are being destroyed: their shims' ends are no loss.
    dying: std::sync::Mutex<BTreeSet<SandboxId>>,
}

impl NamespaceSandboxes {
    /// Opens the backend: takes the run directory's lock, finds the cgroups, clears what a crash left half-made, adopts warm
    /// sandboxes and begins to fill the pool. Needs root. A second backend on the same directory is refused.
    pub async fn open(config: Config) -> Result<Self, SandboxError> {
        Self::open_on(config, crate::cgroup::Layout::detect).await
    }

    /// As [`NamespaceSandboxes::open`], for containers that are told on which CPUs to run ([`Resources::cpuset`]).
    pub async fn open_with_cpusets(config: Config) -> Result<Self, SandboxError> {
        Self::open_on(config, crate::cgroup::Layout::detect_with_cpusets).await
    }

    async fn open_on(
        config: Config,
        detect: fn() -> Result<crate::cgroup::Layout, crate::cgroup::CgroupError>,
    ) -> Result<Self, SandboxError> {
        crate::sys::failpoint::join();
        program::check(&config.shim_program)?;
        let deadline = tokio::time::Instant::now() + LOCK_PATIENCE;
        let opened = loop {
            match Layout::open(&config.run_dir) {
                // A child that an agent before us has forked and not yet execed holds it for a moment longer.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                other => break other,
            }
        };
        let (layout, lock) = opened.map_err(|error| {
            let operation = format!("open of run directory {}", config.run_dir.display());
            match error.kind() {
                io::ErrorKind::WouldBlock => {
                    SandboxError::Failed { operation, message: "another agent is using it".to_owned() }
                }
                _ => io_failed(&operation, error),
            }
        })?;
        crate::sys::failpoint::failpoint!(LockTaken);
        let found = detect().and_then(|found| Tree::open(&found, &config.cgroup_parent));
        let tree = found.map_err(|error| cgroup_failed("search for control groups", &error))?;
        let roots = ahead::Roots::open(config.ahead_dir.as_deref())
            .map_err(|error| io_failed("clearing of the directory for roots made ahead", error))?;
        let (pool_changes, changes) = mpsc::channel(1);
        let (leftovers, left) = Leftovers::new();
        let inner = Arc::new(Inner {
            keeper: Keeper::new(config.clone()),
            layout,
            _lock: lock,
            device_program: usual_devices(),
            tree,
            pool: Mutex::default(),
            refilling: Mutex::default(),
            pool_wanted: AtomicBool::new(true),
            pool_changes,
            leftovers,
            summing: AtomicBool::default(),
            layers: Layers::default(),
            roots,
            room: room::Room::new(config.limit_writable),
            config,
            shims: Shims::default(),
            dying: std::sync::Mutex::default(),
        });
        inner.recover().await?;
        crate::sys::failpoint::failpoint!(Recovered);
        tokio::spawn(pool::tend(Arc::downgrade(&inner), changes));
        tokio::spawn(leftovers::tend(Arc::downgrade(&inner), left));
        Ok(Self { inner })
    }

    /// How many warm sandboxes wait now.
    pub async fn warm(&self) -> usize {
        self.inner.pool.lock().await.len()
    }

    /// Identities of the layers that the keeper holds mounted, those of agents before this one included.
    pub async fn mounted_layers(&self) -> Result<Vec<String>, SandboxError> {
        self.inner.keeper.mounted().await
    }

    /// Lets go of layers that no new container will need: the files may be deleted afterwards. Containers that use them go
    /// on.
    pub async fn release_layers(&self, ids: &[String]) -> Result<(), SandboxError> {
        self.inner.release(ids).await
    }

    /// Clears the warm pool, for a host that is taken out of service, and whatever could not be cleared before. Afterwards
    /// nothing of either is left, or the error names each slot that is, and why.
    pub async fn drain_pool(&self) -> Result<(), SandboxError> {
        self.inner.drain().await
    }
}

impl Inner {
    async fn ask(
        &self,
        id: &SandboxId,
        operation: &str,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Delivered<Reply>, SandboxError> {
        self.shim(id).await?.call(operation, request, fds).await
    }

    /// A sandbox's slot.
    fn slot(&self, id: &SandboxId) -> Result<Slot, SandboxError> {
        let slot = self.layout.slot(id).map_err(|error| io_failed("reading of a sandbox's record", error))?;
        slot.ok_or_else(|| not_found(id))
    }

    /// Waits until nothing is left of a sandbox's own file systems: the next sandbox of its name may have the same directories.
    async fn forget_room(self: &Arc<Self>, id: &SandboxId) -> Result<(), SandboxError> {
        if !self.room.has(id) {
            return Ok(());
        }
        let (inner, id) = (Arc::clone(self), id.clone());
        blocking(move || inner.room.forget(&id)).await
    }
}

#[async_trait]
impl Sandboxes for NamespaceSandboxes {
    async fn prepare_as(&self, id: &SandboxId, namespaces: &Namespaces) -> Result<Prepared, SandboxError> {
        check_name(id)?;
        namespaces.check().map_err(|message| SandboxError::Invalid { message })?;
        self.inner.take(id, namespaces).await
    }

    async fn configure(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<(), SandboxError> {
        let failed = |error: io::Error| io_failed("configuration of a sandbox", error);
        // Before anything is written: is there such a sandbox?
        self.inner.shim(id).await?;
        std::fs::create_dir_all(&spec.log_dir).map_err(failed)?;
        let logs = layout::open_directory(&spec.log_dir).map_err(failed)?;
        crate::sys::failpoint::failpoint!(LogDirectoryMade);
        layout::fill_json(&self.inner.layout.sandbox(id).join("spec.json"), spec).map_err(failed)?;
        crate::sys::failpoint::failpoint!(SpecRecorded);
        let request = Request::Configure { spec: spec.clone() };
        self.inner.ask(id, "configuration of a sandbox", request, vec![logs]).await?;
        crate::sys::failpoint::failpoint!(ShimConfigured);
        Ok(())
    }

    async fn start(&self, id: &SandboxId, container: &ContainerSpec) -> Result<Started, SandboxError> {
        self.inner.start(id, container).await
    }

    async fn exec(&self, id: &SandboxId, exec: &ExecSpec, stdio: Stdio) -> Result<Box<dyn ExecProcess>, SandboxError> {
        let client = self.inner.shim(id).await?;
        let (given, fds, kept) = if exec.tty.is_some() {
            ([false; 3], vec![], stdio)
        } else {
            let streams = [stdio.stdin, stdio.stdout, stdio.stderr];
            let given = [0, 1, 2].map(|index| streams[index].is_some());
            (given, streams.into_iter().flatten().collect(), Stdio::default())
        };
        let request = Request::Exec { spec: exec.clone(), stdio: given };
        let delivered = client.call("start of a process", request, fds).await?;
        crate::sys::failpoint::failpoint!(ExecAnswered);
        let Reply::ExecStarted { exec: number, .. } = delivered.reply else {
            return Err(unexpected("start of a process"));
        };
        let terminal = match delivered.fds.into_iter().next() {
            Some(master) => Some(exec::connect(master, kept)?),
            None => None,
        };
        Ok(Box::new(exec::Exec { client, number, exit: delivered.exit, ended: None, terminal }))
    }

    async fn attach(&self, id: &SandboxId, container: &str, stdio: Stdio) -> Result<Box<dyn Attachment>, SandboxError> {
        let client = self.inner.shim(id).await?;
        Ok(Box::new(attach::attach(client, container, stdio).await?))
    }

    async fn pause(&self, id: &SandboxId, container: &str) -> Result<(), SandboxError> {
        let request = Request::Pause { container: container.to_owned() };
        self.inner.ask(id, "pause of a container", request, vec![]).await.map(drop)
    }

    async fn resume(&self, id: &SandboxId, container: &str) -> Result<(), SandboxError> {
        let request = Request::Resume { container: container.to_owned() };
        self.inner.ask(id, "resumption of a container", request, vec![]).await.map(drop)
    }

    async fn signal(&self, id: &SandboxId, container: &str, signal: i32, all: bool) -> Result<(), SandboxError> {
        let request = Request::Signal { container: container.to_owned(), signal, all };
        self.inner.ask(id, "signal to a container", request, vec![]).await.map(drop)
    }

    async fn update(&self, id: &SandboxId, container: Option<&str>, resources: &Resources) -> Result<(), SandboxError> {
        let request = Request::Update { container: container.map(str::to_owned), resources: resources.clone() };
        self.inner.ask(id, "change of limits", request, vec![]).await?;
        self.inner.protection_changed();
        Ok(())
    }

    async fn stats(&self, id: &SandboxId) -> Result<SandboxStats, SandboxError> {
        let slot = self.inner.slot(id)?;
        let asked = self.inner.ask(id, "status of a shim", Request::Status, vec![]);
        let running = match tokio::time::timeout(STATUS, asked).await {
            Ok(Ok(Delivered { reply: Reply::Status(status), .. })) => status.running,
            // A dead shim has no containers, and one that waits for a disk cannot name them; the pod's own figures are true.
            _ => BTreeMap::new(),
        };
        let failed = |error| match error {
            error @ crate::cgroup::CgroupError::NotFound { .. } => SandboxError::NotFound { what: error.to_string() },
            error => cgroup_failed("reading of resource use", &error),
        };
        let pod = self.inner.tree.pod(&SandboxId(slot.name)).map_err(failed)?;
        let mut stats = SandboxStats { pod: pod.usage().map_err(failed)?, containers: BTreeMap::new() };
        for (name, leaf) in running {
            // One that ends meanwhile is left out.
            if let Ok(usage) = pod.leaf(&leaf).and_then(|leaf| leaf.usage()) {
                stats.containers.insert(name, usage);
            }
        }
        Ok(stats)
    }

    fn written(&self, id: &SandboxId) -> BTreeMap<ContainerName, u64> {
        self.inner.room.written(id)
    }

    async fn events(&self, id: &SandboxId) -> Result<mpsc::Receiver<SandboxEvent>, SandboxError> {
        if let Some((slot, ready)) = self.inner.shims.take_events(id) {
            return Ok(self.inner.subscribe(id.clone(), slot, Some(ready)));
        }
        Ok(self.inner.subscribe(id.clone(), self.inner.slot(id)?, None))
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), SandboxError> {
        check_name(id)?;
        let slot = self.inner.layout.slot(id).map_err(|error| io_failed("reading of a sandbox's record", error))?;
        // What was held of it outlives it where its clearing failed near the end.
        let Some(slot) = slot else { return self.inner.forget_room(id).await };
        let known = self.inner.shims.remove(id);
        self.inner.set_dying(id, true);
        crate::sys::failpoint::failpoint!(DestroyBegun);
        let cleared = self.inner.clear_slot(&slot, &self.inner.layout.sandbox(id), known).await;
        self.inner.set_dying(id, false);
        self.inner.protection_changed();
        cleared?;
        self.inner.forget_room(id).await
    }

    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        let failed = |error: io::Error| io_failed("reading of the run directory", error);
        let mut found = Vec::new();
        for id in self.inner.layout.sandboxes().map_err(failed)? {
            let spec: Option<SandboxSpec> =
                layout::read_json(&self.inner.layout.sandbox(&id).join("spec.json")).map_err(failed)?;
            found.push((id, spec.map(|spec| spec.labels).unwrap_or_default()));
        }
        // All at once: those that do not answer take no longer than one of them.
        let mut asked = tokio::task::JoinSet::new();
        for (id, labels) in found {
            let inner = Arc::clone(&self.inner);
            asked.spawn(async move {
                let alive = inner.is_alive(&id).await;
                Listed { id, labels, alive }
            });
        }
        let mut listed = asked.join_all().await;
        listed.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(listed)
    }
}

/// Where it cannot be loaded, each container's shim tries for itself and says why.
fn usual_devices() -> Option<DeviceProgram> {
    DeviceProgram::usual().unwrap_or_else(|error| {
        tracing::debug!(%error, "the usual device program is not shared");
        None
    })
}

fn not_found(id: &SandboxId) -> SandboxError {
    SandboxError::NotFound { what: format!("sandbox {id}") }
}

fn check_name(id: &SandboxId) -> Result<(), SandboxError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=63).contains(&id.0.len()) && id.0.bytes().all(allowed) {
        return Ok(());
    }
    Err(SandboxError::Invalid { message: format!("{:?} cannot name a sandbox: 1 to 63 of a-z, 0-9 and -", id.0) })
}

/// The address of the socket `name` in a directory, whatever the length of the directory's own path.
fn socket_address(directory: &OwnedFd, name: &str) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd()))?)
}
