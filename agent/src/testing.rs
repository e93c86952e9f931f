//! Fakes of the ports for tests of this crate: they keep state, can be told to fail, and never say Ok to nonsense.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sandbox::contract::{
    Attachment, Detached, ExecProcess, Exit, Listed, Prepared, SandboxError, SandboxEvent, SandboxStats, Sandboxes,
    Started, Stdio,
};
use sandbox::spec::{ContainerSpec, ExecSpec, Namespaces, Resources, SandboxId, SandboxSpec};
use tokio::sync::mpsc;

use crate::clock::Now;
use crate::pod::task::World;
use crate::ports::{
    Address, ImageConfig, ImageFailure, ImageSource, ImageWish, Interval, Metered, Metering, PodNetwork, PortError,
    ReadyImage, RootFiles, Told,
};

/// Sandboxes whose programs are names: `exit N`, `run` (until signalled), `deaf` (until killed), `missing`.
#[derive(Debug, Default)]
pub(crate) struct FakeSandboxes {
    pub(crate) inner: Mutex<FakeState>,
}

#[derive(Debug, Default)]
pub(crate) struct FakeState {
    pub(crate) sandboxes: BTreeMap<String, FakeSandbox>,
    /// Operations in order, as `verb id`.
    pub(crate) calls: Vec<String>,
    /// Fails the next calls of this verb, so many times.
    pub(crate) failing: BTreeMap<&'static str, u32>,
    /// Changes of limits in order.
    pub(crate) updates: Vec<String>,
    /// CPUs that containers were last told to run on, by `ID/NAME`.
    pub(crate) cpusets: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
pub(crate) struct FakeSandbox {
    pub(crate) spec: Option<SandboxSpec>,
    pub(crate) running: BTreeMap<String, ContainerSpec>,
    dead: bool,
    events: Vec<SandboxEvent>,
    watchers: Vec<mpsc::Sender<SandboxEvent>>,
}

impl FakeState {
    /// Whoever speaks to a dead shim is not answered.
    fn lives(&self, id: &SandboxId) -> Result<(), SandboxError> {
        match self.sandboxes.get(&id.0) {
            Some(FakeSandbox { dead: true, .. }) => Err(SandboxError::Unavailable {
                operation: "connection to a shim".to_owned(),
                source: std::io::ErrorKind::ConnectionRefused.into(),
            }),
            _ => Ok(()),
        }
    }
}

impl FakeSandbox {
    fn tell(&mut self, event: SandboxEvent) {
        self.events.push(event.clone());
        self.watchers.retain(|w| w.try_send(event.clone()).is_ok());
    }

    fn end(&mut self, container: &str, code: i32, signal: Option<i32>, oom_killed: bool) {
        if let Some(spec) = self.running.remove(container) {
            let now = Now::read();
            self.tell(SandboxEvent::Exited {
                container: container.to_owned(),
                attempt: spec.attempt,
                exit: Exit { code, signal, oom_killed, boottime_ns: now.boottime_ns, wall_ns: now.wall_ns },
            });
        }
    }
}

impl FakeSandboxes {
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, FakeState> {
        self.inner.lock().unwrap()
    }

    fn enter(&self, verb: &'static str, id: &SandboxId) -> Result<(), SandboxError> {
        let mut state = self.lock();
        state.calls.push(format!("{verb} {id}"));
        if let Some(left) = state.failing.get_mut(verb).filter(|left| **left > 0) {
            *left -= 1;
            return Err(SandboxError::Failed { operation: verb.to_owned(), message: "told to fail".to_owned() });
        }
        Ok(())
    }

    /// The container's program ends.
    pub(crate) fn end(&self, id: &str, container: &str, code: i32, oom_killed: bool) {
        let signal = (code > 128).then_some(code - 128);
        self.lock().sandboxes.get_mut(id).unwrap().end(container, code, signal, oom_killed);
    }

    /// The shim dies.
    pub(crate) fn lose(&self, id: &str) {
        let mut state = self.lock();
        let sandbox = state.sandboxes.get_mut(id).unwrap();
        sandbox.running.clear();
        sandbox.dead = true;
        sandbox.tell(SandboxEvent::Lost { boottime_ns: Now::read().boottime_ns });
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.lock().sandboxes.keys().cloned().collect()
    }

