//! `restart`: an agent is started again over 110 running pods after it was killed, until it has all of them back.
//!
//! From the start of the new agent's process until its pods' tasks have told the state of all pods again (its own
//! `nodeless_agent_pods`), and vkubelet says that the host is connected and each pod as it was before. The programs are the real ones: vkubelet on a directory
//! of manifests, one agent with its data plane in a network namespace of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::figure::{Figure, Quantity, lower, quantile};
use crate::stack::{PATIENCE, Stack, http, items, wait};

/// What is measured here.
pub const FIGURES: [Quantity; 1] = [lower("restart.110", "s")];

/// Between two looks at an agent that comes up.
const LOOK: Duration = Duration::from_millis(2);

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// An image with a shell, `oci-layout:DIR`.
    pub image: String,
    /// Pods.
    pub pods: usize,
    /// How often the agent is killed.
    pub rounds: usize,
}

/// Measures. When it is interrupted everything is taken down before it returns.
pub async fn run(options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let [restart] = FIGURES;
    if !wanted(restart.name) {
        return Ok(Vec::new());
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    let (told, options) = (interrupted.clone(), options.clone());
    let mut measuring = tokio::task::spawn_blocking(move || measure(&options, &interrupted));
    let times = tokio::select! {
        times = &mut measuring => times,
        _ = tokio::signal::ctrl_c() => {
            told.store(true, Ordering::Relaxed);
            measuring.await
        }
    };
    let times = times.context("measure")??;
    Ok(vec![restart.alone(quantile(&times, 0.5), times.len())])
}

/// Seconds.
fn measure(options: &Options, interrupted: &AtomicBool) -> Result<Vec<f64>> {
    let mut stack = Stack::up("bench")?;
    let measured = rounds(&mut stack, options, interrupted);
    let logs = stack.log_tails();
    // Pods go with the agent's state.
    stack.down()?;
    measured.map_err(|error| error.context(logs))
}

fn rounds(stack: &mut Stack, options: &Options, interrupted: &AtomicBool) -> Result<Vec<f64>> {
    for number in 0..options.pods {
        stack.put_manifest(&format!("idle-{number}"), &pod(number, &options.image))?;
    }
    wait("all pods run", || Ok(running(stack)?.len() == options.pods))?;
    let before = running(stack)?;
    let mut times = Vec::with_capacity(options.rounds);
    for _ in 0..options.rounds {
        ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
        stack.agent.take().context("the agent runs")?.kill()?;
        std::fs::remove_file(stack.path("agent-run/addresses.json")).context("forget the killed agent's addresses")?;
        wait("the host is away", || Ok(!connected(stack)?))?;
        let begin = Instant::now();
        stack.start_agent()?;
        until(|| has(stack, options.pods))?;
        until(|| connected(stack))?;
        until(|| Ok(running(stack)? == before))?;
        times.push(begin.elapsed().as_secs_f64());
    }
    Ok(times)
}

/// The agent that was started last has so many pods.
fn has(stack: &Stack, pods: usize) -> Result<bool> {
    let Ok(text) = std::fs::read(stack.path("agent-run/addresses.json")) else { return Ok(false) };
    let addresses: Value = serde_json::from_slice(&text).context("read the agent's addresses")?;
    let address = addresses["http"].as_str().context("the agent's address")?;
    let (_, metrics) = http::get(address, "/metrics", None)?;
    let line = format!("nodeless_agent_pods {pods}");
    Ok(metrics.lines().any(|told| told == line))
}

fn connected(stack: &Stack) -> Result<bool> {
    Ok(items(&stack.client(&["hosts"])?).iter().any(|host| host["connected"] == true && host["ready"] == true))
}

/// What must not change: each running pod's name, container and number of restarts.
fn running(stack: &Stack) -> Result<Vec<Value>> {
    let pods = stack.client(&["ps"])?;
    let of = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        json!([pod["name"], container["containerID"], container["restartCount"], container["state"]])
    };
    let mut running: Vec<_> = items(&pods).iter().filter(|pod| pod["status"]["phase"] == "Running").map(of).collect();
    running.sort_by_key(ToString::to_string);
    Ok(running)
}

fn until(mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !so()? {
        if Instant::now() > deadline {
            bail!("the agent did not take its pods back within {PATIENCE:?}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn pod(number: usize, image: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("idle-{number}")},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000000"],
                "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}, "limits": {"memory": "32Mi"}},
            }],
        },
    })
}
