//! vkubelet on a manifest directory and one agent on this machine, each a real process, all state in one directory and the
//! data plane in a network namespace of its own. What the survival and fault tests kill and start again.

pub mod http;
pub mod kernel;
mod process;
mod programs;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

pub use process::Process;
pub use programs::{Programs, is_root};

/// Longest wait for anything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The pods' subnet.
const POD_CIDR: &str = "10.99.0.0/16";

/// The two daemons and what they work on.
#[derive(Debug)]
pub struct Stack {
    programs: Programs,
    dir: PathBuf,
    netns: String,
    /// Flags that the agent is started with besides the stack's own.
    pub agent_flags: Vec<String>,
    /// Flags that vkubelet is started with besides the stack's own.
    pub vkubelet_flags: Vec<String>,
    /// vkubelet, while it runs.
    pub vkubelet: Option<Process>,
    /// The agent, while it runs.
    pub agent: Option<Process>,
}

impl Stack {
    /// Makes directory and namespace, starts vkubelet, joins an agent and starts it; returns when the host is connected.
    pub fn up(name: &str) -> Result<Self> {
        Self::up_with(name, &[], &[])
    }

    /// The same with further flags of the two daemons.
    pub fn up_with(name: &str, agent_flags: &[&str], vkubelet_flags: &[&str]) -> Result<Self> {
        let programs = Programs::find()?;
        let id = format!("nl-{name}-{}", std::process::id());
        let dir = PathBuf::from("/run").join(&id);
        for part in ["manifests", "vk-state", "vk-run", "agent-state", "agent-run", "logs"] {
            std::fs::create_dir_all(dir.join(part)).context("make the test's directories")?;
        }
        run(Command::new("ip").args(["netns", "add", &id])).context("make the data plane's network namespace")?;
        let owned = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect();
        let (agent_flags, vkubelet_flags) = (owned(agent_flags), owned(vkubelet_flags));
        let mut stack = Self { programs, dir, netns: id, agent_flags, vkubelet_flags, vkubelet: None, agent: None };
        if let Err(error) = stack.begin() {
            let logs = stack.log_tails();
            let down = stack.down();
            return Err(error.context(logs).context(format!("cleaned up: {down:?}")));
        }
        Ok(stack)
    }

    fn begin(&mut self) -> Result<()> {
        self.start_vkubelet()?;
        let token = self.vkubelet_says(&["token", "create"])?;
        let hash = self.vkubelet_says(&["ca-hash"])?;
        let address = self.address("agent")?;
        let mut join = Command::new(&self.programs.agent);
        join.args(["join", &address, "--token", &token, "--ca-hash", &hash, "--host-id", "host-1", "--state-dir"])
            .arg(self.dir.join("agent-state"));
        run(&mut join).context("join the agent")?;
        self.start_agent()?;
        wait("the host is connected", || Ok(!items(&self.client(&["hosts"])?).is_empty()))
    }

    /// A directory of this stack.
    pub fn path(&self, part: &str) -> PathBuf {
        self.dir.join(part)
    }

    /// The four programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Starts vkubelet and waits until it is ready.
    pub fn start_vkubelet(&mut self) -> Result<()> {
        self.spawn_vkubelet()?;
        wait("vkubelet writes its addresses", || Ok(self.vkubelet_is_up()))?;
        std::fs::write(self.dir.join("agent-port"), self.address("agent")?)?;
        Ok(())
    }

    /// Whether the vkubelet that was started last has written its addresses, which it does when it serves.
    pub fn vkubelet_is_up(&self) -> bool {
        self.dir.join("vk-run/addresses.json").exists()
    }

    /// Starts vkubelet without waiting for anything.
    pub fn spawn_vkubelet(&mut self) -> Result<()> {
        let _ = std::fs::remove_file(self.dir.join("vk-run/addresses.json"));
        self.vkubelet = Some(Process::start(self.vkubelet_command(), &self.dir.join("logs/vkubelet.log"))?);
        Ok(())
    }

