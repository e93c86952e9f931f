//! A host of one test's own: run directory, keeper, cgroup parent, image; all gone afterwards.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "helpers fail as tests do")]

pub mod attack;
pub mod census;
pub mod image;
pub mod shim;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sandbox::contract::{Exit, SandboxError, SandboxEvent, Sandboxes, Stdio};
use sandbox::namespace::{Config, NamespaceSandboxes};
use sandbox::protocol::{Answer, Call, Connection, VERSIONS, keeper};
use sandbox::spec::{
    ContainerSpec, ExecSpec, LOG_BYTES_PER_SECOND, Layer, Namespaces, Resources, Rootfs, SandboxId, SandboxSpec,
    Security, User,
};
use tokio::sync::mpsc::Receiver;

/// Longest wait for what must happen: others may have most of the machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The same by looks: a machine that stands still, or lets nobody run, has not kept anybody waiting for what runs on it too.
const LOOKS: u32 = 12_000;
const LOOK: Duration = Duration::from_millis(5);

/// Why privileged tests cannot run here, if so.
pub fn why_not() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    image::layer().err().or_else(|| shim::program().err())
}

/// Skips a test aloud.
#[macro_export]
macro_rules! privileged {
    ($name:literal) => {
        if let Some(reason) = support::why_not() {
            eprintln!("SKIPPED {}: {reason}", $name);
            return;
        }
    };
}

pub struct Host {
    pub dir: tempfile::TempDir,
    pub config: Config,
    sandboxes: Option<NamespaceSandboxes>,
    next: AtomicU32,
}

impl Host {
    pub async fn new() -> Self {
        Self::with_pool(0).await
    }

    pub async fn with_pool(pool_size: usize) -> Self {
        Self::with_program(shim::program().unwrap(), pool_size).await
    }

