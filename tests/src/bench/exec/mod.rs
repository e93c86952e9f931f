//! `exec`: `/bin/true` is asked for in a running container, until its exit is known.
//!
//! Ours is `exec` and `wait` on the namespace backend. A peer is `PEER exec` in a container of the same hardening (see
//! [`super::oci`]), until that program has ended. All take turns of ten. No terminal; standard streams are `/dev/null`.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sandbox::contract::{Sandboxes, Stdio};
use sandbox::spec::{ExecSpec, SandboxId};

use super::figure::{Figure, Quantity, lower, quantile};
use super::host::{Backend, Host, SLEEP};
use super::oci::{self, Order, Runner};
use super::{milliseconds, turns};

/// What is measured here.
pub const FIGURES: [Quantity; 1] = [lower("exec.p50", "ms")];

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where.
    pub host: Host,
    /// Execs one after the other.
    pub count: usize,
}

/// Measures.
pub async fn run(options: &Options, wanted: impl Fn(&str) -> bool) -> Result<Vec<Figure>> {
    let [p50] = FIGURES;
    if !wanted(p50.name) {
        return Ok(Vec::new());
    }
    let mut runners = Runner::start_all(&options.host)?;
    let measure = async |ours: &Backend| {
        let pod = ours.start(&SLEEP).await?;
        let mut own = Vec::new();
        let mut theirs = vec![Vec::new(); runners.len()];
        for count in turns(options.count) {
            for _ in 0..count {
                own.push(exec(ours, &pod.id).await?);
            }
            for (runner, times) in runners.iter_mut().zip(&mut theirs) {
                for _ in 0..count {
                    times.push(runner.ask(Order::Exec)?);
                }
            }
        }
        Ok((own, theirs))
    };
    let (own, theirs) = options.host.with_backend(0, measure).await?;
    let theirs = runners.iter().zip(&theirs).map(|(runner, times)| (runner.name(), quantile(times, 0.5)));
    Ok(p50.beside_all(quantile(&own, 0.5), own.len(), theirs))
}

/// Milliseconds.
async fn exec(ours: &Backend, id: &SandboxId) -> Result<f64> {
    let (ours, id) = (ours.clone(), id.clone());
    // Where an agent's sessions have their tasks: on the runtime's threads.
    tokio::spawn(async move { exec_once(&ours, &id).await }).await.context("an exec's task")?
}

async fn exec_once(ours: &Backend, id: &SandboxId) -> Result<f64> {
    let spec = ExecSpec {
        container: "main".to_owned(),
        args: oci::TRUE.map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: None,
        tty: None,
    };
    let begin = Instant::now();
    let mut process = ours.sandboxes.exec(id, &spec, Stdio::default()).await.context("exec")?;
    let exit = process.wait().await.context("wait for an exec")?;
    let taken = begin.elapsed();
    ensure!(exit.code == 0, "the exec ended with {exit:?}");
    Ok(milliseconds(taken))
}