    pub(crate) fn count(&self, call: &str) -> usize {
        self.lock().calls.iter().filter(|c| c.starts_with(call)).count()
    }
}

fn not_found(id: &SandboxId) -> SandboxError {
    SandboxError::NotFound { what: format!("sandbox {id}") }
}

struct FakeExec(Exit);

#[async_trait]
impl ExecProcess for FakeExec {
    async fn wait(&mut self) -> Result<Exit, SandboxError> {
        Ok(self.0.clone())
    }
    async fn signal(&mut self, _: i32) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn resize(&mut self, _: u16, _: u16) -> Result<(), SandboxError> {
        Ok(())
    }
}

/// Output is input; a size that is wider than 200 columns cuts it off.
struct FakeAttachment {
    name: String,
    events: mpsc::Receiver<SandboxEvent>,
}

#[async_trait]
impl Attachment for FakeAttachment {
    async fn wait(&mut self) -> Result<Detached, SandboxError> {
        while let Some(event) = self.events.recv().await {
            if matches!(&event, SandboxEvent::Exited { container, .. } if *container == self.name) {
                return Ok(Detached::Ended);
            }
        }
        Ok(Detached::TooSlow)
    }

    async fn resize(&mut self, columns: u16, _: u16) -> Result<(), SandboxError> {
        if columns > 200 {
            self.events.close();
        }
        Ok(())
    }
}

#[async_trait]
impl Sandboxes for FakeSandboxes {
    async fn prepare_as(&self, id: &SandboxId, _: &Namespaces) -> Result<Prepared, SandboxError> {
        self.enter("prepare", id)?;
        self.lock().lives(id)?;
        self.lock().sandboxes.entry(id.0.clone()).or_default();
        let netns: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        Ok(Prepared { id: id.clone(), netns })
    }