    /// The command that starts this stack's vkubelet.
    pub fn vkubelet_command(&self) -> Command {
        let mut command = Command::new(&self.programs.vkubelet);
        command.args(["--node-name", "test-node"]);
        for listen in ["--agent-listen", "--billing-listen", "--http-listen"] {
            // The agent finds vkubelet again on the same port after a restart.
            let known = if listen == "--agent-listen" { self.known_agent_port() } else { None };
            command.args([listen, &format!("127.0.0.1:{}", known.unwrap_or(0))]);
        }
        command.arg("--pod-manifest-path").arg(self.dir.join("manifests"));
        command.arg("--state-dir").arg(self.dir.join("vk-state")).arg("--run-dir").arg(self.dir.join("vk-run"));
        command.args(&self.vkubelet_flags);
        command
    }

    fn known_agent_port(&self) -> Option<u16> {
        let text = std::fs::read_to_string(self.dir.join("agent-port")).ok()?;
        text.rsplit_once(':')?.1.parse().ok()
    }

    /// Starts the agent; it connects by itself.
    pub fn start_agent(&mut self) -> Result<()> {
        self.agent = Some(Process::start(self.agent_command(), &self.dir.join("logs/agent.log"))?);
        Ok(())
    }

    /// The command that starts this stack's agent.
    pub fn agent_command(&self) -> Command {
        let mut command = Command::new(&self.programs.agent);
        command.arg("run").arg("--state-dir").arg(self.dir.join("agent-state"));
        command.arg("--run-dir").arg(self.dir.join("agent-run"));
        command.arg("--data-plane-netns").arg(Path::new("/run/netns").join(&self.netns));
        command.args(["--cgroup-parent", &self.netns, "--http-listen", "127.0.0.1:0", "--pod-cidr", POD_CIDR]);
        command.arg("--shim").arg(&self.programs.shim);
        command.args(&self.agent_flags);
        command
    }

