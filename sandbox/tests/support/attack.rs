//! The hostile program in a container of a real sandbox.

use std::path::Path;
use std::time::Duration;

use sandbox::contract::{Exit, SandboxError, Sandboxes, Stdio};
use sandbox::spec::{ContainerSpec, Layer, Mount, SandboxId, SandboxSpec};

use super::{Host, exec_spec, exit_of, image, shim};

/// Why there can be no attack here, if so.
pub fn why_not() -> Option<String> {
    super::why_not().or_else(|| shim::attacker().err())
}

/// Skips an attack aloud.
#[macro_export]
macro_rules! attack {
    ($name:literal) => {
        if let Some(reason) = support::attack::why_not() {
            eprintln!("SKIPPED {}: {reason}", $name);
            return;
        }
    };
}

/// How often each race is run: `NODELESS_ESCAPE_ITERATIONS`, or few.
pub fn iterations() -> usize {
    const FEW: usize = 300;
    match std::env::var("NODELESS_ESCAPE_ITERATIONS") {
        Ok(text) => text.parse().expect("NODELESS_ESCAPE_ITERATIONS is a number"),
        Err(_) => FEW,
    }
}

/// What the attacker printed.
#[derive(Debug)]
pub struct Told {
    pub text: String,
}

impl Told {
    pub fn new(text: String) -> Self {
        Self { text }
    }

    /// What went through.
    pub fn breaches(&self) -> Vec<&str> {
        self.text.lines().filter_map(|line| line.strip_prefix("BREACH ")).collect()
    }

    /// What it saw that begins with `word`.
    pub fn seen<'a>(&'a self, word: &str) -> Vec<&'a str> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix("SEEN "));
        lines.filter_map(|line| line.strip_prefix(word)).map(str::trim_start).collect()
    }

    /// How much it tried; nothing when it did not get to its end.
    pub fn tried(&self) -> u64 {
        let mut counts = self.text.lines().filter_map(|line| line.strip_prefix("TRIED "));
        counts.find_map(|count| count.parse().ok()).unwrap_or(0)
    }

    /// Fails unless it tried at least `least` things and nothing went through.
    #[track_caller]
    pub fn in_vain(&self, least: u64) {
        assert!(self.breaches().is_empty(), "{:#?}", self.breaches());
        assert!(self.tried() >= least, "it tried {} of {least}: {}", self.tried(), self.text);
    }
}

impl Host {
    /// A container that asks one thing of the kernel's surface.
    pub fn surface(&self, name: &str, arguments: &[&str]) -> ContainerSpec {
        self.attacker(name, &[&["surface"], arguments].concat())
    }

    /// A container with the attacker as its program.
    pub fn attacker(&self, name: &str, arguments: &[&str]) -> ContainerSpec {
        let mut spec = self.shell(name, "");
        spec.args = ["/bin/attacker"].iter().chain(arguments).map(|word| (*word).to_owned()).collect();
        spec.rootfs.layers.push(Layer { id: "sha256:attacker".into(), path: image::attacker() });
        spec
    }

    /// Runs the attacker in a new container to its end.
    pub async fn attack(&self, id: &SandboxId, spec: &ContainerSpec) -> (Exit, Told) {
        let mut events = self.sandboxes().events(id).await.unwrap();
        self.sandboxes().start(id, spec).await.unwrap();
        let exit = exit_of(&mut events, &spec.name, spec.attempt).await;
        (exit, Told::new(self.log(id, &spec.name, spec.attempt)))
    }

    /// Starts the attacker, to go on until it is stopped.
    pub async fn begin(&self, id: &SandboxId, spec: &ContainerSpec) {
        self.sandboxes().start(id, spec).await.unwrap();
    }

    /// Tells an attacker that waits for /tmp/stop to end; what it told.
    pub async fn stop(&self, id: &SandboxId, spec: &ContainerSpec) -> Told {
        let mut events = self.sandboxes().events(id).await.unwrap();
        let exec = exec_spec(&spec.name, &["touch", "/tmp/stop"]);
        match self.sandboxes().exec(id, &exec, Stdio::default()).await {
            Ok(mut process) => drop(process.wait().await.unwrap()),
            // Killed, or not even known to have begun, when the attacker, which is the first process, sees it and ends sooner.
            Err(error) => assert!(matches!(error, SandboxError::Failed { .. }), "{error:?}"),
        }
        exit_of(&mut events, &spec.name, spec.attempt).await;
        Told::new(self.log(id, &spec.name, spec.attempt))
    }

    /// Runs the attacker by exec in a running container.
    pub async fn attack_by_exec(&self, id: &SandboxId, container: &str, arguments: &[&str]) -> Told {
        let words: Vec<&str> = ["/bin/attacker"].iter().chain(arguments).copied().collect();
        Told::new(self.exec(id, container, &words).await.1)
    }

    /// Ends a container by force.
    pub async fn end(&self, id: &SandboxId, spec: &ContainerSpec) {
        let mut events = self.sandboxes().events(id).await.unwrap();
        self.sandboxes().signal(id, &spec.name, 9, true).await.unwrap();
        exit_of(&mut events, &spec.name, spec.attempt).await;
    }
}

/// A layer of the test's own; `name` must be its own, too.
pub fn layer(name: &str, fill: impl FnOnce(&Path)) -> Layer {
    Layer { id: format!("sha256:{name}"), path: image::layer_of(name, fill) }
}

/// A volume.
pub fn volume(source: &Path, sub_path: &str, destination: &str) -> Mount {
    Mount {
        source: source.to_owned(),
        sub_path: sub_path.into(),
        destination: destination.into(),
        read_only: false,
        no_exec: false,
        idmap: true,
        exclusive: false,
        layers: Vec::new(),
    }
}

/// A name, and what it changes.
pub type Kind = (&'static str, fn(&mut SandboxSpec));

/// How a sandbox may be made: each attack is run on all of these.
pub const KINDS: [Kind; 2] = [("own-ids", |_| {}), ("hosts-ids", |spec| spec.namespaces.user = false)];

/// The future's value; a hang is a failed test that cleans up. More rounds may take longer, on a machine that others have
/// most of, too.
pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    const LEAST: Duration = Duration::from_secs(600);
    const A_ROUND: Duration = Duration::from_millis(400);
    let longest = LEAST.max(A_ROUND * u32::try_from(iterations()).unwrap_or(u32::MAX));
    tokio::time::timeout(longest, future).await.expect("the attack ends in time")
}