    async fn configure(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<(), SandboxError> {
        self.enter("configure", id)?;
        let mut state = self.lock();
        let sandbox = state.sandboxes.get_mut(&id.0).ok_or_else(|| not_found(id))?;
        sandbox.spec = Some(spec.clone());
        Ok(())
    }

    async fn start(&self, id: &SandboxId, container: &ContainerSpec) -> Result<Started, SandboxError> {
        self.enter("start", id)?;
        let mut state = self.lock();
        state.lives(id)?;
        let sandbox = state.sandboxes.get_mut(&id.0).ok_or_else(|| not_found(id))?;
        let log_dir = sandbox.spec.as_ref().expect("configured before a start").log_dir.join(&container.name);
        let known = sandbox.events.iter().find_map(|event| match event {
            SandboxEvent::Started { container: name, attempt, started }
                if *name == container.name && *attempt == container.attempt =>
            {
                Some(started.clone())
            }
            _ => None,
        });
        if let Some(started) = known {
            return Ok(started);
        }
        let program = container.args.join(" ");
        if program == "missing" {
            return Err(SandboxError::Exec { message: "exec: \"missing\": not found".to_owned(), code: 127 });
        }
        std::fs::create_dir_all(&log_dir).unwrap();
        let line = format!("2026-11-21T04:00:00.000000000Z stdout F {} {}\n", container.name, container.attempt);
        std::fs::write(log_dir.join(format!("{}.log", container.attempt)), line).unwrap();
        let now = Now::read();
        let started = Started { pid: 1, boottime_ns: now.boottime_ns, wall_ns: now.wall_ns };
        let (name, attempt) = (container.name.clone(), container.attempt);
        assert!(sandbox.running.insert(name.clone(), container.clone()).is_none(), "{name} runs already");
        sandbox.tell(SandboxEvent::Started { container: name.clone(), attempt, started: started.clone() });
        sandbox.tell(SandboxEvent::FirstByte { container: name.clone(), attempt, boottime_ns: now.boottime_ns });
        if let Some(code) = program.strip_prefix("exit ") {
            sandbox.end(&name, code.parse().unwrap(), None, false);
        }
        Ok(started)
    }

    async fn exec(&self, id: &SandboxId, exec: &ExecSpec, stdio: Stdio) -> Result<Box<dyn ExecProcess>, SandboxError> {
        self.enter("exec", id)?;
        if exec.args[0] == "missing" {
            return Err(SandboxError::Exec { message: "exec: \"missing\": not found".to_owned(), code: 127 });
        }
        let code = exec.args.get(1).and_then(|c| c.parse().ok()).unwrap_or(0);
        if let Some(out) = stdio.stdout {
            use std::io::Write as _;
            std::fs::File::from(out).write_all(exec.args.join(" ").as_bytes()).unwrap();
        }
        let exit = Exit { code, signal: None, oom_killed: false, boottime_ns: 0, wall_ns: 0 };
        Ok(Box::new(FakeExec(exit)))
    }

    async fn attach(&self, id: &SandboxId, name: &str, stdio: Stdio) -> Result<Box<dyn Attachment>, SandboxError> {
        self.enter("attach", id)?;
        let mut state = self.lock();
        let sandbox = state.sandboxes.get_mut(&id.0).ok_or_else(|| not_found(id))?;
        let spec = sandbox.running.get(name).ok_or_else(|| not_found(id))?;
        if stdio.stdin.is_some() && !spec.stdin {
            return Err(SandboxError::Invalid { message: format!("container {name} has no standard input") });
        }
        let (sender, events) = mpsc::channel(64);
        sandbox.watchers.push(sender);
        if let (Some(input), Some(output)) = (stdio.stdin, stdio.stdout) {
            std::thread::spawn(move || {
                std::io::copy(&mut std::fs::File::from(input), &mut std::fs::File::from(output))
            });
        }
        Ok(Box::new(FakeAttachment { name: name.to_owned(), events }))
    }

    async fn pause(&self, id: &SandboxId, container: &str) -> Result<(), SandboxError> {
        self.enter("pause", id)?;
        self.lock().sandboxes.get(&id.0).and_then(|s| s.running.get(container)).map(drop).ok_or_else(|| not_found(id))
    }

    async fn resume(&self, id: &SandboxId, container: &str) -> Result<(), SandboxError> {
        self.enter("resume", id)?;
        self.lock().sandboxes.get(&id.0).and_then(|s| s.running.get(container)).map(drop).ok_or_else(|| not_found(id))
    }

    async fn signal(&self, id: &SandboxId, container: &str, signal: i32, _all: bool) -> Result<(), SandboxError> {
        self.enter("signal", id)?;
        let mut state = self.lock();
        let sandbox = state.sandboxes.get_mut(&id.0).ok_or_else(|| not_found(id))?;
        let deaf = sandbox.running.get(container).ok_or_else(|| not_found(id))?.args[0] == "deaf";
        if signal == 9 || !deaf {
            sandbox.end(container, 128 + signal, Some(signal), false);
        }
        Ok(())
    }

    async fn update(&self, id: &SandboxId, what: Option<&str>, new: &Resources) -> Result<(), SandboxError> {
        self.enter("update", id)?;
        let line = format!("{} quota {:?} memory {:?}", what.unwrap_or("pod"), new.cpu_quota_us, new.memory_limit);
        let mut state = self.lock();
        state.updates.push(line);
        if let (Some(container), Some(cpus)) = (what, &new.cpuset) {
            state.cpusets.insert(format!("{id}/{container}"), cpus.clone());
        }
        Ok(())
    }

    async fn stats(&self, id: &SandboxId) -> Result<SandboxStats, SandboxError> {
        if self.lock().sandboxes.contains_key(&id.0) { Ok(SandboxStats::default()) } else { Err(not_found(id)) }
    }

    async fn events(&self, id: &SandboxId) -> Result<mpsc::Receiver<SandboxEvent>, SandboxError> {
        let mut state = self.lock();
        let sandbox = state.sandboxes.get_mut(&id.0).ok_or_else(|| not_found(id))?;
        let (sender, receiver) = mpsc::channel(1024);
        for event in &sandbox.events {
            sender.try_send(event.clone()).unwrap();
        }
        sandbox.watchers.push(sender);
        Ok(receiver)
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.enter("destroy", id)?;
        self.lock().sandboxes.remove(&id.0);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        let state = self.lock();
        let listed = |(id, s): (&String, &FakeSandbox)| Listed {
            id: SandboxId(id.clone()),
            labels: s.spec.as_ref().map(|spec| spec.labels.clone()).unwrap_or_default(),
            alive: !s.dead,
        };
        Ok(state.sandboxes.iter().map(listed).collect())
    }
}

/// Images, `as-USER:…` with a user, `slow…` five minutes on their way: each name is there but `absent…`, `invalid name` and (with `Never`) those not pulled before.
#[derive(Debug, Default)]
pub(crate) struct FakeImages {
    pub(crate) present: Mutex<BTreeSet<String>>,
}

struct NoFiles;

impl RootFiles for NoFiles {
    fn read_file(&self, _: &str, _: u64) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }
}

#[async_trait]
impl ImageSource for FakeImages {
    async fn is_present(&self, wish: &ImageWish) -> bool {
        self.present.lock().unwrap().contains(&wish.reference)
    }