    /// What a command of vkubelet's prints, on this stack's state.
    pub fn vkubelet_says(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.programs.vkubelet);
        command.args(args).arg("--state-dir").arg(self.dir.join("vk-state"));
        Ok(run(&mut command)?.trim().to_owned())
    }

    /// What a cluster needs for a node of this name.
    pub fn vkubelet_manifests(&self, node: &str) -> Result<String> {
        run(Command::new(&self.programs.vkubelet).args(["manifests", "--node-name", node]))
    }

    /// One of vkubelet's addresses: `agent`, `billing`, `http`.
    pub fn address(&self, which: &str) -> Result<String> {
        let text = std::fs::read(self.dir.join("vk-run/addresses.json")).context("read vkubelet's addresses")?;
        let value: Value = serde_json::from_slice(&text)?;
        Ok(value[which].as_str().with_context(|| format!("no address of {which}"))?.to_owned())
    }

    /// What the billing API answers to GET, with the node's own token.
    pub fn billing(&self, path: &str) -> Result<Value> {
        let token = std::fs::read_to_string(self.dir.join("vk-state/billing.token")).context("read the token")?;
        let (status, text) = http::get(&self.address("billing")?, path, Some(token.trim()))?;
        ensure!(status == 200, "GET {path}: {status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("GET {path} said: {text}"))
    }

    /// What the client answers as JSON.
    pub fn client(&self, args: &[&str]) -> Result<Value> {
        let text = self.client_text(&[&["-o", "json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("nodeless {args:?} said: {text}"))
    }

    /// What the client prints.
    pub fn client_text(&self, args: &[&str]) -> Result<String> {
        run(&mut self.client_command(args))
    }

    /// All that the client prints, errors last, and its exit code, which is not 0.
    pub fn client_fails(&self, args: &[&str]) -> Result<(i32, String)> {
        let output = self.client_command(args).output().context("run the client")?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(!output.status.success(), "nodeless {args:?} succeeded: {text}");
        Ok((output.status.code().unwrap_or(-1), text))
    }

    fn client_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.client);
        command.arg("--socket").arg(self.dir.join("vk-run/vkubelet.sock")).args(args);
        command
    }

    /// Whether a host takes pods; an error says why not.
    pub fn host_is_ready(&self) -> Result<bool> {
        let hosts = self.client(&["hosts"])?;
        let ready = |host: &&Value| host["connected"] == true && host["ready"] == true;
        ensure!(items(&hosts).iter().any(|host| ready(&host)), "no host is ready: {hosts}");
        Ok(true)
    }

    /// Puts a manifest into the directory, whole at once.
    pub fn put_manifest(&self, name: &str, pod: &Value) -> Result<()> {
        let path = self.dir.join("manifests").join(format!("{name}.json"));
        let temporary = self.dir.join(format!("{name}.tmp"));
        std::fs::write(&temporary, serde_json::to_vec_pretty(pod)?)?;
        std::fs::rename(temporary, path).context("put a manifest")
    }

    /// Removes a manifest.
    pub fn remove_manifest(&self, name: &str) -> Result<()> {
        std::fs::remove_file(self.dir.join("manifests").join(format!("{name}.json"))).context("remove a manifest")
    }

    /// An OCI layout with busybox, made once per machine; the reference to it.
    pub fn busybox(&self) -> Result<String> {
        self.programs.busybox()
    }

    /// The last lines of both daemons' logs.
    pub fn log_tails(&self) -> String {
        ["vkubelet", "agent"]
            .map(|name| {
                let text = std::fs::read_to_string(self.dir.join(format!("logs/{name}.log"))).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                format!("--- {name}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
            })
            .join("\n")
    }

    /// Ends and removes everything: pods, sandboxes, daemons, namespace, directories.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    /// The same for an owner that has to go on.
    pub fn end_now(&mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if let Some(vkubelet) = self.vkubelet.take() {
            vkubelet.terminate(PATIENCE)?;
        }
        if let Some(agent) = self.agent.take() {
            agent.terminate(PATIENCE)?;
        }
        let mut reset = Command::new(&self.programs.agent);
        reset.arg("reset").arg("--shim").arg(&self.programs.shim).arg("--state-dir").arg(self.dir.join("agent-state"));
        reset.arg("--run-dir").arg(self.dir.join("agent-run")).arg("--data-plane-netns");
        reset.arg(Path::new("/run/netns").join(&self.netns)).args([
            "--cgroup-parent",
            &self.netns,
            "--pod-cidr",
            POD_CIDR,
        ]);
        let reset = run(&mut reset);
        let netns = run(Command::new("ip").args(["netns", "delete", &self.netns]));
        let removed = std::fs::remove_dir_all(&self.dir);
        reset.context("reset the agent's state")?;
        netns.context("remove the network namespace")?;
        removed.context("remove the test's directory")
    }
}

impl Drop for Stack {
    /// After a failed assertion only: a passing test calls [`Stack::down`] and sees its errors.
    fn drop(&mut self) {
        if self.dir.exists() {
            eprintln!("{}", self.log_tails());
            if let Some(kept) = std::env::var_os("NODELESS_KEEP_LOGS")
                && let Err(error) = run(Command::new("cp").arg("-r").arg(self.dir.join("logs")).arg(kept))
            {
                eprintln!("the logs were not kept: {error:#}");
            }
            if let Err(error) = self.end() {
                eprintln!("clean-up failed: {error:#}");
            }
        }
    }
}

/// The items of a list that the client printed.
pub fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// Runs a command to its end; its output, or its error text.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks until it is so; errors of single asks count as "not yet".
pub fn wait(what: &str, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < deadline {
        match ask() {
            Ok(true) => return Ok(()),
            Ok(false) => last = None,
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    match last {
        Some(error) => Err(error.context(format!("not within {PATIENCE:?}: {what}"))),
        None => bail!("not within {PATIENCE:?}: {what}"),
    }
}