    pub async fn with_program(shim_program: PathBuf, pool_size: usize) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let config = Config {
            run_dir: dir.path().join("run"),
            shim_program,
            cgroup_parent: format!("nodeless-test-{}-{number}", std::process::id()),
            layer_dirs: vec![image::directory()],
            pool_size,
            ahead_dir: Some(dir.path().join("ahead")),
            limit_writable: true,
        };
        let sandboxes = NamespaceSandboxes::open(config.clone()).await.unwrap();
        Self { dir, config, sandboxes: Some(sandboxes), next: AtomicU32::new(0) }
    }

    pub fn sandboxes(&self) -> &NamespaceSandboxes {
        self.sandboxes.as_ref().unwrap()
    }

    /// As after an agent's restart.
    pub async fn reopen(&mut self) {
        self.sandboxes = None;
        // Background work lets go of the lock when its last step ends.
        let deadline = Instant::now() + PATIENCE;
        while self.sandboxes.is_none() {
            match NamespaceSandboxes::open(self.config.clone()).await {
                Ok(sandboxes) => self.sandboxes = Some(sandboxes),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A configured sandbox.
    pub async fn sandbox(&self, name: &str) -> SandboxId {
        self.sandbox_with(name, |_| {}).await
    }

    pub async fn sandbox_with(&self, name: &str, change: impl FnOnce(&mut SandboxSpec)) -> SandboxId {
        let id = SandboxId(name.to_owned());
        let spec = self.spec(name, change);
        self.sandboxes().prepare_as(&id, &spec.namespaces).await.unwrap();
        self.sandboxes().configure(&id, &spec).await.unwrap();
        id
    }

    /// An ordinary sandbox, changed.
    pub fn spec(&self, name: &str, change: impl FnOnce(&mut SandboxSpec)) -> SandboxSpec {
        let mut spec = SandboxSpec {
            hostname: name.to_owned(),
            sysctls: BTreeMap::new(),
            share_process_namespace: false,
            resources: Resources::default(),
            log_dir: self.path().join("logs").join(name),
            log_bytes_per_second: LOG_BYTES_PER_SECOND,
            labels: BTreeMap::from([("pod.name".to_owned(), name.to_owned())]),
            namespaces: Namespaces::default(),
        };
        change(&mut spec);
        spec
    }

    /// A container that runs a shell script.
    pub fn shell(&self, name: &str, script: &str) -> ContainerSpec {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        ContainerSpec {
            name: name.to_owned(),
            attempt: 0,
            args: vec!["/bin/sh".into(), "-c".into(), script.into()],
            env: vec![("PATH".into(), "/bin".into())],
            cwd: "/".into(),
            user: User::default(),
            rootfs: Rootfs {
                layers: vec![Layer { id: "sha256:busybox".into(), path: image::layer().unwrap() }],
                writable: Some(self.path().join(format!("writable-{number}"))),
                writable_limit: None,
            },
            readonly_rootfs: false,
            mounts: Vec::new(),
            resources: Resources::default(),
            security: Security::default(),
            stop_signal: 15,
            stdin: false,
            stdin_once: false,
            tty: false,
            target: None,
        }
    }

    /// Starts a container, waits for its end.
    pub async fn run(&self, id: &SandboxId, spec: &ContainerSpec) -> Exit {
        let mut events = self.sandboxes().events(id).await.unwrap();
        self.sandboxes().start(id, spec).await.unwrap();
        exit_of(&mut events, &spec.name, spec.attempt).await
    }

    /// Runs a script in a new container; its exit and its output.
    pub async fn script(&self, id: &SandboxId, name: &str, script: &str) -> (Exit, String) {
        let spec = self.shell(name, script);
        let exit = self.run(id, &spec).await;
        (exit, self.log(id, name, 0))
    }

    /// A container's output without the log format's columns.
    pub fn log(&self, id: &SandboxId, name: &str, attempt: u32) -> String {
        let path = self.path().join("logs").join(&id.0).join(name).join(format!("{attempt}.log"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default()).collect::<Vec<_>>().join("\n")
    }

    /// Runs a program in a container; its exit, standard output and standard error.
    pub async fn exec(&self, id: &SandboxId, container: &str, args: &[&str]) -> (Exit, String, String) {
        let (out_read, out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (err_read, err) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let spec = exec_spec(container, args);
        let stdio = Stdio { stdin: None, stdout: Some(out), stderr: Some(err) };
        let mut process = self.sandboxes().exec(id, &spec, stdio).await.unwrap();
        let read = |fd| tokio::task::spawn_blocking(move || std::io::read_to_string(std::fs::File::from(fd)).unwrap());
        let (out, err) = (read(out_read), read(err_read));
        let exit = process.wait().await.unwrap();
        (exit, out.await.unwrap(), err.await.unwrap())
    }

    /// Waits until the pool is full.
    pub async fn filled(&self) {
        let full = async {
            while self.sandboxes().warm().await < self.config.pool_size {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        in_time("the pool is full", full).await;
    }

    /// Takes everything down and checks that nothing is left.
    pub async fn close(self) {
        for listed in self.sandboxes().list().await.unwrap() {
            let deadline = Instant::now() + 4 * PATIENCE;
            while let Err(error) = self.sandboxes().destroy(&listed.id).await {
                ask_again(&error, deadline);
            }
        }
        let deadline = Instant::now() + 4 * PATIENCE;
        while let Err(error) = self.sandboxes().drain_pool().await {
            ask_again(&error, deadline);
        }
        let left = self.leftovers();
        assert_eq!(left, Vec::<String>::new());
    }

    /// What is still there of this host's sandboxes, besides the keeper.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for directory in ["ids", "pool", "sandboxes", "trash"] {
            for entry in std::fs::read_dir(self.config.run_dir.join(directory)).unwrap() {
                left.push(entry.unwrap().path().display().to_string());
            }
        }
        for parent in self.cgroup_parents() {
            for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    left.push(entry.path().display().to_string());
                }
            }
        }
        left
    }

    fn cgroup_parents(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let inside = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        inside.chain([root.to_owned()]).map(|path| path.join(&self.config.cgroup_parent)).collect()
    }

    /// Kills a sandbox's shim.
    pub fn kill_shim(&self, id: &SandboxId) {
        rustix::process::kill_process(self.shim_pid(id), rustix::process::Signal::KILL).unwrap();
    }

    /// A sandbox's shim: the oldest of the processes that have its command line, for stubs have it too.
    pub fn shim_pid(&self, id: &SandboxId) -> rustix::process::Pid {
        let slot =
            std::fs::read_to_string(self.config.run_dir.join("sandboxes").join(&id.0).join("slot.json")).unwrap();
        let slot: serde_json::Value = serde_json::from_str(&slot).unwrap();
        let argument = format!("\"slot\":\"{}\"", slot["name"].as_str().unwrap());
        self.processes_with(&argument)[0]
    }

    /// The stub that stands by for a sandbox's first container, if there is one. On v2 who lends it memory is in its group too.
    pub fn stubs(&self, id: &SandboxId) -> Vec<rustix::process::Pid> {
        let shim = self.shim_pid(id).as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
        let stubs = children.split_whitespace().filter(|pid| {
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            groups.lines().any(|line| line.ends_with("/first"))
        });
        stubs.filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)).collect()
    }

    /// This host's processes whose command line holds `text`, the oldest first. Other hosts' tests have slots of the same
    /// names.
    pub fn processes_with(&self, text: &str) -> Vec<rustix::process::Pid> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let cgroups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(text) && cgroups.contains(&self.config.cgroup_parent) {
                found.push(pid);
            }
        }
        found.sort_unstable();
        found.into_iter().filter_map(rustix::process::Pid::from_raw).collect()
    }

    pub fn keeper_pid(&self) -> Option<rustix::process::Pid> {
        let socket = std::os::unix::net::UnixStream::connect(self.config.run_dir.join("keeper.sock")).ok()?;
        let mut connection = Connection::new(socket.into());
        connection.send(&Call { id: 1, body: keeper::Request::Hello { versions: VERSIONS } }, vec![]).ok()?;
        match connection.receive::<Answer<keeper::Reply>>().ok()?.0.result {
            Ok(keeper::Reply::Hello { pid, .. }) => rustix::process::Pid::from_raw(pid as i32),
            _ => None,
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Also after a failed assertion: what this test made is killed, then removed.
        if let Ok(layout) = sandbox::cgroup::Layout::detect()
            && let Ok(tree) = sandbox::cgroup::Tree::open(&layout, &self.config.cgroup_parent)
        {
            for pod in tree.pods().unwrap_or_default() {
                let _ = tree.remove_pod(&pod, Duration::from_secs(5));
            }
        }
        if let Some(pid) = self.keeper_pid() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        // The keeper is in some of them until it is gone.
        let deadline = Instant::now() + Duration::from_secs(5);
        for parent in self.cgroup_parents() {
            while std::fs::remove_dir(&parent).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
                && Instant::now() < deadline
            {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// Processes that were killed may have no processor on which to end; an agent asks again then. Fails at anything else.
#[track_caller]
fn ask_again(error: &SandboxError, deadline: Instant) {
    assert!(error.to_string().contains("still in use") && Instant::now() < deadline, "{error}");
}

/// Starts a container that runs on.
pub async fn start(host: &Host, id: &SandboxId, spec: &ContainerSpec) {
    host.sandboxes().start(id, spec).await.unwrap();
}

pub fn exec_spec(container: &str, args: &[&str]) -> ExecSpec {
    ExecSpec {
        container: container.to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: Vec::new(),
        cwd: None,
        tty: None,
    }
}

/// Waits for the end of a container's attempt.
pub async fn exit_of(events: &mut Receiver<SandboxEvent>, name: &str, wanted: u32) -> Exit {
    let waiting = async {
        while let Some(event) = events.recv().await {
            match event {
                SandboxEvent::Exited { container, attempt, exit } if container == name && attempt == wanted => {
                    return exit;
                }
                SandboxEvent::Lost { .. } => panic!("the shim is lost"),
                _ => {}
            }
        }
        panic!("the events ended");
    };
    in_time("the container ends", waiting).await
}

/// Polls until a condition holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..LOOKS {
        if condition() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    panic!("{what}");
}

/// What comes of a future, within twice [`PATIENCE`].
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    for _ in 0..2 * LOOKS {
        tokio::select! {
            biased;
            value = &mut future => return value,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    panic!("{what}");
}