    async fn ensure(&self, wish: &ImageWish, told: Told) -> Result<ReadyImage, ImageFailure> {
        let fail = |reason, message: &str| Err(ImageFailure { reason, message: message.to_owned(), retry_after: None });
        if wish.reference.starts_with("absent") {
            return fail("ErrImagePull", "manifest unknown");
        }
        if wish.reference.starts_with("slow") {
            for minute in 0..5 {
                told((minute * 100) << 20, 400 << 20);
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
        }
        if wish.reference.contains(' ') {
            return fail("InvalidImageName", "invalid reference format");
        }
        if wish.policy == crate::ports::PullPolicy::Never && !self.is_present(wish).await {
            return fail("ErrImageNeverPull", "not present");
        }
        self.present.lock().unwrap().insert(wish.reference.clone());
        let name = wish.reference.split(':').next().unwrap_or_default();
        let user = name.strip_prefix("as-").unwrap_or_default().to_owned();
        Ok(ReadyImage {
            reference: wish.reference.clone(),
            image_id: format!("{}@sha256:1", wish.reference),
            digest: "sha256:1".to_owned(),
            config: ImageConfig { cmd: vec!["run".to_owned()], user, ..ImageConfig::default() },
            layers: vec![],
            size: 42,
            files: Arc::new(NoFiles),
        })
    }

    fn adopt(&self, _: &[String]) -> Result<Box<dyn Send + Sync>, ImageFailure> {
        Ok(Box::new(()))
    }

    fn allow_collection(&self) {}
}

/// An image of one empty layer, in an OCI layout.
pub(crate) fn layout(dir: &Path) -> String {
    layout_of(dir, vec![0; 1024])
}

/// An image of one layer, in an OCI layout, in the place of the one that was there.
pub(crate) fn layout_of(dir: &Path, layer: Vec<u8>) -> String {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: Vec<u8>| {
        let digest = image_snapshot::Digest::sha256(&bytes);
        std::fs::write(blobs.join(digest.hex()), &bytes).unwrap();
        serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": bytes.len()})
    };
    let layer = put("layer.v1.tar", layer);
    let architecture = image_snapshot::ImagesConfig::new(dir).platform.architecture;
    let rootfs = serde_json::json!({"type": "layers", "diff_ids": [layer["digest"]]});
    let config = serde_json::json!({"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs});
    let config = put("config.v1+json", config.to_string().into_bytes());
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer]});
    let mut entry: serde_json::Value = put("manifest.v1+json", manifest.to_string().into_bytes());
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "1"});
    std::fs::write(dir.join("index.json"), serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string())
        .unwrap();
    std::fs::write(dir.join("oci-layout"), serde_json::json!({"imageLayoutVersion": "1.0.0"}).to_string()).unwrap();
    format!("oci-layout:{}:1", dir.display())
}

/// A wish of the host's operator.
pub(crate) fn wish(reference: &str) -> ImageWish {
    ImageWish {
        reference: reference.to_owned(),
        policy: crate::ports::PullPolicy::IfNotPresent,
        credentials: Vec::new(),
        trusted: true,
        domain: String::new(),
    }
}

/// A network that counts.
#[derive(Debug, Default)]
pub(crate) struct FakeNetwork {
    pub(crate) attached: Mutex<BTreeMap<String, u8>>,
}

#[async_trait]
impl PodNetwork for FakeNetwork {
    async fn attach(&self, sandbox: &SandboxId, _: BorrowedFd<'_>) -> Result<Address, PortError> {
        let mut attached = self.attached.lock().unwrap();
        let next = (2..).find(|n| !attached.values().any(|v| v == n)).unwrap();
        let last = *attached.entry(sandbox.0.clone()).or_insert(next);
        Ok(Address { ip: [10, 88, 0, last].into(), gateway: [10, 88, 0, 1].into(), prefix: 16 })
    }

    async fn detach(&self, sandbox: &SandboxId) -> Result<(), PortError> {
        self.attached.lock().unwrap().remove(&sandbox.0);
        Ok(())
    }

    async fn reconcile(&self, live: &[SandboxId]) -> Result<(), PortError> {
        self.attached.lock().unwrap().retain(|id, _| live.iter().any(|l| l.0 == *id));
        Ok(())
    }
}

/// A meter that remembers intervals.
#[derive(Debug, Default)]
pub(crate) struct FakeMeter {
    pub(crate) resized: Mutex<Vec<(u64, u64)>>,
    pub(crate) open: Mutex<BTreeMap<String, Metered>>,
    pub(crate) closed: Mutex<BTreeMap<String, (Metered, Metered)>>,
}

fn now() -> Metered {
    let now = Now::read();
    Metered { boottime_ns: now.boottime_ns, wall_ns: now.wall_ns }
}

#[async_trait]
impl Metering for FakeMeter {
    async fn start(&self, interval: &Interval) -> Result<Metered, PortError> {
        Ok(*self.open.lock().unwrap().entry(interval.sandbox.0.clone()).or_insert_with(now))
    }

    async fn resize(&self, interval: &Interval) -> Result<(), PortError> {
        self.resized.lock().unwrap().push((interval.milli_cpu, interval.memory_bytes));
        Ok(())
    }

    async fn stop(&self, sandbox: &SandboxId) -> Result<Metered, PortError> {
        let stop = now();
        if let Some(start) = self.open.lock().unwrap().remove(&sandbox.0) {
            self.closed.lock().unwrap().insert(sandbox.0.clone(), (start, stop));
        }
        Ok(stop)
    }

    async fn adopt(&self, live: &[SandboxId]) -> Result<(), PortError> {
        self.open.lock().unwrap().retain(|id, _| live.iter().any(|l| l.0 == *id));
        Ok(())
    }
}

/// Everything together, on a directory.
pub(crate) struct Rig {
    pub(crate) sandboxes: Arc<FakeSandboxes>,
    pub(crate) images: Arc<FakeImages>,
    pub(crate) network: Arc<FakeNetwork>,
    pub(crate) meter: Arc<FakeMeter>,
    pub(crate) dir: Home,
}

/// A directory that outlives what its agents still write: their tasks end with them, but not at once.
#[derive(Debug)]
pub(crate) struct Home {
    dir: tempfile::TempDir,
    agents: Mutex<Vec<Weak<World>>>,
}

impl Home {
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let until = |patience: Duration, is_so: &dyn Fn() -> bool| {
            let deadline = Instant::now() + patience;
            while !is_so() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        let agents = std::mem::take(&mut *self.agents.lock().unwrap());
        until(Duration::from_secs(1), &|| agents.iter().all(|agent| agent.strong_count() == 0));
        // Where somebody still makes files while others are removed, a removal fails: the next one does not.
        until(Duration::from_secs(10), &|| {
            std::fs::remove_dir_all(self.dir.path()).is_ok() || !self.dir.path().exists()
        });
    }
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self {
            sandboxes: Arc::default(),
            images: Arc::default(),
            network: Arc::default(),
            meter: Arc::default(),
            dir: Home { dir: tempfile::tempdir().unwrap(), agents: Mutex::default() },
        }
    }

    /// A new agent on the same host, in the boot of this name.
    pub(crate) fn world(&self, boot_id: &str) -> Arc<World> {
        self.world_with(boot_id, |_| {})
    }

    /// The same with something changed.
    pub(crate) fn world_with(&self, boot_id: &str, change: impl FnOnce(&mut World)) -> Arc<World> {
        let state_dir = self.dir.path().join("state");
        let mut world = World {
            sandboxes: self.sandboxes.clone(),
            images: self.images.clone(),
            network: self.network.clone(),
            meter: self.meter.clone(),
            ledger: crate::ledger::Ledger::open(&state_dir).unwrap(),
            journal: Default::default(),
            board: Default::default(),
            metrics: Default::default(),
            host: crate::pod::spec::HostFacts {
                ips: vec!["192.0.2.1".to_owned()],
                capacity: crate::pod::spec::resources::Amounts { milli_cpu: 4000, memory: 4 << 30, ephemeral: 1 << 30 },
                memory: 4 << 30,
                policy: crate::pod::spec::resources::Policy { pids_limit: 1024, ..Default::default() },
                hostname: "host".to_owned(),
                ..Default::default()
            },
            resolver: Default::default(),
            state_dir,
            thresholds: Default::default(),
            run_dir: self.dir.path().join("run"),
            boot_id: boot_id.to_owned(),
            measuring: Arc::new(tokio::sync::Semaphore::new(1)),
        };
        change(&mut world);
        let world = Arc::new(world);
        self.dir.agents.lock().unwrap().push(Arc::downgrade(&world));
        world
    }

    pub(crate) fn state_dir(&self) -> &Path {
        self.dir.path()
    }
}
